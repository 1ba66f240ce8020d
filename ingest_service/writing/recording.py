"""The write path: ingest commits rows on the primary first, and counts their members in Redis after that.

The promises depend on this order. Catch-up finds a row without its member within seconds; a member without its row would
be a wrong count that catch-up cannot find. So ingest does not touch Redis before the commit, and a failure of Redis never
changes whether a request is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import Any, TypeAlias

import msgspec
import structlog

from ingest_service import metrics
from ingest_service.catalog import Collection
from ingest_service.writing import counting
from ingest_service.writing.idempotency import Answer, Claim
from ingest_service.writing.transactions import RefusedByDatabase, Transaction, TransactionFailed, transact
from shared_models.protocol.steps import chunks

log = structlog.get_logger()

Rows = Sequence[msgspec.Struct]
# The xact of a transaction's rows, and then their days (`Collection.times`).
Own: TypeAlias = "list[Any]"

# How many rows COPY gets at a time: the server begins with the first while the next are being written.
COPY_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Recorded:
    """The answer. `counted`: at this moment, every member of the request is in its set."""

    answer: Answer
    counted: bool
    # The request was carried out before; this is the first answer.
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """What a committed transaction has left: an answer, the xact of the rows (None if it was a replay), their elements."""

    answer: Answer
    xact: int | None
    source: str
    members: counting.Members = field(default_factory=dict)


def record_one(collection: Collection, row: msgspec.Struct, claim: Claim | None = None) -> Recorded:
    """Record one row; the answer is its id. Raises the errors of `record`."""

    def write(transaction: Transaction) -> tuple[Answer, Own]:
        ((row_id, *own),) = insert(transaction, collection, [row])
        return {"id": row_id}, own

    return record(collection, [row], write, partial(counting.members_of, collection, [row]), claim)


def record_batch(collection: Collection, rows: Rows, answer: Answer, claim: Claim | None = None) -> Recorded:
    """Record rows, all or none of them, to be answered with `answer`. Raises the errors of `record`."""

    members = cache(partial(counting.members_of, collection, rows))

    def pieces(days: tuple[str, ...]) -> Iterator[bytes]:
        for some in chunks(rows, COPY_ROWS):
            yield as_copy_lines(some) + b"\n"
        # All rows are sent, and the server still works on most of them. Done later, this would delay the commit.
        members(days)

    def write(transaction: Transaction) -> tuple[Answer, Own]:
        # The xact first: a COPY cannot be a transaction's first statement here, and returns nothing.
        ((xact, *days),) = transaction.execute(collection.own_sql)
        if rows:
            transaction.copy(collection.copy_sql, pieces(tuple(days)))
        return answer, [xact, *days]

    if not rows and claim is None:
        return Recorded(answer, counted=True)
    return record(collection, rows, write, members, claim)


def record(
    collection: Collection,
    rows: Rows,
    write: Callable[[Transaction], tuple[Answer, Own]],
    members: Callable[[tuple[str, ...]], counting.Members],
    claim: Claim | None,
) -> Recorded:
    """Store the rows by `write`, which gives the answer, the xact and the days; then count their `members`.

    1. In one transaction: take the claim, if there is one (if it was taken before, there is nothing to store); write
       the rows; store the answer with the claim; make the members, so that rows without valid members are not
       stored; commit. From here on they are acknowledged.
    2. Only now, in one round trip to Redis, and in one atomic step for each counter: add the members, remove their
       marks, raise the watermark to the xact. If that fails, catch-up does it.

    Raises TransactionFailed, or the errors of the claim; then nothing was counted.
    """

    def work(transaction: Transaction) -> Stored:
        if claim is not None and not claim.take(transaction):
            return Stored(claim.read_answer(transaction), None, transaction.source)
        answer, (xact, *days) = write(transaction)
        if claim is not None:
            claim.keep(transaction, answer)
        return Stored(answer, xact, transaction.source, members(tuple(days)))

    try:
        stored = transact(work)
    except TransactionFailed as error:
        log_failure(error, len(rows))
        raise
    if stored.xact is None:
        # Looked up, not added again: the rows may have been deleted since, and their members with them.
        return Recorded(stored.answer, all(counting.are_counted(collection, rows)), replayed=True)
    return Recorded(stored.answer, count(collection, stored.members, len(rows), stored.xact, stored.source))


def count(collection: Collection, members: counting.Members, rows: int, xact: int, source: str) -> bool:
    """Count the members of these committed rows, and the rows for the metrics; whether all members are counted now."""
    metrics.ROWS.labels(collection.name).inc(rows)
    metrics.COMMIT_ROWS.labels(collection.name).observe(rows)
    counted = counting.count(collection, members, rows, xact, source)
    if not counted:
        metrics.UNCOUNTED_ROWS.labels(collection.name).inc(rows)
    return counted


def log_failure(error: TransactionFailed, rows: int) -> None:
    """Log a failure that an operator has to look at. Rows that the database refuses are their sender's fault, and are
    not logged."""
    if not isinstance(error, RefusedByDatabase):
        log.error("record.failed", type=type(error).__name__, reason=error.reason, rows=rows)


def insert(transaction: Transaction, collection: Collection, rows: Rows) -> list[tuple[Any, ...]]:
    """INSERT a few rows; the id, the xact and the days (`Collection.times`) of each, in their order."""
    start, values, end = collection.insert_sql
    sql = start + ", ".join([values] * len(rows)) + end
    return transaction.execute(sql, *chain.from_iterable(map(msgspec.structs.astuple, rows)))


def as_copy_lines(rows: Rows) -> bytes:
    """The rows, at least one, in COPY's text format: a tab between values, a line for each row."""
    values = list(map(msgspec.structs.astuple, rows))
    if not all(isinstance(value, str) for value in values[0]):  # all rows have the type of the first one
        values = [tuple(map(str, row)) for row in values]
    lines = list(map("\t".join, values))
    text = "\n".join(lines)
    tabs, newlines = sum(map(len, values)) - len(values), len(lines) - 1
    # COPY treats four characters specially. Most rows have none of them: then only our own separators are there.
    if "\\" in text or "\r" in text or text.count("\t") != tabs or text.count("\n") != newlines:
        text = "\n".join(map(escape, values))
    return text.encode()


def escape(values: tuple[str, ...]) -> str:
    """One line, with the special characters written as COPY reads them. No value holds U+0000, which was refused."""
    joined = "\0".join(values)
    joined = joined.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return joined.replace("\0", "\t")
