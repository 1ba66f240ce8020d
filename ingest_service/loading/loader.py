"""Loads a file into a table, through the same code as requests, and each row once only.

A receipt says how far a load has come. The transaction that stores rows also moves the receipt. So a load that
was interrupted at any point continues after the last stored row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ingest_service.api import payloads
from ingest_service.api.payloads import RowError
from ingest_service.catalog import Collection
from ingest_service.loading.sources import Source, Texts
from ingest_service.writing.idempotency import Answer
from ingest_service.writing.recording import record_batch
from ingest_service.writing.transactions import Transaction, transact

# A batch ends here, too, so that memory does not depend on how long the rows are.
BATCH_BYTES = 16 << 20


class LoadStopped(Exception):
    """The load cannot continue; rows that were stored before stay stored. The message says why and what to do."""


@dataclass(slots=True)
class Progress:
    """The progress of a load: numbers of rows, and `read_bytes` of the file."""

    stored: int = 0
    rejected: int = 0
    uncounted: int = 0
    skipped: int = 0
    read_bytes: int = 0


@dataclass(slots=True)
class FileClaim:
    """How far a file has been loaded: the number of its texts, and the hash of all of them."""

    key: str
    found: str  # the hash in the receipt when it was last read; "" if there was none
    digest: str
    texts: int

    def take(self, transaction: Transaction) -> bool:
        """Move the receipt to here, in the transaction of the rows, unless another process has moved it meanwhile."""
        moved = transaction.execute(
            """INSERT INTO receipt (key, fingerprint, answer) VALUES (%s, %s, %s)
               ON CONFLICT (key) DO UPDATE
               SET fingerprint = excluded.fingerprint, answer = excluded.answer, create_time = now()
               WHERE receipt.fingerprint = %s RETURNING true""",
            self.key,
            self.digest,
            str(self.texts),
            self.found,
        )
        if not moved:
            raise LoadStopped("another process is also loading this file; let one of them finish")
        return True

    def keep(self, transaction: Transaction, answer: Answer) -> None:
        """Do nothing: `take` has written everything."""

    def read_answer(self, transaction: Transaction) -> Answer:
        """Never called: `take` is true, or raises."""
        return {}


def load(
    collection: Collection,
    source: Source,
    batch_rows: int,
    *,
    resume: bool,
    strict: bool,
    on_error: Callable[[RowError], None],
    on_progress: Callable[[Progress], None],
) -> Progress:
    """Store every valid row of the source, in batches; the result.

    `on_error` gets the rows that are not valid. `strict` stops at the first one, and does not store its batch.
    `resume` continues after the rows that an earlier load of this file has stored. Raises LoadStopped, Unreadable, and
    the errors of `record_batch`.
    """
    progress = Progress()
    key = f"\x01load:{hashlib.sha256(f'{collection.name} {source.name}'.encode()).hexdigest()}"
    found, done = read_receipt(key)
    digest = hashlib.sha256()
    if resume and done:
        for _ in range(done):
            digest.update(next(source.texts, (0, b""))[1])
        if digest.hexdigest() != found:
            raise LoadStopped(
                f"the file does not begin with the {done:,} rows that were loaded from it: it is another one, "
                "or has been changed; without --resume it is loaded from the start"
            )
        progress.skipped = done
    else:
        done = 0
    for batch in batches(source.texts, batch_rows):
        read = payloads.read_rows(collection, batch, batch_rows)
        progress.rejected += len(read.errors)
        for error in read.errors:
            on_error(error)
        if strict and read.errors:
            raise LoadStopped(f"stopped at line {read.errors[0].line}; its batch was not stored")
        for _, text in batch:
            digest.update(text)
        done += len(batch)
        claim = FileClaim(key, found, digest.hexdigest(), done)
        recorded = record_batch(collection, read.rows, {}, claim)
        found = claim.digest
        progress.stored += len(read.rows)
        progress.uncounted += 0 if recorded.counted else len(read.rows)
        progress.read_bytes = source.position()
        on_progress(progress)
    return progress


def read_receipt(key: str) -> tuple[str, int]:
    """The hash and the number of texts that were loaded; "" and 0 if there is no receipt."""
    found = transact(
        lambda transaction: transaction.execute("SELECT fingerprint, answer FROM receipt WHERE key = %s", key)
    )
    return (found[0][0], int(found[0][1])) if found else ("", 0)


def batches(texts: Texts, batch_rows: int) -> Iterator[list[tuple[int, bytes]]]:
    """The texts in lists of `batch_rows`, or of BATCH_BYTES if they are long."""
    batch: list[tuple[int, bytes]] = []
    size = 0
    for numbered in texts:
        batch.append(numbered)
        size += len(numbered[1])
        if len(batch) >= batch_rows or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
