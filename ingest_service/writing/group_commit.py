"""Group commit: single rows that arrive at the same time share a transaction, and a round trip to Redis.

Rows wait in a queue. The one committer of a worker takes the waiting rows, and stores and counts them in its own
thread, over one connection to the primary. It gives each request its outcome, and continues while there is more. There
is no timer: the busier the worker is, the larger its groups are.

A transaction is all or nothing, but the requests of a group are not: a row that the database refuses fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import structlog

from ingest_service.catalog import Collection
from ingest_service.writing import counting, idempotency, recording
from ingest_service.writing.idempotency import Answer, RequestClaim
from ingest_service.writing.recording import Recorded, Stored
from ingest_service.writing.transactions import (
    CommitUnknown,
    LockNotGiven,
    RefusedByDatabase,
    RowsNotStored,
    Transaction,
    TransactionFailed,
    transact,
)

log = structlog.get_logger()

# The most rows that share a transaction. More would make the first row wait longer, and save hardly any work.
GROUP_ROWS = 512
# Turns of the event loop between two groups. In these turns the worker sends answers, and the next rows of the same
# clients arrive in time for the next group. This makes groups twice as large, without a timer.
TURNS_BETWEEN_GROUPS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One row to store, and the claim of its Idempotency-Key."""

    row: msgspec.Struct
    claim: RequestClaim | None


class GroupFailed(Exception):
    """The service failed before it could commit a group; nothing was stored."""


# The outcome of a request. None: another request is using its key now, and this one has to wait for it.
Outcome: TypeAlias = Recorded | Exception | None

# Stored requests, each with its answer.
Answers: TypeAlias = list[tuple[Request, Answer]]


# A request, and the future of its outcome.
Waiting: TypeAlias = "tuple[Request, asyncio.Future[Outcome]]"


class Committer:
    """Records the single rows of one worker, a group at a time. Belongs to the worker's event loop."""

    def __init__(self, pool: Executor) -> None:
        # Requests wait here while another request uses their key, and not in the committer's thread.
        self._pool = pool
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="committer")
        self._waiting: dict[Collection, list[Waiting]] = {}
        self._task: asyncio.Task[None] | None = None

    async def record(self, collection: Collection, row: msgspec.Struct, claim: RequestClaim | None) -> Recorded:
        """Record one row, together with those that arrive at the same time. Raises the errors of `recording.record`."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.setdefault(collection, []).append((Request(row, claim), outcome))
        if self._task is None:
            self._task = loop.create_task(self._commit())
        came_of_it = await outcome
        if came_of_it is None:
            return await loop.run_in_executor(self._pool, recording.record_one, collection, row, claim)
        if isinstance(came_of_it, Exception):
            raise came_of_it
        return came_of_it

    def close(self) -> None:
        """End the thread, after its present group."""
        self.thread.shutdown()

    async def _commit(self) -> None:
        """Record the waiting rows, until there are none."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                collection, group = self._next_group()
                requests = [request for request, _ in group]
                try:
                    came = await loop.run_in_executor(self.thread, record_group, collection, requests)
                except Exception:
                    # A bug in Rollcall. The transaction may have committed before it.
                    log.exception("record.error", collection=collection.name, rows=len(group))
                    came = {request: CommitUnknown("the service failed") for request in requests}
                for request, outcome in group:
                    if not outcome.done():  # otherwise the client has gone
                        outcome.set_result(came[request])
                for _ in range(TURNS_BETWEEN_GROUPS):
                    await asyncio.sleep(0)
        finally:
            self._task = None

    def _next_group(self) -> tuple[Collection, list[Waiting]]:
        """The rows of one collection that have waited longest. Its other rows come after the other collections."""
        collection = next(iter(self._waiting))
        waiting = self._waiting.pop(collection)
        if len(waiting) > GROUP_ROWS:
            self._waiting[collection] = waiting[GROUP_ROWS:]
        return collection, waiting[:GROUP_ROWS]


def record_group(
    collection: Collection, group: Sequence[Request], lock_milliseconds: int = idempotency.GROUP_LOCK_MILLISECONDS
) -> dict[Request, Outcome]:
    """Record these requests, together as far as possible; the outcome of each.

    If the primary does not store all of them, the reason may be one of the rows. If another transaction is using a
    key now, it is one of the rows with a key. So this tries the parts one after the other, until that row is alone.
    """
    try:
        return record_together(collection, group, lock_milliseconds)
    except LockNotGiven as error:
        if len(group) == 1 and group[0].claim is not None:
            return {group[0]: None}
        if len(group) == 1:
            return failed(error, group)
        keyed = [request for request in group if request.claim is not None]
        others = [request for request in group if request.claim is None]
        parts, lock_milliseconds = (
            (others, keyed) if keyed and others else halves(group),
            idempotency.RETRY_LOCK_MILLISECONDS,
        )
    except (RefusedByDatabase, RowsNotStored) as error:
        if len(group) == 1:
            return failed(error, group)
        parts = halves(group)
    except TransactionFailed as error:
        return failed(error, group)
    first, second = (record_group(collection, part, lock_milliseconds) for part in parts)
    return first | second


def halves(group: Sequence[Request]) -> tuple[Sequence[Request], Sequence[Request]]:
    """Both of a group of two or more."""
    middle = len(group) // 2
    return group[:middle], group[middle:]


def failed(error: TransactionFailed, group: Sequence[Request]) -> dict[Request, Outcome]:
    """The same outcome for all of them."""
    recording.log_failure(error, len(group))
    # An exception for each: raising one puts its traceback into it.
    return {request: type(error)(error.reason) for request in group}


def record_together(collection: Collection, group: Sequence[Request], lock_milliseconds: int) -> dict[Request, Outcome]:
    """Record these requests in one transaction, in the order of `recording.record`. Raises TransactionFailed.

    A request whose key was used before, also by an earlier one of this group, is a replay.
    """

    def work(transaction: Transaction) -> tuple[Stored, Answers, list[tuple[Request, Answer | Exception]]]:
        new, known = choose(transaction, group, lock_milliseconds)
        rows = [request.row for request in new]
        written = recording.insert(transaction, collection, rows) if rows else []
        answers: Answers = [(request, {"id": row_id}) for request, (row_id, *_) in zip(new, written, strict=True)]
        idempotency.keep_all(transaction, [(request.claim, answer) for request, answer in answers if request.claim])
        first = idempotency.read_answers(transaction, [request.claim for request in known if request.claim])
        members = counting.members_of(collection, rows, written[0][2:]) if written else {}
        stored = Stored({}, written[0][1] if written else None, transaction.source, members)
        return stored, answers, list(zip(known, first, strict=True))

    try:
        stored, answers, known = transact(work)
    except TransactionFailed:
        raise
    except Exception as error:
        log.exception("record.error", collection=collection.name, rows=len(group))
        return {request: GroupFailed(error) for request in group}
    counted = stored.xact is not None and recording.count(
        collection, stored.members, len(answers), stored.xact, stored.source
    )
    outcomes: dict[Request, Outcome] = {request: Recorded(answer, counted) for request, answer in answers}
    outcomes |= {request: error for request, error in known if isinstance(error, Exception)}
    replays = [(request, answer) for request, answer in known if not isinstance(answer, Exception)]
    if replays:
        # Looked up, not added again: the rows, and so their members, may have been removed since.
        flags = counting.are_counted(collection, [request.row for request, _ in replays])
        for (request, answer), counted in zip(replays, flags, strict=True):
            outcomes[request] = Recorded(answer, counted, replayed=True)
    return outcomes


def choose(
    transaction: Transaction, group: Sequence[Request], lock_milliseconds: int
) -> tuple[list[Request], list[Request]]:
    """The requests without a key, or with a new key, which is taken now; and the others."""
    first_of_id: dict[str, Request] = {}
    for request in group:
        if request.claim is not None:
            first_of_id.setdefault(request.claim.id, request)
    if not first_of_id:
        return list(group), []
    claims = [request.claim for request in first_of_id.values() if request.claim is not None]
    taken = idempotency.take_all(transaction, claims, lock_milliseconds)
    new = [r for r in group if r.claim is None or (r.claim.id in taken and first_of_id[r.claim.id] is r)]
    known = set(group).difference(new)
    return new, [request for request in group if request in known]
