"""Group commit: single rows that come at the same time share a transaction, and a round trip to Redis.

A row that comes alone is recorded at once, in its own thread. Rows that come while others are being committed and
counted gather; when those are done, the first of the gathered leads all of them. So nobody waits for a timer, and
the busier the worker is, the larger are its groups.

A group is all or nothing, its requests are not: where the database refuses something, each request is recorded alone,
in its own thread, as if there were no groups. The same goes for whatever a group has no answer for (see `record_group`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any, TypeAlias

import msgspec
import structlog

from ingest_service.catalog import Collection
from ingest_service.writing import counting, idempotency, recording
from ingest_service.writing.idempotency import Claim
from ingest_service.writing.recording import Recorded, Stored
from ingest_service.writing.transactions import CommitUnknown, NotStored, RefusedByDatabase, Transaction, transact

log = structlog.get_logger()

# A leader ends in any case: its waits for the primary and for Redis have limits. Should one hang all the same, its
# followers go on without it after this long, which is longer than two attempts at the primary take.
GIVE_UP_SECONDS = 60.0


def _held() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, eq=False)
class Request:
    """One row on its way. It belongs to one thread at a time: its own, or its leader's until `woken` is released."""

    row: msgspec.Struct
    claim: Claim | None
    # What came of it; None: it has to be recorded alone.
    outcome: Recorded | NotStored | CommitUnknown | None = None
    # The group that it is to lead, with itself in front.
    group: list[Request] | None = None
    woken: Lock = field(default_factory=_held)


# Requests that have been stored, each with what it is answered.
Answers: TypeAlias = list[tuple[Request, Mapping[str, Any]]]


class Line:
    """Where the single rows of one collection gather, in one worker."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._lock = Lock()  # held for a few lines only
        self._busy = False  # somebody leads
        self._waiting: list[Request] = []

    def record(self, row: msgspec.Struct, claim: Claim | None) -> Recorded:
        """Record one row, in company or alone. Raises what `recording.record` raises."""
        request = Request(row, claim)
        with self._lock:
            if self._busy:
                self._waiting.append(request)
            else:
                self._busy, request.group = True, [request]
        if request.group is None:
            self._wait(request)
        if request.group is not None:
            self._lead(request.group)
        if isinstance(request.outcome, Recorded):
            return request.outcome
        if request.outcome is not None:
            raise request.outcome
        return recording.record_one(self._collection, row, claim)

    def _wait(self, request: Request) -> None:
        """Return when there is an outcome, or a group to lead."""
        if request.woken.acquire(timeout=GIVE_UP_SECONDS):
            return
        with self._lock:
            if request in self._waiting:
                self._waiting.remove(request)  # nobody has begun with it: it may go alone
            elif request.group is None:
                request.outcome = CommitUnknown("the request that leads its group does not end")

    def _lead(self, group: list[Request]) -> None:
        """Carry the group out, pass the lead on, wake the others."""
        try:
            if len(group) > 1:
                record_group(self._collection, group)
            else:
                # Here and not after the lead has been passed on, so that others gather behind it.
                group[0].outcome = recording.record_one(self._collection, group[0].row, group[0].claim)
        except BaseException:
            # A fault of ours: the leader's own request shows it. The transaction may have been committed.
            for request in group[1:]:
                request.outcome = CommitUnknown("the request that led its group failed")
            raise
        finally:
            with self._lock:
                gathered, self._waiting = self._waiting, []
                self._busy = bool(gathered)
                if gathered:
                    gathered[0].group = gathered
            if gathered:
                gathered[0].woken.release()
            for request in group[1:]:
                request.woken.release()


@cache
def line_of(collection: Collection) -> Line:
    """The line of a collection. A collection that is derived anew, for other counters, has another one."""
    return Line(collection)


def record_group(collection: Collection, group: list[Request]) -> None:
    """Record what can be recorded together, and give each request of the group its outcome.

    The order is that of `recording.record`, with one transaction and one xact for all. Left without an outcome, to
    be recorded alone, are:

    - all, where the database refuses: one of the rows is bad, and its neighbours have nothing to do with it;
    - a request whose Idempotency-Key has been used before, also by an earlier one of this group: it is a replay;
    - all, where a key is just being used by another transaction: to wait for that one is the affair of one request
      and not of the group, hence `idempotency.take_all` waits for a moment only.
    """

    def work(transaction: Transaction) -> tuple[Stored, Answers]:
        chosen = choose(transaction, group)
        rows = [request.row for request in chosen]
        written = recording.insert(transaction, collection, rows) if rows else []
        answers: Answers = [(request, {"id": row_id}) for request, (row_id, _) in zip(chosen, written, strict=True)]
        idempotency.keep_all(transaction, [(request.claim, answer) for request, answer in answers if request.claim])
        members = counting.members_of(collection, rows)
        return Stored({}, written[0][1] if written else None, transaction.source, members), answers

    try:
        stored, answers = transact(work)
    except (NotStored, CommitUnknown) as error:
        if isinstance(error, NotStored) and error.answered:
            return
        log.error("record.failed", type=error.slug, reason=error.reason, rows=len(group))
        for request in group:
            request.outcome = type(error)(error.reason)
        return
    except RefusedByDatabase:
        return
    if stored.xact is not None:
        counted = recording.count(collection, stored.members, len(answers), stored.xact, stored.source)
        for request, answer in answers:
            request.outcome = Recorded(answer, counted)


def choose(transaction: Transaction, group: list[Request]) -> list[Request]:
    """Those of the group that have no key, or a key that nobody has used before; the keys are taken."""
    first_of_id: dict[str, Request] = {}
    for request in group:
        if request.claim is not None:
            first_of_id.setdefault(request.claim.id, request)
    if not first_of_id:
        return group
    taken = idempotency.take_all(transaction, [r.claim for r in first_of_id.values() if r.claim is not None])
    return [r for r in group if r.claim is None or (r.claim.id in taken and first_of_id[r.claim.id] is r)]
