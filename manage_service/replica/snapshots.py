"""All SQL of manage: what is read from the replica, and what each read proves.

Every read happens in a `Snapshot`: one repeatable-read transaction, short, which knows from the start

    source             which history of which database it shows ("system identifier/timeline")
    lsn                how far the replica had replayed before it: it shows everything up to there
    committed_through  it shows every row that the primary committed before this moment (the primary's clock)
    horizon            it shows every row of a transaction with a lower xact
    xmax               it knows of no transaction with this xact or a higher one
    held               a transaction is open at the horizon: others that came later may have ended
    behind_bytes       log that the replica had received and not replayed

Why it can be believed, where it is one of a table:

1. The table is locked before the snapshot is taken. ALTER TABLE … TYPE, or TRUNCATE and a reload, put a new file in the
   table's place. A snapshot from before their commit, which then waits for the table, reads the new file as empty.
2. No crash takes back what it shows, or lets a transaction have an xact below its horizon once more. A replica
   shows only what is on the disk of its primary, which sends nothing else. A primary that is read itself also shows commits
   that are not on its disk yet (`synchronous_commit = off`, and whoever took an xact and wrote no row). So its log is
   flushed before anything is read: each ended transaction has left its xact in the log before it could be seen to have ended.
3. Row-level security is an error (`row_security = off`), not a table with fewer rows.

A replica that crashes may come back *earlier* than it was: two snapshots in a row need not be in order. Whoever
combines several of them compares these facts (see `building` and `sweeping`).
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import psycopg2
from django.db import models
from psycopg2 import sql
from psycopg2.errors import LockNotAvailable, QueryCanceled
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TransactionRollbackError
from psycopg2.extensions import connection as Connection

from shared_models.deadlines import cut_after
from shared_models.declarations import Counter
from shared_models.protocol.members import Values
from shared_models.protocol.timeline import RECEIVED_SQL, SOURCE_SQL

# One statement reads at most this many index entries: about 10 ms where the index is in memory.
CHUNK_ROWS = 50_000
# One statement of jumps returns at most this many members: 5 to 7 µs each.
CHUNK_JUMPS = 5_000
# From so many rows a member on, jumping from one value to the next beats reading every row's index entry.
# Measured on 2 million rows: a jump costs what 30 to 40 entries of an index-only scan cost.
JUMP_FROM_ROWS_PER_MEMBER = 40

# A chunk takes milliseconds. What takes longer than this is a disk that hangs, or an index that is gone. Whoever asks holds
# leases, and renews them between two statements: see leases.LEASE_SECONDS.
STATEMENT_SECONDS = 6.0
# Each statement here has an index made for it. Without statistics (a table just loaded) the planner may prefer to hash
# or sort the whole table for a chunk, so the ways of doing that are priced out.
OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": f"{STATEMENT_SECONDS:g}s",
        "lock_timeout": "200ms",  # who cannot have a table waits for that table alone, and not here
        # A table that hides rows is an error, and not a table with fewer rows: a sweep would take out the hidden members.
        "row_security": "off",
        "idle_in_transaction_session_timeout": "60s",  # a keeper that hangs must not hold back vacuum
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "max_parallel_workers_per_gather": "0",
        "jit": "off",
    }.items()
)
# Postgres refuses (no such table, no right to read it, a broken index), and will again. Whatever else it raises has to do with
# its being away, or busy.
REFUSALS = (psycopg2.ProgrammingError, psycopg2.InternalError)
# The time until a host that does not answer is given up, and until one that went away in the middle is noticed.
CONNECT_SECONDS = 3
SILENCE_MILLISECONDS = 10_000
# A server that is stopped keeps no statement_timeout: an answer that is not there by then will not come.
ANSWER_SECONDS = STATEMENT_SECONDS + 1.0

STANDPOINT = f"""
    SELECT {SOURCE_SQL},
           (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END
            - '0/0')::bigint,
           CASE WHEN pg_is_in_recovery()
                THEN greatest(pg_last_xact_replay_timestamp(), (SELECT checkpoint_time FROM pg_control_checkpoint()))
                ELSE clock_timestamp() END,
           coalesce(greatest(pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn(), 0), 0)::bigint
"""
# Made by compose/postgres/roles.sql, for a role that may not read all statistics.
MAY_ASK_TIMELINE = """
    SELECT has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = 'rollcall_internal' AND p.proname = 'received_timeline'
"""
BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Takes no snapshot, and so has to come first. ALTER TABLE … TYPE, and TRUNCATE, give a table a new file: a snapshot from before
# them that gets at the table after them sees an empty one. It takes the SELECT right on the whole table.
LOCK = "LOCK TABLE {table} IN ACCESS SHARE MODE"
# The last one is where the log ends once the snapshot has been taken; NULL where all of it is on the disk, and on a standby.
HORIZON = """
    SELECT pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmax(now)::text::bigint,
           CASE WHEN pg_is_in_recovery() THEN NULL
                WHEN pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn() THEN pg_current_wal_insert_lsn()::text END
    FROM pg_current_snapshot() AS now
"""
# An empty message in the log, and all before it, on the disk: a few milliseconds. Without it the end of the log may wait
# for as long as a transaction is open and nobody commits.
FLUSH = "SELECT pg_logical_emit_message(false, 'rollcall', '', true)"
FLUSHES_FROM_VERSION = 17_00_00
# Before, there is only waiting until the server flushes by itself: at somebody's commit, or some seconds later. Between the start
# of a page of the log and its first record lie up to 40 bytes that are flushed with that record only.
FLUSHED = """
    SELECT flushed >= shown
           OR (flushed - '0/0') %% current_setting('wal_block_size')::int = 0 AND shown - flushed <= 40
    FROM (SELECT pg_current_wal_flush_lsn() AS flushed, %s::pg_lsn AS shown) AS log
"""
FLUSH_WAIT_SECONDS = 1.0
FLUSH_POLL_SECONDS = 0.005

# The statements, with the fields and the table of a counter filled in: {fields} f, g · {table} · {marks} %s, %s ·
# {joined} t.f = v.f AND t.g = v.g · {walked} w.f, w.g · {unnest} unnest(%s::text[], %s::text[])

# Index-only scan of the counter's index, from behind a member; stops after CHUNK_ROWS entries.
SCAN = """
    SELECT DISTINCT {fields} FROM
        (SELECT {fields} FROM {table} {behind} ORDER BY {fields} LIMIT {limit}) AS chunk
    ORDER BY {fields}
"""
# Loose index scan: one descent of the counter's index a member.
JUMP = """
    WITH RECURSIVE walk AS (
        (SELECT {fields} FROM {table} {behind} ORDER BY {fields} LIMIT 1)
        UNION ALL
        SELECT next.* FROM walk AS w CROSS JOIN LATERAL
            (SELECT {fields} FROM {table} WHERE ({fields}) > ({walked}) ORDER BY {fields} LIMIT 1) AS next
    )
    SELECT {fields} FROM walk LIMIT {limit}
"""
BEHIND = "WHERE ({fields}) > ({marks})"
# The planner's own guess from the table's statistics: two numbers of a plan that is not run.
ESTIMATE = "EXPLAIN (FORMAT JSON) SELECT DISTINCT {fields} FROM {table}"
ANALYZED = "SELECT reltuples >= 0 FROM pg_class WHERE oid = %s::regclass"
# The index on xact: where the slice of at most so many rows ends, and its rows.
SLICE_END = "SELECT xact FROM {table} WHERE xact >= %s AND xact < %s ORDER BY xact OFFSET %s LIMIT 1"
RECENT = "SELECT {fields} FROM {table} WHERE xact >= %s {narrowed}"
# Xacts that have not ended: of those in a list, and of a range.
OPEN = """
    SELECT xact FROM (SELECT unnest(%s::bigint[]) UNION SELECT generate_series(%s::bigint, %s::bigint - 1)) AS asked (xact)
    WHERE pg_xact_status(xact::text::xid8) = 'in progress'
"""
# About a second.
MOST_XACTS_ASKED = 1_000_000
FETCH = f"FETCH {CHUNK_ROWS} FROM recent"
# One descent of the counter's index a value.
WITHOUT_ROW = """
    SELECT {values} FROM {unnest} AS v({fields})
    WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {joined})
"""
# The same, and then the heap for its xact, until a row below is found: mostly the first.
WITH_ROW_BELOW = """
    SELECT {values} FROM {unnest} AS v({fields})
    WHERE EXISTS (SELECT FROM {table} AS t WHERE {joined} AND t.xact < %s)
"""


class NotOnDisk(psycopg2.OperationalError):
    """A primary that is read itself shows what a crash could take back."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the table's statistics say of a counter: about how many members, in about how many rows."""

    members: int
    rows: int

    @property
    def jumping_pays(self) -> bool:
        """Few members in many rows."""
        return self.rows >= JUMP_FROM_ROWS_PER_MEMBER * max(1, self.members)


class Snapshot:
    """One repeatable-read transaction on the replica: see the head of this module. Made by `Replica.snapshot`."""

    def __init__(
        self,
        connection: Connection,
        source: str,
        lsn: int,
        committed_through: datetime,
        horizon: int,
        xmax: int,
        *,
        behind_bytes: int = 0,
    ) -> None:
        self._connection = connection
        self.source, self.lsn, self.committed_through, self.horizon = source, lsn, committed_through, horizon
        self.xmax, self.held, self.behind_bytes = xmax, horizon < xmax, behind_bytes

    def read_members(self, counter: Counter, after: Values | None, *, jumping: bool) -> list[Values]:
        """The next chunk of the table's distinct members behind `after` (None: from the first), in index order.

        Empty means that there are none behind it.
        """
        statement = fill_in(
            JUMP if jumping else SCAN,
            counter,
            behind=sql.SQL("") if after is None else fill_in(BEHIND, counter),
            limit=sql.Literal(CHUNK_JUMPS if jumping else CHUNK_ROWS),
        )
        return ask(self._connection, statement, after or ())

    def slice_end(self, counter: Counter, cursor_xact: int, rows: int) -> int | None:
        """Where to cut the rows from `cursor_xact` on so that about `rows` are in front; None: there are fewer.

        A cut is an xact at or below the horizon. One transaction is never cut in two.
        """
        found = ask(self._connection, fill_in(SLICE_END, counter), (cursor_xact, self.horizon, rows))
        return max(found[0][0], cursor_xact + 1) if found else None

    def read_recent(
        self, counter: Counter, since: int, below: int | None, shown: Shown | None = None
    ) -> Iterator[set[Values]]:
        """The members of rows with since <= xact (< below), in sets of bounded size; a member may be in several.

        Above the horizon those that `shown` has are left out.
        """
        narrowed: str = ""
        bounds: list[Any] = [since]
        if below is not None:
            narrowed, bounds = "AND xact < %s", [since, below]
        elif shown is not None:
            narrowed = "AND (xact < %s OR xact >= %s OR xact = ANY(%s))"
            bounds += [self.horizon, shown.xmax, list(shown.unended)]
        statement = fill_in(RECENT, counter, narrowed=sql.SQL(narrowed))
        # The server hands out a chunk at a time; each FETCH is a short statement of its own.
        ask(self._connection, sql.SQL("DECLARE recent NO SCROLL CURSOR FOR ") + statement, bounds)
        while rows := ask(self._connection, FETCH):
            yield set(rows)
        ask(self._connection, "CLOSE recent")

    def without_row(self, counter: Counter, values: Sequence[Values]) -> set[Values]:
        """Those of these members that no row has."""
        return self._filter(WITHOUT_ROW, counter, values)

    def with_row_below(self, counter: Counter, values: Sequence[Values], xact: int) -> set[Values]:
        """Those of these members that have a row with a lower xact."""
        return self._filter(WITH_ROW_BELOW, counter, values, xact)

    def _filter(self, statement: str, counter: Counter, values: Sequence[Values], *more: Any) -> set[Values]:
        arrays = map(list, zip(*values, strict=True))
        return set(ask(self._connection, fill_in(statement, counter), (*arrays, *more)))

    def estimate(self, counter: Counter) -> Estimate | None:
        """What the table's statistics say about this counter; None where it has never been analyzed."""
        if ask(self._connection, ANALYZED, (quoted_table(counter),)) != [(True,)]:
            return None
        (((document,),),) = ask(self._connection, fill_in(ESTIMATE, counter))
        plan = document["Plan"]
        members = plan["Plan Rows"]
        while "Plans" in plan:
            plan = plan["Plans"][0]
        return Estimate(members=members, rows=plan["Plan Rows"])


@dataclass(frozen=True, slots=True)
class Shown:
    """Which rows a snapshot has shown for certain: those of every xact below `xmax` but the unended ones."""

    xmax: int
    unended: frozenset[int]


class Replica:
    """The connection to the replica. Not for several threads."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection: Connection | None = None
        self._may_ask_timeline = False

    @contextmanager
    def snapshot(self, counter: Counter | None = None) -> Iterator[Snapshot]:
        """A snapshot, for as long as the block runs; to read the counter's table in it, name the counter.

        Raises psycopg2.Error; the next call connects anew then. LockNotAvailable is one of them: somebody is about to
        change the table, and it is to be waited for.
        """
        if self._connection is None:
            self._connection = self._connect()
        try:
            standpoint = STANDPOINT
            # A no is asked again: a replica that lags shows the function later, and this connection may live long.
            self._may_ask_timeline = self._may_ask_timeline or ask(self._connection, MAY_ASK_TIMELINE) == [(True,)]
            if self._may_ask_timeline:
                standpoint = STANDPOINT.replace(RECEIVED_SQL, "rollcall_internal.received_timeline()")
            # The order is the argument: what had been replayed before the snapshot was taken is in the snapshot, and
            # the table does not get another file under it.
            ((source, lsn, committed_through, behind_bytes),) = ask(self._connection, standpoint)
            ask(self._connection, BEGIN)
            if counter is not None:
                ask(self._connection, fill_in(LOCK, counter))
            ((horizon, xmax, unflushed_lsn),) = ask(self._connection, HORIZON)
            if counter is not None and unflushed_lsn is not None:
                flush(self._connection, unflushed_lsn)
            yield Snapshot(self._connection, source, lsn, committed_through, horizon, xmax, behind_bytes=behind_bytes)
        except psycopg2.Error:
            self.close()
            raise
        finally:
            # However the block ended (Redis failed, Ctrl-C): no transaction stays open.
            self._end()

    def ended_now(self, since: int, unended: Iterable[int]) -> Shown | None:
        """What a snapshot that is taken after this call will show: every xact but those that are still open now.

        Looks at the xacts from `since` on, and at those that were unended before; None where these are too many to look at.
        A snapshot's own list of open xacts is empty on a standby, so they are asked one by one. What is said to have
        ended here, has ended before the snapshot, and so is in it.
        """
        if self._connection is None:
            self._connection = self._connect()
        try:
            ((xmin, xmax, _),) = ask(self._connection, HORIZON)
            since = max(since, xmin)  # below it all have ended
            if xmax - since > MOST_XACTS_ASKED:
                return None
            return Shown(xmax, frozenset(xact for (xact,) in ask(self._connection, OPEN, (list(unended), since, xmax))))
        except psycopg2.Error:
            self.close()
            raise

    def _end(self) -> None:
        if self._connection is None or self._connection.info.transaction_status == TRANSACTION_STATUS_IDLE:
            return
        try:
            ask(self._connection, "ROLLBACK")
        except psycopg2.Error:
            self.close()

    def _connect(self) -> Connection:
        connection = psycopg2.connect(
            self.dsn,
            connect_timeout=CONNECT_SECONDS,
            tcp_user_timeout=SILENCE_MILLISECONDS,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            application_name="rollcall-manage",
            options=OPTIONS,
        )
        connection.autocommit = True  # transactions are begun by name, above
        self._may_ask_timeline = False
        return connection

    def close_if_lost(self) -> None:
        """Let go of a connection whose other end has gone: a server says nothing to who asks nothing, but its goodbye."""
        if self._connection is None:
            return
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        if poll.poll(0):
            self.close()

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def flush(connection: Connection, unflushed_lsn: str) -> None:
    """Have the log of a primary on its disk up to there. Raises NotOnDisk where that takes longer than a moment."""
    if connection.server_version >= FLUSHES_FROM_VERSION:
        ask(connection, FLUSH)
        return
    deadline = time.monotonic() + FLUSH_WAIT_SECONDS
    while ask(connection, FLUSHED, (unflushed_lsn,)) != [(True,)]:
        if time.monotonic() > deadline:
            raise NotOnDisk(
                f"what the primary shows is not on its disk yet: its log is to be flushed up to {unflushed_lsn}"
            )
        time.sleep(FLUSH_POLL_SECONDS)


def ask(connection: Connection, statement: str | sql.Composable, parameters: Sequence[Any] = ()) -> list[Any]:
    """Run one statement; its rows. Raises psycopg2.Error, within ANSWER_SECONDS."""
    with cut_after(connection, ANSWER_SECONDS), connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def is_away(error: psycopg2.Error) -> bool:
    """Whether the replica itself is away (not reached, lost, ending), rather than one statement refused, or cut off."""
    return not isinstance(error, (*REFUSALS, QueryCanceled, LockNotAvailable, TransactionRollbackError, NotOnDisk))


def quoted_table(counter: Counter) -> str:
    """The counter's table, as Postgres wants to read it in a regclass."""
    return '"' + counter.get_model()._meta.db_table.replace('"', '""') + '"'


def fill_in(statement: str, counter: Counter, **more: sql.Composable) -> sql.Composed:
    """A statement of this module, for this counter."""
    options = counter.get_model()._meta
    fields = [cast(models.Field, options.get_field(name)) for name in counter.fields]
    columns = [sql.Identifier(field.column) for field in fields]
    comma, conjunction = sql.SQL(", "), sql.SQL(" AND ")

    def of(table: str) -> list[sql.Composed]:
        return [sql.SQL("{}.{}").format(sql.SQL(table), column) for column in columns]

    arrays = [sql.SQL("%s::bigint[]" if isinstance(f, models.IntegerField) else "%s::text[]") for f in fields]
    equal = [sql.SQL("{} = {}").format(t, v) for t, v in zip(of("t"), of("v"), strict=True)]
    known = {
        "fields": comma.join(columns),
        "table": sql.Identifier(options.db_table),
        "marks": comma.join([sql.SQL("%s")] * len(columns)),
        "walked": comma.join(of("w")),
        "values": comma.join(of("v")),
        "unnest": sql.SQL("unnest({})").format(comma.join(arrays)),
        "joined": conjunction.join(equal),
    }
    return sql.SQL(statement).format(**known, **more)
