"""Manage's metrics, except that of its requests. They are facts in Redis. The keeper has no port and writes its figures
there. So any worker of any instance gives the same text at the same moment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from redis import Redis

from manage_service.runs import registry, totals
from manage_service.status.report import count_broken, count_days
from shared_models.nodes import Nodes
from shared_models.protocol import keys, moments, states


class Facts:
    """Reads Redis once a scrape."""

    def __init__(self, nodes: Nodes[Redis]) -> None:
        self.nodes = nodes

    def collect(self) -> Iterator[Metric]:
        now = datetime.now(UTC)
        found = states.read_wholes(self.nodes)
        live = GaugeMetricFamily(
            "rollcall_counter_live", "1 if the counter can be counted, 0 if it is cold", labels=["counter"]
        )
        count = GaugeMetricFamily(
            "rollcall_counter_members",
            "Members of a live counter; by group, of all groups together",
            labels=["counter"],
        )
        groups = GaugeMetricFamily("rollcall_counter_groups", "Groups of a live counter by group", labels=["counter"])
        broken = GaugeMetricFamily(
            "rollcall_counter_broken_groups",
            "Groups that the keeper reads again; only these are cold",
            labels=["counter"],
        )
        for name, number in count_broken(self.nodes).items():
            broken.add_metric([name], number)
            if not found[name].cold:
                groups.add_metric([name], found[name].count)
        days = GaugeMetricFamily(
            "rollcall_counter_days",
            "Different days on which members of a live counter with last_seen were last seen",
            labels=["counter"],
        )
        for name, number in count_days(self.nodes).items():
            if not found[name].cold:
                days.add_metric([name], number)
        age = GaugeMetricFamily("rollcall_counter_complete_age_seconds", "Age of complete_through", labels=["counter"])
        verified = GaugeMetricFamily(
            "rollcall_counter_verified_age_seconds", "How long ago the last reconcile ended", labels=["counter"]
        )
        drift = GaugeMetricFamily(
            "rollcall_counter_drift_members", "Drift that the last reconcile found", labels=["counter", "kind"]
        )
        why = GaugeMetricFamily(
            "rollcall_counter_cold", "1 if the counter cannot be counted, and why", labels=["counter", "reason"]
        )
        withheld = GaugeMetricFamily(
            "rollcall_counter_withheld",
            "1 if complete_through stands still because the table has changed, until it is reconciled",
            labels=["counter"],
        )
        for name, state in found.items():
            withheld.add_metric([name], 1 if state.withheld else 0)
            if state.cold:
                why.add_metric([name, state.condition], 1)
            live.add_metric([name], 0 if state.cold else 1)
            if not state.cold:
                count.add_metric([name], state.count if state.elements is None else state.elements)
            if state.complete_through is not None:
                age.add_metric([name], (now - state.complete_through).total_seconds())
            if state.verified_at is not None:
                verified.add_metric([name], (now - state.verified_at).total_seconds())
            if state.drift is not None:
                drift.add_metric([name, "missing"], state.drift.missing)
                drift.add_metric([name, "extra"], state.drift.extra)
        yield from (live, why, count, groups, broken, days, age, withheld, verified, drift)
        yield GaugeMetricFamily(
            "rollcall_runs_open", "Runs that have not ended", value=len(registry.still_open(self.nodes.of(keys.RUNS)))
        )
        yield from self.collect_totals(list(found))
        yield from self.collect_keeper(now)

    def collect_totals(self, names: list[str]) -> Iterator[Metric]:
        """The work since Redis was last empty."""
        caught_up = CounterMetricFamily(
            "rollcall_keeper_caught_up_members_total",
            "Members of the rows that catching up has read, and those of them that were not in their set yet",
            labels=["counter", "kind"],
        )
        for name in names:
            read, added = totals.read_passes(self.nodes.of(keys.TOTALS), name)
            caught_up.add_metric([name, "read"], read)
            caught_up.add_metric([name, "added"], added)
        took = SummaryMetricFamily("rollcall_run_seconds", "How long runs took", labels=["mode", "status"])
        for (mode, status), (times, seconds) in totals.read_runs(self.nodes.of(keys.TOTALS)).items():
            took.add_metric([mode.value, status.value], times, seconds)
        yield from (caught_up, took)

    def collect_keeper(self, now: datetime) -> Iterator[Metric]:
        """The keeper's state, and what the replica shows. Nothing, if there has never been a keeper."""
        names = ("ticked_at", "source", "committed_through", "behind_bytes", "held_microseconds", "passed_over")
        ticked, source, through, behind, held, passed_over = states.read_fields(
            self.nodes.of(keys.KEEPER), keys.KEEPER, *names
        )
        ticked_at, shown_through = moments.from_microseconds(ticked), moments.from_microseconds(through)
        if ticked_at is not None:
            age = (now - ticked_at).total_seconds()
            yield GaugeMetricFamily(
                "rollcall_keeper_tick_age_seconds", "How long ago the keeper last ran its loop", value=age
            )
            yield GaugeMetricFamily(
                "rollcall_replica_reachable", "1, or 0 if the keeper cannot read it", value=1 if source else 0
            )
        if shown_through is not None and behind is not None and held is not None:
            yield GaugeMetricFamily(
                "rollcall_replica_lag_seconds",
                "Age of the newest commit that the replica shows",
                value=max(0.0, (now - shown_through).total_seconds()),
            )
            yield GaugeMetricFamily(
                "rollcall_replica_lag_bytes", "WAL that the replica has received and not replayed", value=int(behind)
            )
            yield GaugeMetricFamily(
                "rollcall_horizon_age_seconds",
                "For how long an open transaction has held back the horizon",
                value=int(held) / 1e6,
            )
            yield GaugeMetricFamily(
                "rollcall_replicas_passed_over",
                "Replicas in DATABASE_URL that the keeper does not read, because they are behind or do not answer",
                value=int(passed_over or 0),
            )
