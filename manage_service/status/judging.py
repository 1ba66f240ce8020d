"""The findings: for each fault a sentence that says what is wrong, since when, and what to do.

The limits come from the settings: it is a fault if something takes longer than an undisturbed keeper needs.
"""

from __future__ import annotations

import shlex
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from manage_service.runs.registry import Run, Status
from manage_service.status.schemas import CounterStatus, Finding, KeeperStatus, ReplicaStatus, StatusReport
from shared_models.protocol.states import State
from shared_models.wording import found_in_words

# A pass, a restart of a store, and a busy machine take less.
LAG_SECONDS = 30.0
LAG_PASSES = 10
# In addition to two intervals: for a run that waits for its turn, and for the repetition of a failed one.
RUN_SECONDS = 60.0
# Partitions are made three months ahead. At the turn of a month there are two for a minute.
LEAST_MONTHS = 2
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


class Fault(NamedTuple):
    """A fault of a counter, and what it comes from; "" if that concerns this counter alone, and not its groupings."""

    finding: Finding
    cause: str = ""


class Limits(NamedTuple):
    """The ages in seconds from which something is a fault."""

    lag_seconds: float  # of complete_through, of the replica, of a transaction that is open, of a run that waits
    verified_seconds: float  # since a counter was last reconciled, or a run was asked for

    @classmethod
    def of(cls, catch_up_seconds: float, reconcile_seconds: float) -> Limits:
        """The limits for the keeper's settings."""
        return cls(max(LAG_SECONDS, LAG_PASSES * catch_up_seconds), 2 * reconcile_seconds + RUN_SECONDS)


def judge(
    status: StatusReport, found: dict[str, State], history: list[Run], unended: list[Run], limits: Limits
) -> list[Finding]:
    """All faults, causes first. `status` is their document."""
    now = status.as_of
    return [
        *judge_keeper(status.keeper, now, limits),
        *judge_replica(status.replica, status.keeper, now, limits),
        *(fault for run in unended for fault in judge_run(run, now, limits)),
        *fold(
            fault
            for name, counter in status.counters.items()
            for fault in judge_counter(name, counter, found[name], history, unended, now, limits)
        ),
    ]


def fold(faults: Iterable[Fault]) -> list[Finding]:
    """Report a fault of a total once if its groupings have the same fault, for the same cause."""
    of_total: dict[tuple[str, str, str], Finding] = {}
    alike = Tally[tuple[str, str, str]]()
    kept = []
    for fault, cause in faults:
        total, is_grouping, _ = fault.about.partition(":")
        key: tuple[str, str, str] = (total, fault.kind, cause)
        if is_grouping and cause and key in of_total:
            alike[key] += 1
            continue
        if not is_grouping:
            of_total[key] = fault
        kept.append(fault)
    for each, many in alike.items():
        fault = of_total[each]
        fault.detail = fault.detail.replace(fault.about, f"{fault.about}, like {many} of its groupings,", 1)
    return kept


def judge_keeper(keeper: KeeperStatus, now: datetime, limits: Limits) -> Iterator[Finding]:
    """The keeper, and what blocks it."""
    since = keeper.ticked_at
    if not keeper.alive:
        last = "there has been none" if since is None else f"the last one has been silent for {span(now - since)}"
        do = "start one (python -m manage_service keeper), or look at its log"
        yield Finding("keeper", "not-running", since, f"no keeper is at work, {last}: {do}")
    elif keeper.failure:
        through = keeper.committed_through
        seen = "" if through is None else f" (the newest commit that it has seen is {span(now - through)} old)"
        yield Finding("keeper", "held-up", through, f"the keeper is held up{seen}: {one_line(keeper.failure)}")
    held = timedelta(seconds=keeper.horizon_held_seconds)
    if keeper.alive and held.total_seconds() > limits.lag_seconds:
        yield Finding(
            "horizon",
            "held",
            now - held,
            f"a transaction on the primary has held the horizon for {span(held)}, and counters are not complete beyond it: "
            "find it by pg_stat_activity and pg_prepared_xacts, and end it, or wait",
        )


def judge_replica(replica: ReplicaStatus, keeper: KeeperStatus, now: datetime, limits: Limits) -> Iterator[Finding]:
    """Whether it can be read, and the age of its data."""
    if not replica.reachable:
        reason = one_line(replica.detail)
        yield Finding("replica", "not-reachable", keeper.committed_through, f"the replica cannot be read: {reason}")
    elif replica.lag_seconds is not None and replica.lag_seconds > limits.lag_seconds:
        lag = timedelta(seconds=replica.lag_seconds)
        yield Finding(
            "replica",
            "behind",
            replica.committed_through,
            f"the newest commit that the replica shows is {span(lag)} old: look whether it streams and replays, "
            "and whether ingest commits (its pulse does, every PULSE_SECONDS)",
        )
    for host, reason in replica.passed_over.items():
        said = f"the replica {host} is not read, and {replica.host} is: {one_line(reason)}"
        yield Finding("replica", "passed-over", None, said)
    for table, months in replica.months_ahead.items():
        if months < LEAST_MONTHS:
            yield Finding(
                table,
                "few-months",
                None,
                f"{table} has partitions for {max(months, 0)} months to come, and rows of later months would be refused: ingest "
                "makes them, and says in its log why it could not (partitions.not_made)",
            )


def judge_run(run: Run, now: datetime, limits: Limits) -> Iterator[Finding]:
    """A run that has not ended."""
    what = f"the {run.mode} {run.id} of {run.counters_in_words}"
    if run.detail and run.phase_started_at and exceeds(now - run.phase_started_at, limits.lag_seconds):
        waited = span(now - run.phase_started_at)
        yield Finding(run.id, "waits", run.phase_started_at, f"{what} has waited for {waited}: {one_line(run.detail)}")
    elif exceeds(now - run.asked_at, limits.verified_seconds):
        yield Finding(
            run.id,
            "open-long",
            run.asked_at,
            f"{what} was asked for {span(now - run.asked_at)} ago and has not ended ({run.status}): look what the keeper does, "
            "or cancel it",
        )


def judge_counter(
    name: str,
    counter: CounterStatus,
    state: State,
    history: list[Run],
    unended: list[Run],
    now: datetime,
    limits: Limits,
) -> Iterator[Fault]:
    """One counter: whether it can be counted, is complete and verified, and whether its drift is repaired."""
    if state.disbelieved:
        fields = ", ".join(state.disbelieved)
        yield Fault(
            Finding(
                name, "disbelieved", None, f"{name}: what Redis says cannot be true ({fields}): a keeper repairs it"
            )
        )
    if state.cold:
        if counter.next_of and state.condition in ("lost", "building"):
            return  # query does not read it yet
        finding = Finding(name, "cold", state.complete_through, f"{name} cannot be counted: {one_line(state.why_cold)}")
        yield Fault(finding, f"{state.condition} {state.away or state.refused}")
        return
    if counter.broken_groups:
        yield Fault(Finding(name, "broken-groups", None, f"{name}: {broken_words(counter.broken_groups)}"))
    reconcile = f"`reconcile {shlex.quote(name)}`"
    through, verified_at, failed = counter.complete_through, counter.verified_at, last_failure(name, history)
    if through is not None and exceeds(now - through, limits.lag_seconds):
        why = state.withheld or "if nothing else is said here, look for keeper.behind in the keeper's log"
        told = f"{name} is complete only to {span(now - through)} ago: {why}"
        yield Fault(Finding(name, "incomplete", through, told), why)
    if failed is not None:
        told = (
            f"{name} was not reconciled: its {failed.mode} {failed.id} failed {span(now - (failed.finished_at or now))} ago: "
            f"{one_line(failed.detail)}"
        )
        yield Fault(Finding(name, "run-failed", failed.finished_at, told), failed.id)
    elif verified_at is None and not any(name in run.counters for run in unended):
        told = f"{name} has never been verified: a keeper does it, or {reconcile}"
        yield Fault(Finding(name, "not-verified", None, told), "never")
    elif verified_at is not None and exceeds(now - verified_at, limits.verified_seconds):
        told = f"{name} was last verified {span(now - verified_at)} ago: look what the keeper does, or {reconcile}"
        yield Fault(Finding(name, "not-verified", verified_at, told), "long ago")
    if state.drift and not state.repaired and (state.drift.missing or state.drift.extra):
        told = (
            f"{name}: a check {span(now - (verified_at or now))} ago found "
            f"{found_in_words(state.drift.missing, state.drift.extra, repaired=False)}, and repaired nothing: "
            f"{reconcile} does"
        )
        yield Fault(Finding(name, "drift", verified_at, told))


def broken_words(groups: int) -> str:
    """How many groups are cold, and what the keeper does about it."""
    if groups == 1:
        return "something other than Rollcall has changed one of its groups, which is cold until the keeper has read it again"
    return (
        f"something other than Rollcall has changed {groups:,} of its groups, which are cold until the keeper has read them "
        "again"
    )


def last_failure(name: str, history: list[Run]) -> Run | None:
    """The newest run of this counter that was not cancelled, if it failed for this counter."""
    ended = (run for run in history if name in run.counters and run.status in (Status.DONE, Status.FAILED))
    last = next(ended, None)
    if last is None or last.status is Status.DONE:
        return None
    proved = last.by_counter.get(name)
    return None if proved is not None and proved.verified_at is not None else last


def exceeds(age: timedelta, limit_seconds: float) -> bool:
    return age.total_seconds() > limit_seconds


def span(age: timedelta) -> str:
    """A time in a readable unit: "8.4 s", "2 min"."""
    seconds = max(0.0, age.total_seconds())
    for unit, length in UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def one_line(reason: str) -> str:
    """A store's error in one line: libpq writes several, and indents them."""
    return " ".join(reason.split())
