"""The state of everything: one reading of Redis and the replica, for the API and the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg2
from redis import Redis

from manage_service.leases import read_holder
from manage_service.replica.snapshots import Replica
from manage_service.runs import registry
from manage_service.runs.registry import Run
from manage_service.status.judging import Limits, judge, one_line
from manage_service.status.schemas import (
    BuildProgress,
    CounterStatus,
    Drift,
    KeeperStatus,
    LastRun,
    Proof,
    ReplicaStatus,
    StatusReport,
)
from shared_models import declarations
from shared_models.declarations import Storage
from shared_models.protocol import keys, moments, states, storages
from shared_models.protocol.states import State

# A keeper ticks about every second, and never takes longer than this for a step.
KEEPER_ALIVE = timedelta(seconds=15)
# How many runs are looked through for the last one of each counter; more if there are many counters.
LEAST_RUNS = 100


def read_status(redis: Redis, replica: Replica, limits: Limits) -> StatusReport:
    """Counters, replica, keeper and open runs, and the findings. Raises redis.RedisError.

    If the replica cannot be reached, the answer says so: operators ask when something is down.
    """
    now = datetime.now(UTC)
    names = [counter.name for counter in declarations.derived()]
    found = states.read_states(redis, names)
    broken, days = storages.count_broken(redis, [keys.of_counter(name) for name in names]), count_days(redis)
    history = registry.latest(redis, min(registry.HISTORY_RUNS, max(LEAST_RUNS, 3 * len(names))))
    unended = registry.still_open(redis)
    shown = read_replica(replica, now)
    status = StatusReport(
        healthy=False,
        findings=[],
        counters={
            name: counter_status(name, found[name], shown, history, number, days.get(name, 0))
            for name, number in zip(names, broken, strict=True)
        },
        replica=shown,
        keeper=read_keeper(redis, now),
        open_runs=[run.id for run in unended],
        as_of=now,
    )
    status.findings = judge(status, found, history, unended, limits)
    status.healthy = not status.findings
    return status


def read_keeper(redis: Redis, now: datetime) -> KeeperStatus:
    """The keeper's figures in Redis, and its process."""
    names = ("ticked_at", "job", "failure", "committed_through", "held_microseconds")
    ticked, job, failure, through, held = states.read_fields(redis, keys.KEEPER, *names)
    ticked_at, holder = moments.from_microseconds(ticked), read_holder(redis, "keeper")
    alive = ticked_at is not None and now - ticked_at < KEEPER_ALIVE
    return KeeperStatus(
        alive=alive,
        # It ticks, and keeps its lock, even while a store prevents catching up. Then it says which store.
        state="alive" if alive and not failure else "held up" if holder else "not running",
        ticked_at=ticked_at,
        job=(job or b"").decode(),
        holder=holder,
        failure=(failure or b"").decode(),
        committed_through=moments.from_microseconds(through),
        horizon_held_seconds=int(held or 0) / 1e6,
    )


def read_drift(redis: Redis) -> dict[str, list[Proof]]:
    """The drift that the kept runs have found in each counter, the oldest first. Raises redis.RedisError."""
    proofs: dict[str, list[Proof]] = {counter.name: [] for counter in declarations.derived()}
    for run in registry.latest(redis, registry.HISTORY_RUNS):
        for name, found in run.findings.items():
            if name in proofs and found.verified_at is not None:
                proofs[name].append(Proof(run.id, run.mode, found.verified_at, found.missing, found.extra))
    return {name: sorted(found, key=lambda proof: proof.verified_at) for name, found in proofs.items()}


def counter_status(
    name: str, state: State, replica: ReplicaStatus, history: list[Run], broken_groups: int, days: int
) -> CounterStatus:
    """One derived counter."""
    last = next((run for run in history if name in run.counters), None)
    storage = keys.of_counter(name).storage
    status = CounterStatus(
        state="cold" if state.cold else "live",
        reason=state.why_cold,
        withheld=state.withheld,
        count=None if state.cold else state.elements if storage is Storage.GROUPS else state.count,
        cursor=state.cursor,
        left_through=state.left_through,
        horizon=replica.horizon,
        replica_lag_seconds=replica.lag_seconds,
        watermark=state.watermark or 0,
        source=state.source,
        complete_through=state.complete_through,
        verified_at=state.verified_at,
        drift=None if state.drift is None else Drift(state.drift.missing, state.drift.extra),
        repaired=state.repaired,
        building=None if state.filled is None else BuildProgress(*state.filled),
        last_run=None if last is None else LastRun(last.id, last.status, last.finished_at),
    )
    if storage is Storage.GROUPS:
        status.groups, status.broken_groups = None if state.cold else state.count, broken_groups
    if storage is Storage.LAST_SEEN:
        status.days = None if state.cold else days
    return status


def count_days(redis: Redis) -> dict[str, int]:
    """How many different days each counter with last_seen has, in one round trip. Raises redis.RedisError."""
    names = [counter.name for counter in declarations.derived() if counter.storage is Storage.LAST_SEEN]
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.hlen(keys.of_counter(name).days)
    replies = pipe.execute(raise_on_error=False)
    # A key with a wrong type: its counter is cold, or becomes cold when the keeper looks at it.
    return {name: 0 if isinstance(each, Exception) else each for name, each in zip(names, replies, strict=True)}


def read_replica(replica: Replica, now: datetime) -> ReplicaStatus:
    """What the replica shows now."""
    try:
        with replica.snapshot() as snapshot:
            return ReplicaStatus(
                reachable=True,
                detail="",
                source=snapshot.source,
                horizon=snapshot.horizon,
                committed_through=snapshot.committed_through,
                lag_seconds=round(max(0.0, (now - snapshot.committed_through).total_seconds()), 3),
            )
    except psycopg2.Error as error:
        return ReplicaStatus(reachable=False, detail=one_line(str(error)))
