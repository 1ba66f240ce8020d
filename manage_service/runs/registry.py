"""Runs: the reconciles that an operator or the schedule asked for. Their record, their history.

A run is one JSON document in one Redis hash, with another field by which other processes ask it to stop. The holder of
its lease writes the document, and everybody reads it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from secrets import token_hex
from typing import Literal, TypeAlias, cast

import msgspec
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError

from manage_service.protocol.findings import Findings, together
from manage_service.protocol.progress import Progress
from shared_models.declarations import get_counter, whole_of
from shared_models.protocol import keys

# How many runs are kept, and for how long; an open run is never removed.
HISTORY_SECONDS = 30 * 24 * 3600
HISTORY_RUNS = 500
# The most runs that may be queued or running: the keeper reads all of them between two jobs.
MOST_OPEN = 100
# How many counters of a run are named in a sentence.
MOST_NAMED = 5
# Instead of an id: the newest run.
LAST = "last"


class UnknownRun(LookupError):
    """There is no run of that id, or it is no longer in the history."""


class TooManyRuns(Exception):
    """Too many runs have not ended, so a new one is refused."""

    def __init__(self) -> None:
        super().__init__(f"{MOST_OPEN} runs are queued or running already, which is the limit; wait, or cancel some")


class Mode(StrEnum):
    """Whether a run repairs what it finds."""

    REPAIR = "repair"
    CHECK = "check"


class Status(StrEnum):
    """The states of a run; the last three are its ENDS."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


AskedBy: TypeAlias = Literal["api", "cli", "schedule"]
ENDS = (Status.DONE, Status.FAILED, Status.CANCELLED)


class Run(msgspec.Struct):
    """One reconcile that somebody asked for. Moments are aware datetimes, UTC."""

    id: str
    counters: list[str]
    mode: Mode
    asked_at: datetime
    asked_by: AskedBy
    status: Status = Status.QUEUED
    detail: str = ""  # why it failed, or what it is waiting for
    started_at: datetime | None = None
    finished_at: datetime | None = None
    counter: str = ""  # the present one
    phase: str = ""
    read: int = 0
    expected: int = 0
    phase_started_at: datetime | None = None
    findings: dict[str, Findings] = {}  # by part
    asked_to_stop: bool = False  # from the field next to the document, at every reading

    @property
    def open(self) -> bool:
        """Queued or running."""
        return self.status in (Status.QUEUED, Status.RUNNING)

    @property
    def drifted(self) -> bool:
        """Whether any drift was found."""
        return any(found.missing or found.extra for found in self.findings.values())

    @property
    def by_counter(self) -> dict[str, Findings]:
        """Its findings so far, by derived counter."""
        parts: dict[str, list[Findings]] = {}
        for name, found in self.findings.items():
            parts.setdefault(whole_of(name), []).append(found)
        return {name: together(found) for name, found in parts.items()}

    @property
    def counters_in_words(self) -> str:
        """Its counters, and not each of their groupings: "users with 3 groupings, cities"."""
        said = []
        for name in self.counters:
            total, colon, _ = name.partition(":")
            groupings = sum(each.startswith(f"{name}:") for each in self.counters)
            if not groupings:
                said += [name] if not colon or total not in self.counters else []
            else:
                said.append(f"{name} with {groupings} grouping{'s' * (groupings > 1)}")
        if len(said) > MOST_NAMED:
            said[MOST_NAMED - 1 :] = [f"and {len(said) - MOST_NAMED + 1} more"]
        return ", ".join(said)

    def failures(self) -> str:
        """The counters that could not be reconciled, and why, in one line; empty if all could."""
        failed = {name: found.failure for name, found in self.by_counter.items() if found.failure}
        return "; ".join(reason if len(self.counters) == 1 else f"{name}: {reason}" for name, reason in failed.items())

    def note(self, counter: str, progress: Progress) -> None:
        """Note where the run is now."""
        if (counter, progress.phase) != (self.counter, self.phase):
            self.counter, self.phase, self.phase_started_at = counter, progress.phase, datetime.now(UTC)
        self.read, self.expected, self.detail = progress.read, progress.expected, progress.waiting

    def end(self, status: Status, detail: str = "") -> None:
        """Note its end."""
        self.status, self.detail, self.finished_at = status, detail, datetime.now(UTC)

    def eta_seconds(self) -> float | None:
        """How many seconds this phase of this counter will still take, at its speed so far; None if not known."""
        if self.status is not Status.RUNNING or not self.read or self.phase_started_at is None:
            return None
        elapsed = (datetime.now(UTC) - self.phase_started_at).total_seconds()
        return round(elapsed / self.read * max(0, self.expected - self.read), 1)


_run = msgspec.json.Decoder(Run)


def create(redis: Redis, counters: Sequence[str], mode: Mode, asked_by: AskedBy) -> Run:
    """Ask for a run; if the same one is queued already, returns that one. `redis` must be able to open two connections.

    A run that has begun is not the same: it may already have passed what the caller wants to check. Raises
    UnknownCounter for a name that is not declared, or TooManyRuns, before it writes anything.
    """
    names = [get_counter(name).name for name in dict.fromkeys(counters)]
    run = Run(id=token_hex(6), counters=names, mode=mode, asked_at=datetime.now(UTC), asked_by=asked_by)
    with redis.pipeline(transaction=True) as pipe:
        while True:
            # If two processes ask at once, one of them finds that the list has changed, and looks again.
            pipe.watch(keys.RUNS_OPEN)
            unended = still_open(redis)
            for other in unended:
                same = (other.mode, set(other.counters)) == (mode, set(names))
                if same and other.status is Status.QUEUED and not other.asked_to_stop:
                    return other
            if len(unended) >= MOST_OPEN:
                raise TooManyRuns
            pipe.multi()
            queue_new(pipe, run)
            with suppress(WatchError):
                pipe.execute()
                return run


def queue_new(pipe: Pipeline, run: Run) -> None:
    """Queue the commands that write a new run."""
    pipe.hset(keys.of_run(run.id), "document", msgspec.json.encode(run))
    pipe.expire(keys.of_run(run.id), HISTORY_SECONDS)
    pipe.zadd(keys.RUNS, {run.id: time.time()})
    pipe.zremrangebyrank(keys.RUNS, 0, -HISTORY_RUNS - 1)
    pipe.rpush(keys.RUNS_OPEN, run.id)


def get(redis: Redis, run_id: str) -> Run:
    """The run of that id, or the newest one for "last". Raises UnknownRun."""
    if run_id == LAST:
        for run in latest(redis, 1):
            return run
        raise UnknownRun("there is no run yet; ask for one with POST /v1/runs")
    document, cancel = redis.hmget(keys.of_run(run_id), "document", "cancel")
    if document is None:
        raise UnknownRun(f"there is no run {run_id!r}; the last {HISTORY_RUNS} are kept for 30 days")
    return _decoded(document, cancel)


def get_open(redis: Redis, run_id: str) -> Run | None:
    """The run of that id, if it has not ended."""
    return next((run for run in _found(redis, [run_id.encode()]) if run.open), None)


def latest(redis: Redis, most: int) -> list[Run]:
    """The last runs, the newest first."""
    return list(_found(redis, cast("list[bytes]", redis.zrevrange(keys.RUNS, 0, most - 1))))


def still_open(redis: Redis) -> list[Run]:
    """The runs that have not ended, in the order in which they were asked for."""
    return [run for run in _found(redis, cast("list[bytes]", redis.lrange(keys.RUNS_OPEN, 0, -1))) if run.open]


def _found(redis: Redis, ids: Iterable[bytes]) -> Iterator[Run]:
    pipe = redis.pipeline(transaction=False)
    for run_id in ids:
        pipe.hmget(keys.of_run(run_id.decode()), "document", "cancel")
    return (_decoded(document, cancel) for document, cancel in pipe.execute() if document is not None)


def _decoded(document: bytes | str, cancel: bytes | str | None) -> Run:
    run = _run.decode(document)
    run.asked_to_stop = cancel is not None
    return run


def save(redis: Redis, run: Run) -> None:
    """Write the document; only the holder of the run's lease calls this. A run that has ended is no longer open."""
    pipe = redis.pipeline(transaction=True)
    pipe.hset(keys.of_run(run.id), "document", msgspec.json.encode(run))
    pipe.expire(keys.of_run(run.id), HISTORY_SECONDS)
    if not run.open:
        pipe.lrem(keys.RUNS_OPEN, 0, run.id)
    pipe.execute()


def request_cancel(redis: Redis, run_id: str) -> Run:
    """Ask a run to stop; its executor stops after its current step. Raises UnknownRun."""
    run = get(redis, run_id)
    if run.open:
        redis.hset(keys.of_run(run.id), "cancel", 1)
        run.asked_to_stop = True
    return run


def cancel_requested(redis: Redis, run_id: str) -> bool:
    """Whether somebody has asked this run to stop."""
    return bool(redis.hexists(keys.of_run(run_id), "cancel"))
