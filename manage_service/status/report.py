"""The state of everything: one reading of Redis and the replica, for the API and the command line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg2
from redis import Redis
from redis.exceptions import RedisError

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
from shared_models.nodes import Nodes
from shared_models.protocol import keys, moments, states
from shared_models.protocol.states import State

# A keeper ticks about every second, and never takes longer than this for a step.
KEEPER_ALIVE = timedelta(seconds=15)
# How many runs are looked through for the last one of each counter; more if there are many counters.
LEAST_RUNS = 100


def read_status(nodes: Nodes[Redis], replica: Replica, limits: Limits) -> StatusReport:
    """Counters, replica, keeper and open runs, and the findings. Raises redis.RedisError.

    If the replica cannot be reached, the answer says so: operators ask when something is down.
    """
    now = datetime.now(UTC)
    names = [counter.name for counter in declarations.kept()]
    found = states.read_wholes(nodes)
    broken, days, runs = count_broken(nodes), count_days(nodes), nodes.of(keys.RUNS)
    history = registry.latest(runs, min(registry.HISTORY_RUNS, max(LEAST_RUNS, 3 * len(names))))
    unended = registry.still_open(runs)
    shown = read_replica(replica, now)
    status = StatusReport(
        healthy=False,
        findings=[],
        counters={
            name: counter_status(name, found[name], shown, history, broken.get(name, 0), days.get(name, 0))
            for name in names
        },
        replica=shown,
        keeper=read_keeper(nodes, now),
        open_runs=[run.id for run in unended],
        as_of=now,
    )
    status.findings = judge(status, found, history, unended, limits)
    status.healthy = not status.findings
    return status


def read_keeper(nodes: Nodes[Redis], now: datetime) -> KeeperStatus:
    """The keeper's figures in Redis, and its process. Raises redis.RedisError; if one of several servers has them and does not
    answer, the keeper is not running: it needs them, too."""
    names = ("ticked_at", "job", "failure", "committed_through", "held_microseconds")
    try:
        ticked, job, failure, through, held = states.read_fields(nodes.of(keys.KEEPER), keys.KEEPER, *names)
        ticked_at, holder = moments.from_microseconds(ticked), read_holder(nodes, "keeper")
    except RedisError as error:
        if nodes.is_one:
            raise
        return KeeperStatus(
            alive=False,
            state="not running",
            ticked_at=None,
            job="",
            holder=None,
            failure=one_line(str(error)),
            committed_through=None,
            horizon_held_seconds=0.0,
        )
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


def read_drift(runs: Redis) -> dict[str, list[Proof]]:
    """The drift that the kept runs have found in each counter, the oldest first. Raises redis.RedisError."""
    proofs: dict[str, list[Proof]] = {counter.name: [] for counter in declarations.kept()}
    for run in registry.latest(runs, registry.HISTORY_RUNS):
        for name, found in run.by_counter.items():
            if name in proofs and found.verified_at is not None:
                proofs[name].append(Proof(run.id, run.mode, found.verified_at, found.missing, found.extra))
    return {name: sorted(found, key=lambda proof: proof.verified_at) for name, found in proofs.items()}


def counter_status(
    name: str, state: State, replica: ReplicaStatus, history: list[Run], broken_groups: int, days: int
) -> CounterStatus:
    """One derived counter."""
    last = next((run for run in history if name in run.counters), None)
    counter = declarations.get_counter(name)
    storage = counter.storage
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
    if counter.next_of:
        status.next_of = counter.next_of
    return status


def count_broken(nodes: Nodes[Redis]) -> dict[str, int]:
    """How many groups of each counter by group the keeper is reading again. Raises redis.RedisError."""
    return count_keys(nodes, Storage.GROUPS, "broken", sum)


def count_days(nodes: Nodes[Redis]) -> dict[str, int]:
    """How many different days each counter with last_seen has; of one with several parts, the part that has most. Raises
    redis.RedisError."""
    return count_keys(nodes, Storage.LAST_SEEN, "days", max)


def count_keys(nodes: Nodes[Redis], storage: Storage, key: str, combined: Callable[[list[int]], int]) -> dict[str, int]:
    """The lengths of this hash of the counters with this storage, in one round trip to each server. Raises redis.RedisError; if one
    of several servers does not answer, its parts are left out: their counters are cold."""
    counters = [counter for counter in declarations.kept() if counter.storage is storage]
    found: dict[str, list[int]] = {}
    for client, parts in nodes.by_client([part for each in counters for part in each.parts], keys.home_of):
        pipe = client.pipeline(transaction=False)
        for part in parts:
            pipe.hlen(getattr(keys.of_counter(part.name), key))
        try:
            replies = pipe.execute(raise_on_error=False)
        except RedisError:
            if nodes.is_one:
                raise
            continue
        for part, reply in zip(parts, replies, strict=True):
            # A key with a wrong type: its counter is cold, or becomes cold when the keeper looks at it.
            found.setdefault(part.whole, []).append(0 if isinstance(reply, Exception) else reply)
    return {name: combined(lengths) for name, lengths in found.items()}


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
                host=replica.host,
                passed_over=dict(replica.passed_over),
                months_ahead={
                    table.name: ahead
                    for table in declarations.TABLES
                    if table.ingest and (ahead := snapshot.months_ahead(table)) is not None
                },
                retiring=snapshot.retiring(),
            )
    except psycopg2.Error as error:
        return ReplicaStatus(reachable=False, detail=one_line(str(error)))
