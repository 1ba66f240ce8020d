"""Manage's metrics. They are facts in Redis: any worker of any instance gives the same text at the same moment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from redis import Redis

from manage_service import runs
from shared_models import counters, keys, rolls


def render(redis: Redis) -> bytes:
    """Everything, as Prometheus text. Raises redis.RedisError."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Facts(redis))
    return generate_latest(registry)


class Facts:
    """Reads Redis once a scrape."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def collect(self) -> Iterator[Metric]:
        now = datetime.now(UTC)
        states = rolls.read_states(self.redis, [counter.name for counter in counters.COUNTERS])
        live = GaugeMetricFamily(
            "rollcall_counter_live", "1 where the counter can be counted, 0 where cold", labels=["counter"]
        )
        count = GaugeMetricFamily("rollcall_counter_members", "Members of a live counter", labels=["counter"])
        age = GaugeMetricFamily(
            "rollcall_counter_complete_age_seconds", "How long ago complete_through was", labels=["counter"]
        )
        verified = GaugeMetricFamily(
            "rollcall_counter_verified_age_seconds", "How long ago the last reconcile ended", labels=["counter"]
        )
        drift = GaugeMetricFamily(
            "rollcall_counter_drift_members", "Drift that the last reconcile found", labels=["counter", "kind"]
        )
        for name, state in states.items():
            live.add_metric([name], 0 if state.cold else 1)
            if not state.cold:
                count.add_metric([name], state.count)
            if state.complete_through is not None:
                age.add_metric([name], (now - state.complete_through).total_seconds())
            if state.verified_at is not None:
                verified.add_metric([name], (now - state.verified_at).total_seconds())
            if state.drift is not None:
                drift.add_metric([name, "missing"], state.drift.missing)
                drift.add_metric([name, "extra"], state.drift.extra)
        yield from (live, count, age, verified, drift)
        yield GaugeMetricFamily(
            "rollcall_runs_open", "Runs that have not ended", value=len(runs.still_open(self.redis))
        )
        ticked = rolls.from_microseconds(*rolls.read_fields(self.redis, keys.KEEPER, "ticked_at"))
        if ticked is not None:
            yield GaugeMetricFamily(
                "rollcall_keeper_tick_age_seconds",
                "How long ago the keeper caught up",
                value=(now - ticked).total_seconds(),
            )
