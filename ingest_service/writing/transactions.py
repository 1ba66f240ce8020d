"""One transaction on the primary, and what its failure means: not stored, refused, or unknown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import django.db
import psycopg2
from django.conf import settings
from psycopg2.errors import CheckViolation, LockNotAvailable

from ingest_service import stores
from shared_models.deadlines import cut_after

T = TypeVar("T")

# An error that takes longer than this does not come from a dead connection.
AT_ONCE_SECONDS = 1.0
# After a primary has not answered, no request asks it for this long. Otherwise every thread would wait for the whole
# limit, one group of requests after the other, for as long as the primary is stopped.
PAUSE_SECONDS = 0.5
# Monotonic seconds. Written by any thread without a lock: the worst is that two of them try at once.
_paused_until = 0.0

# The classes of SQLSTATE about the server itself: connections, a read-only server, no resources, shutdown, its disk.
# Any other error may be about one of the rows.
OF_THE_SERVER = ("08", "25", "53", "57", "58")

# When this process last committed (monotonic seconds). Written by any thread, read by the pulse.
last_commit_at = 0.0


class TransactionFailed(Exception):
    """A transaction that is not known to be stored. `reason` is the message of Postgres or libpq."""

    says = ""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{self.says}: {reason}")
        self.reason = reason


class NotStored(TransactionFailed):
    """The primary cannot be written to at present; nothing was stored and nothing was counted."""

    says = "the primary cannot be written to at present; nothing was stored and nothing was counted"


class RowsNotStored(NotStored):
    """The primary works, but it does not store these rows at present. It may store each of them alone, or others."""


class NoPartition(NotStored):
    """The table has no partition for this moment. The pulse makes one, or says in the log why it cannot."""


class LockNotGiven(NotStored):
    """Another transaction holds a lock that this one needs, and has not released it in time."""


class CommitUnknown(TransactionFailed):
    """The connection was lost during COMMIT; it is unknown whether the rows are stored."""

    says = "the connection to the primary was lost during the commit; it is unknown whether the rows are stored"


class RefusedByDatabase(TransactionFailed):
    """The primary refuses these rows, and would again; nothing was stored."""

    says = "the database refuses the rows; nothing was stored"


class Transaction:
    """A transaction in progress. BEGIN is sent with the first statement, which saves a round trip."""

    def __init__(self, session: stores.Session) -> None:
        self.source = session.source
        self._cursor = session.raw.cursor()
        self._begin = "BEGIN; "

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows."""
        self._cursor.execute(self._begin + sql, parameters or None)
        self._begin = ""
        return self._cursor.fetchall() if self._cursor.description else []

    def copy(self, sql: str, pieces: Iterator[bytes]) -> None:
        """Run COPY … FROM STDIN over these pieces; not as the first statement.

        The next piece is made while the server works on the earlier ones. An error in making a piece is raised here.
        """
        source = Pieces(pieces)
        try:
            self._cursor.copy_expert(sql, source)  # type: ignore[arg-type]  # psycopg2 calls read, and nothing else
        except psycopg2.Error:
            if source.error is not None:  # the server's own error says only that it did not get everything
                raise source.error from None
            raise

    def commit(self) -> None:
        """Commit it. A failed transaction answers COMMIT with ROLLBACK, and no error."""
        self._cursor.execute("COMMIT")
        if self._cursor.statusmessage != "COMMIT":
            raise NotStored(f"COMMIT was answered with {self._cursor.statusmessage}")

    def roll_back(self) -> None:
        """Roll it back."""
        self._cursor.execute("ROLLBACK")


class Pieces:
    """A file as COPY needs it: COPY accepts a read that returns more than it asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            return next(self._pieces, b"")
        except Exception as error:
            self.error = error
            raise


def transact(work: Callable[[Transaction], T]) -> T:
    """Run `work` in a transaction, commit, and return its result.

    A connection that died while it was idle is replaced, and the work begins again: as long as COMMIT was not
    sent, nothing of the first attempt can be stored. Such a connection fails at once. After waiting for one without
    an answer, this does not wait again. Raises TransactionFailed, and the errors of `work`, after a rollback.
    """
    began = time.monotonic()
    if began < _paused_until:
        raise NotStored("the primary did not answer a moment ago")
    try:
        return _twice_at_most(work, began)
    except (NotStored, CommitUnknown) as error:
        # A wait for another request's lock says nothing about the primary.
        if time.monotonic() - began > AT_ONCE_SECONDS and not isinstance(error, LockNotGiven):
            _pause()
        raise


def _pause() -> None:
    """For a moment, let the other requests fail at once with the error that this one waited for."""
    global _paused_until
    _paused_until = time.monotonic() + PAUSE_SECONDS


def _twice_at_most(work: Callable[[Transaction], T], began: float) -> T:
    try:
        session = stores.open_primary()
        try:
            return _attempt(session, work)
        except psycopg2.Error:
            if not (session.reused and session.raw.closed and time.monotonic() - began < AT_ONCE_SECONDS):
                raise
        stores.close_primary()
        return _attempt(stores.open_primary(), work)
    except CheckViolation as error:
        # Not a constraint, nor a trigger that says so: the sender cannot change which partitions there are.
        if error.diag.source_function != "ExecFindPartition":
            raise RefusedByDatabase(reason_of(error)) from error
        raise NoPartition(f"{reason_of(error)}; {error.diag.message_detail or ''}") from error
    except (psycopg2.DataError, psycopg2.IntegrityError) as error:
        raise RefusedByDatabase(reason_of(error)) from error
    except LockNotAvailable as error:
        raise LockNotGiven(reason_of(error)) from error
    except (psycopg2.Error, django.db.Error) as error:
        code = getattr(error, "pgcode", None)
        if code is not None and not code.startswith(OF_THE_SERVER):
            raise RowsNotStored(reason_of(error)) from error
        # Close the connection, even if it is alive: the primary behind it may have become a replica.
        stores.close_primary()
        raise NotStored(reason_of(error)) from error


def _attempt(session: stores.Session, work: Callable[[Transaction], T]) -> T:
    if session.is_standby:
        raise NotStored("DATABASE_URL leads to a standby, and ingest does not write to it")
    with cut_after(session.raw, settings.DATABASE_ANSWER_SECONDS):
        return _committed(session, Transaction(session), work)


def _committed(session: stores.Session, transaction: Transaction, work: Callable[[Transaction], T]) -> T:
    global last_commit_at
    try:
        result = work(transaction)
    except BaseException:
        _abandon(session, transaction)
        raise
    try:
        transaction.commit()
    except psycopg2.Error as error:
        # An answer over a live connection is a refusal: nothing is stored. Without an answer it is unknown.
        if session.raw.closed or error.pgcode is None:
            stores.close_primary()
            raise CommitUnknown(reason_of(error)) from error
        raise
    except BaseException:
        stores.close_primary()
        raise
    last_commit_at = time.monotonic()
    return result


def _abandon(session: stores.Session, transaction: Transaction) -> None:
    """Roll back; if even that fails, the connection is closed, and the server rolls back."""
    if session.raw.closed:
        return
    try:
        transaction.roll_back()
    except psycopg2.Error:
        stores.close_primary()


def reason_of(error: Exception) -> str:
    """The first line of the message of Postgres or libpq. The lines after it may quote rows."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
