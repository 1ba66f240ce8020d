"""Executes a run: its counters one after the other, with its lease, record, limits and cancelling.

The same function serves the keeper (a step now and then) and the command line (all steps at once).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import psycopg2
import structlog
from psycopg2.errors import QueryCanceled
from redis import Redis
from redis.exceptions import RedisError

from manage_service.leases import Lease
from manage_service.protocol.bucket_filter import BucketFilter
from manage_service.protocol.findings import Findings
from manage_service.protocol.freshness import CounterWasLost
from manage_service.protocol.in_step import in_step
from manage_service.protocol.progress import Progress, Steps
from manage_service.protocol.reconcile import reconcile
from manage_service.replica.snapshots import REFUSALS, STATEMENT_SECONDS, Replica
from manage_service.runs import registry, totals
from manage_service.runs.registry import Mode, Run, Status
from shared_models.declarations import Counter, UnknownCounter, get_counter, whole_of
from shared_models.nodes import Nodes
from shared_models.protocol import keys
from shared_models.protocol.steps import SetChanged, TooManyGroups

log = structlog.get_logger()

# A cold cache may make one chunk slow; the next attempt finds it warm.
MOST_TIMEOUTS = 3


class WaitedTooLong(Exception):
    """The replica did not show in time what a run needs. The message says how far it was."""


class TooSlow(Exception):
    """A statement that takes milliseconds timed out several times: waiting will not help."""

    def __init__(self, name: str, said: str) -> None:
        fields = ", ".join(term.name for term in get_counter(name).terms)
        super().__init__(
            f"reading the table of {name} takes longer than {STATEMENT_SECONDS:g} s a chunk ({said}): "
            f"check whether its index on ({fields}) exists and valid, and whether the replica's disk is overloaded"
        )


class Cancelled(Exception):
    """Somebody asked the run to stop."""


def execute(
    run: Run,
    replica: Replica,
    nodes: Nodes[Redis],
    *,
    wait_seconds: float,
    filters: dict[str, BucketFilter] | None = None,
) -> Steps:
    """Execute the run to its end, or continue it after a crash. The caller holds its lease.

    If a part of a counter cannot be reconciled, its findings say why, and the run continues with the others. At the end
    the run has failed, and says so in `detail`. It waits `wait_seconds` for a replica that does not answer, or lags.
    After one wait without success, it waits a tenth of that at each other counter. It does not wait for a replica that
    refuses (no such table, no right to read it). If the server of the runs fails (redis.RedisError) or the lease is lost
    (leases.LeaseLost), that is raised and leaves the run open: the next process that takes its lease continues it.
    `filters` is for the part of this process that resolves departures: see `reconcile`. `nodes` must be those of
    `stores.nodes_for_passes`.
    """
    if run.status is Status.QUEUED:
        run.status, run.started_at = Status.RUNNING, datetime.now(UTC)
        save(nodes, run)
        log.info("run.started", run=run.id, counters=run.counters, mode=run.mode, asked_by=run.asked_by)
    filters = {} if filters is None else filters
    try:
        for name in run.counters:
            check_cancelled(nodes, run)
            try:
                yield from one_counter(run, name, replica, nodes, wait_seconds, filters)
            except UnknownCounter as error:
                run.findings.setdefault(name, Findings()).failure = str(error)
            except WaitedTooLong as error:
                # Usually the replica fails, and so do all counters. But it may be this counter alone; that is not known
                # yet.
                for findings in unended(run, name).values():
                    findings.failure = str(error)
                wait_seconds /= 10
        failures = run.failures()
        run.end(Status.FAILED if failures else Status.DONE, failures)
    except Cancelled:
        run.end(Status.CANCELLED)
    save(nodes, run)
    totals.note_run(nodes.of(keys.TOTALS), run)
    found = {name: {"missing": f.missing, "extra": f.extra} for name, f in run.by_counter.items()}
    log.info("run.ended", run=run.id, status=run.status, detail=run.detail, drift=found)


def unended(run: Run, name: str) -> dict[Counter, Findings]:
    """The parts of a counter that the run has neither verified nor failed to reconcile, with what it has found in each."""
    found: dict[Counter, Findings] = {}
    for part in get_counter(name).parts:
        before = run.findings.get(part.name)
        found[part] = before if before and before.definition == part.definition else Findings(part.definition)
    # `next_shards` may have become `shards` since the run began: what it has found in parts of before says nothing.
    run.findings = {each: of for each, of in run.findings.items() if whole_of(each) != name}
    run.findings |= {part.name: of for part, of in found.items()}
    return {part: each for part, each in found.items() if each.verified_at is None and not each.failure}


def one_counter(
    run: Run, name: str, replica: Replica, nodes: Nodes[Redis], wait_seconds: float, filters: dict[str, BucketFilter]
) -> Steps:
    """Reconcile the parts of one counter, in step. It saves the record after each step, and checks the limits between two steps.

    Raises WaitedTooLong, UnknownCounter."""
    parts = unended(run, name)
    if not parts:
        return
    lease = Lease(nodes, f"reconcile:{name}")
    waiting_since: float | None = None

    def failed(part: str, error: Exception) -> None:
        if isinstance(error, (TooSlow, CounterWasLost, SetChanged, TooManyGroups)):
            run.findings[part].failure = str(error)
        elif isinstance(error, REFUSALS):
            run.findings[part].failure = first_line(error)
        elif isinstance(error, RedisError) and not nodes.is_one:
            run.findings[part].failure = f"its server failed: {error}"
        else:
            raise error

    try:
        while not lease.acquire():
            check_cancelled(nodes, run)
            yield noted(run, name, nodes, Progress("queued", waiting="another run is reconciling this counter"))
        reconciling = {
            part.name: persistent(part, findings, replica, nodes, repair=run.mode is Mode.REPAIR, filters=filters)
            for part, findings in parts.items()
        }
        for progress in in_step(reconciling, replica, failed, lease.renew):
            # Before the record: a process that was stopped until another one has ended the run writes nothing.
            lease.renew()
            yield noted(run, name, nodes, progress)
            check_cancelled(nodes, run)
            if not progress.waiting:
                waiting_since = None
            elif waiting_since is None:
                waiting_since = time.monotonic()
            elif time.monotonic() - waiting_since > wait_seconds:
                raise WaitedTooLong(f"waited {wait_seconds:g} s for the replica: {progress.waiting}")
    finally:
        try:
            lease.release()
        except RedisError:
            pass  # it expires


def persistent(
    part: Counter,
    findings: Findings,
    replica: Replica,
    nodes: Nodes[Redis],
    *,
    repair: bool,
    filters: dict[str, BucketFilter],
) -> Steps:
    """`reconcile`, continued from its findings when the replica fails: it restarted, or it cancelled a chunk because its
    snapshot blocked the replay (a recovery conflict). Raises TooSlow if the same statement times out again and
    again."""
    timeouts, read_before = 0, -1
    redis = nodes.of(keys.home_of(part))
    while True:
        try:
            return (yield from reconcile(part, findings, replica, redis, repair=repair, filters=filters))
        except REFUSALS:
            raise
        except QueryCanceled as error:
            timeouts = timeouts + 1 if findings.read == read_before else 1
            if timeouts == MOST_TIMEOUTS:
                raise TooSlow(part.whole, first_line(error)) from error
            reason = first_line(error)
        except psycopg2.Error as error:
            reason = first_line(error)
        read_before = findings.read
        yield Progress("waiting", findings.read, waiting=reason)


def first_line(error: Exception) -> str:
    """Postgres' message, without the lines that may quote rows."""
    return str(error).strip().partition("\n")[0]


def noted(run: Run, name: str, nodes: Nodes[Redis], progress: Progress) -> Progress:
    """Save where the run is. A process that continues it holds the position against the history of Redis: see `reconcile`."""
    run.note(name, progress)
    save(nodes, run)
    return progress


def save(nodes: Nodes[Redis], run: Run) -> None:
    registry.save(nodes.of(keys.RUNS), run)


def check_cancelled(nodes: Nodes[Redis], run: Run) -> None:
    """Raises Cancelled if somebody asked to cancel the run."""
    if registry.cancel_requested(nodes.of(keys.RUNS), run.id):
        raise Cancelled
