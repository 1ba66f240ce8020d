"""The connection to the replica, its snapshots, and what each proves. The statements are in `sql`.

Every read happens in a `Snapshot`: one short repeatable-read transaction, which knows from the start

    source             the history and the database that it shows ("system identifier/database/timeline")
    lsn                how far the replica had replayed before: it shows everything up to there
    committed_through  it shows every row that the primary committed before this moment (the primary's clock)
    horizon            it shows every row of a transaction with a lower xact
    xmax               it knows of no transaction with this xact or a higher one
    held               a transaction is open at the horizon: later ones may have ended
    behind_bytes       WAL that the replica had received and not replayed

and, if it is of a table,

    fingerprint        which table that is: another one after ATTACH, DETACH, TRUNCATE, ALTER TYPE and the like
    misordered         the order of its indexes may differ from that of this server's collations

Why a snapshot of a table is reliable:

1. The table is locked before the snapshot is taken. ALTER TABLE … TYPE, or TRUNCATE and a reload, give the table
   a new file. A snapshot from before their commit that then waits for the table reads the new file as empty.
2. No crash undoes what it shows, or gives out an xact below its horizon again. A replica shows
   only commits that are on the disk of its primary, which sends nothing else. A primary that manage reads directly also
   shows commits that are not on its disk yet (`synchronous_commit = off`, and transactions with an xact and no row). So
   its log is flushed before anything is read. Each ended transaction has written its xact to the log before others can
   see that it has ended.
3. Row-level security is an error (`row_security = off`), not a table with fewer rows.
4. The fingerprint is read in the snapshot. Statements that remove something from the table (DETACH, TRUNCATE, a
   rewrite) wait for the lock. A partition that is attached meanwhile may be read under the earlier fingerprint, which
   claims less than is read.

A replica that crashes may come back at an *earlier* state: the second of two snapshots may show less. Code that
combines several of them compares these facts (see `build` and `sweep`).
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, cast

import psycopg2
import structlog
from psycopg2 import DataError
from psycopg2.errors import LockNotAvailable, QueryCanceled
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TransactionRollbackError
from psycopg2.extensions import connection as Connection
from psycopg2.sql import SQL, Composable, Identifier, Literal

from manage_service.replica import catalog, hosts, sql
from shared_models import partitions, triggers
from shared_models.deadlines import cut_after
from shared_models.declarations import Counter, Table
from shared_models.protocol.members import Values
from shared_models.triggers import LEAST_VERSION, TOO_OLD

T = TypeVar("T")

log = structlog.get_logger()

# A chunk takes milliseconds. If one takes longer than this, a disk hangs or an index is missing. The caller holds leases,
# and renews them between two statements: see `leases.LEASE_SECONDS`.
STATEMENT_SECONDS = 6.0
# Each statement here has an index made for it. Without statistics (a table was just loaded) the planner may prefer to
# hash or sort the whole table for a chunk. So these settings make the other plans too expensive.
OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": f"{STATEMENT_SECONDS:g}s",
        "lock_timeout": "200ms",  # if a table is locked, only its counter waits, and not here
        # Hidden rows are an error: otherwise a sweep would remove their members.
        "row_security": "off",
        # The texts of dates, and what a counter's condition means, do not depend on a role's settings.
        "DateStyle": "ISO,YMD",
        "TimeZone": "UTC",
        "search_path": "pg_catalog,pg_temp",
        "idle_in_transaction_session_timeout": "60s",  # a keeper that hangs must not hold back vacuum
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "max_parallel_workers_per_gather": "0",
        "jit": "off",
    }.items()
)
# Postgres refuses (no such table, no right to read it, a broken index, a row that a counter's condition fails for), and will
# refuse again. Its other errors mean that it does not answer, or is busy.
REFUSALS = (psycopg2.ProgrammingError, psycopg2.InternalError, DataError)
# How long to wait for a host that does not answer, and to notice one that has vanished.
CONNECT_SECONDS = 3
SILENCE_MILLISECONDS = 10_000
# A stopped server does not apply statement_timeout. An answer that has not arrived by then will not arrive.
ANSWER_SECONDS = STATEMENT_SECONDS + 1.0

# How often several replicas are compared with each other while one is behind or does not answer. An unreachable one takes
# CONNECT_SECONDS.
COMPARE_SECONDS = 30.0

FLUSH_WAIT_SECONDS = 1.0
FLUSH_POLL_SECONDS = 0.005


class NotOnDisk(psycopg2.OperationalError):
    """A primary that manage reads directly shows commits that a crash could undo."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The table's statistics of a counter: about how many members, in about how many rows."""

    members: int
    rows: int

    @property
    def jumping_pays(self) -> bool:
        """Few members in many rows."""
        return self.rows >= sql.JUMP_FROM_ROWS_PER_MEMBER * max(1, self.members)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One repeatable-read transaction on the replica: see the head of this module. Made by `Replica.snapshot`."""

    _connection: Connection
    source: str
    lsn: int
    committed_through: datetime
    horizon: int
    xmax: int
    behind_bytes: int = 0
    fingerprint: str = ""
    misordered: bool = False
    # What `once` has made.
    _made: dict[object, Any] = field(default_factory=dict, compare=False)

    @property
    def held(self) -> bool:
        """Whether a transaction is open at the horizon."""
        return self.horizon < self.xmax

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` makes of this snapshot; made once for each key. The parts of a counter share what they read."""
        if key not in self._made:
            self._made[key] = make()
        return cast("T", self._made[key])

    def read_members(self, counter: Counter, after: Values | None, *, jumping: bool) -> list[Values]:
        """The next chunk of the table's distinct members after `after` (None: from the first), in index order.

        Empty means that there are none after it. Raises catalog.DoesNotFit if that order is not reliable.
        """
        self._check_order(counter)
        statement = sql.fill_in(
            sql.JUMP if jumping else sql.SCAN,
            counter,
            behind=SQL("") if after is None else sql.fill_in(sql.BEHIND, counter),
            limit=Literal(self.once("jumps", lambda: self._jumps(counter)) if jumping else sql.CHUNK_ROWS),
        )
        marks = () if after is None else after[: len(counter.fields)] if counter.last_seen else after
        return ask(self._connection, statement, marks)

    def is_possible(self, counter: Counter) -> bool:
        """Whether the texts in the counter's condition have the types of the columns that they are compared with. No row is read.

        If not, the snapshot cannot be used any longer.
        """
        try:
            ask(self._connection, sql.fill_in(sql.PARSED, counter))
        except DataError:
            return False
        return True

    def _jumps(self, counter: Counter) -> int:
        """How many members a chunk of jumps returns."""
        ((leaves,),) = ask(self._connection, sql.LEAVES, (triggers.relation(counter.table),))
        return max(1, sql.CHUNK_JUMPS // max(1, int(leaves)))

    def slice_end(self, counter: Counter, cursor_xact: int, rows: int) -> int | None:
        """The xact at which to cut the rows from `cursor_xact` on, so that about `rows` are before it; None: there are fewer.

        A cut is an xact at or below the horizon. One transaction is never cut in two.
        """
        found = ask(self._connection, sql.fill_in(sql.SLICE_END, counter), (cursor_xact, self.horizon, rows))
        return max(found[0][0], cursor_xact + 1) if found else None

    def read_recent(
        self, counter: Counter, since: int, below: int | None, shown: Shown | None = None
    ) -> Iterator[set[Values]]:
        """The members of rows with since <= xact (< below), in sets of bounded size; a member may be in several.

        Above the horizon it leaves out the rows that `shown` has.
        """
        narrowed = "AND xact < %s"
        # Rows from xmax on have an xact of another history: a build and a reconcile read them, once.
        bounds: list[int | list[int]] = [since, self.xmax if below is None else below]
        if below is None and shown is not None:
            narrowed += f" AND {sql.UNREAD}"
            bounds += self._unread(shown)
        statement = sql.fill_in(sql.RECENT, counter, narrowed=SQL(narrowed))
        # The server returns a chunk at a time; each FETCH is a short statement of its own.
        ask(self._connection, SQL("DECLARE recent NO SCROLL CURSOR FOR ") + statement, bounds)
        while rows := ask(self._connection, sql.FETCH):
            yield set(rows)
        ask(self._connection, "CLOSE recent")

    def has_recent(self, counter: Counter, since: int, shown: Shown | None) -> bool:
        """Whether there is a row that `read_recent` would look at, for any counter of the same table; also True if there are
        too many rows above the horizon to look at all of them."""
        limit, unread, bounds = 0, "true", []
        if shown is not None:
            limit, unread, bounds = sql.CHUNK_ROWS, sql.UNREAD, self._unread(shown)
        statement = sql.fill_in(sql.HAS_RECENT, counter, unread=SQL(unread), limit=Literal(limit))
        return ask(self._connection, statement, (*bounds, since, self.xmax)) == [(True,)]

    def _unread(self, shown: Shown) -> list[int | list[int]]:
        return [self.horizon, shown.xmax, list(shown.unended)]

    def fingerprint_as(self, described_by: tuple[str, tuple[str, ...], bool]) -> str:
        """The table's fingerprint for another counter of the same table (`sql.described_by`)."""
        ((fingerprint, _),) = describe(self._connection, described_by)
        return str(fingerprint)

    def parts(self, counter: Counter) -> str:
        """What the fingerprint of the counter's table is made of: a hash of its columns and labels, and then the table and its
        partitions, each as oid/file."""
        table, names, whole = sql.described_by(counter)
        ((shape, parts),) = ask(self._connection, sql.PARTS, {"regclass": table, "names": list(names), "whole": whole})
        return f"{shape} {parts}"

    def months_ahead(self, table: Table) -> int | None:
        """For how many months to come the table has partitions; None if it is not partitioned by create_time."""
        ((ahead,),) = ask(self._connection, partitions.ahead(table))
        return None if ahead is None else int(ahead)

    def retiring(self) -> list[str]:
        """The partitions that were detached to be retired, and not dropped yet."""
        return [name for (name,) in ask(self._connection, sql.RETIRING)]

    def are_retired(self, parts: Collection[int]) -> bool:
        """Whether all of these, which have left the table, are being retired: their members are noted as departures."""
        return len(ask(self._connection, sql.RETIRED, (list(parts),))) == len(parts)

    def are_empty(self, parts: Collection[int]) -> bool:
        """Whether none of these parts of the table has brought a row. False, too, if this role may not read one of them."""
        found = ask(self._connection, sql.NEW_PARTS, (list(parts),))
        return len(found) == len(parts) and all(
            has_none
            or (
                may_be_read
                and ask(self._connection, SQL(sql.IS_EMPTY).format(part=Identifier(schema, name))) == [(True,)]
            )
            for _, schema, name, has_none, may_be_read in found
        )

    def without_row(self, counter: Counter, values: Sequence[Values]) -> set[Values]:
        """The members without a row. Raises catalog.DoesNotFit if the index's order is not reliable."""
        self._check_order(counter)
        return self._filter(sql.WITHOUT_ROW, counter, values)

    def last_seen(self, counter: Counter, values: Sequence[Values]) -> dict[tuple[str, ...], str | None]:
        """The last day of each member (as texts), as Postgres writes it; None if it has no row."""
        self._check_order(counter)
        terms = counter.terms[:-1]
        statement = sql.fill_in(
            sql.LAST_SEEN,
            counter,
            terms,
            day=SQL(counter.terms[-1].sql("t.").replace("%", "%%")),
            last=SQL(", ").join(SQL(each.sql().replace("%", "%%") + " DESC") for each in counter.terms),
        )
        arrays = map(list, zip(*values, strict=True))
        return {tuple(map(str, member)): day for *member, day in ask(self._connection, statement, tuple(arrays))}

    def with_row_below(self, counter: Counter, values: Sequence[Values], xact: int) -> set[Values]:
        """The members that have a row with a lower xact, or a row of another history, which no pass reads."""
        return self._filter(sql.WITH_ROW_BELOW, counter, values, xact, self.xmax)

    def _filter(self, statement: str, counter: Counter, values: Sequence[Values], *more: int) -> set[Values]:
        arrays = map(list, zip(*values, strict=True))
        return set(ask(self._connection, sql.fill_in(statement, counter), (*arrays, *more)))

    def _check_order(self, counter: Counter) -> None:
        # An index in another order hides rows: a build would not count them, and a sweep would remove their members.
        if self.misordered:
            self.check(counter)

    def check(self, counter: Counter) -> None:
        """Compare the counter's declaration with its table. Raises catalog.DoesNotFit."""
        catalog.check(counter, partial(ask, self._connection))

    def misfits(self, counter: Counter) -> list[str]:
        """The differences between the counter's declaration and its table."""
        return list(catalog.misfits(counter, partial(ask, self._connection)))

    def has_departures(self) -> bool:
        """Whether there is a table of departures that manage may read."""
        return ask(self._connection, sql.HAS_DEPARTURES) == [(True,)]

    def departing(self, since: Mapping[str, int]) -> set[str]:
        """The keys (`triggers.key`) of those counters that have departures with an xact at or above their value in `since`."""
        return {key for (key,) in ask(self._connection, sql.DEPARTING, (list(since), list(since.values())))}

    def departed(self, counter: Counter, since: int, below: int) -> tuple[int, list[Values] | None]:
        """The members of a batch of departures with since <= xact, and the xact before which the batch ends; `below` at most.

        None instead of members is "all". One transaction is never cut in two.
        """
        key, fields = triggers.key(counter), len(counter.terms)
        cut = ask(self._connection, sql.DEPARTED_END, (key, since, below, sql.BATCH_DEPARTURES * fields))
        until = max(cut[0][0], since + 1) if cut else below
        found = ask(self._connection, sql.DEPARTED, (sql.MOST_DEPARTED * fields, key, since, until))
        if (None,) in found:
            return until, None
        # Members, or one member: an earlier version's triggers noted one alone.
        arrays = (element if isinstance(element[0], list) else [element] for (element,) in found)
        return until, list({tuple(member) for array in arrays for member in array})

    def estimate(self, counter: Counter) -> Estimate | None:
        """The table's statistics of this counter; None if the table was never analyzed.

        A member of several partitions is in it several times: a jump to it descends the index of each.
        """
        relation = triggers.relation(counter.table)
        members = rows = 0
        analyzed = ask(self._connection, sql.ANALYZED, (relation, relation))
        for schema, name, has_rows in analyzed:
            if not has_rows:  # the planner would guess
                continue
            statement = sql.fill_in(sql.ESTIMATE, counter, of=sql.identifier(schema, name))
            (((document,),),) = ask(self._connection, statement)
            plan = document["Plan"]
            members += plan["Plan Rows"]
            while "Plans" in plan:
                plan = plan["Plans"][0]
            rows += plan["Plan Rows"]
        return Estimate(members=members, rows=rows) if analyzed else None


@dataclass(frozen=True, slots=True)
class Shown:
    """The rows that a snapshot has certainly shown: those of every xact below `xmax` except the unended ones."""

    xmax: int
    unended: frozenset[int]


class Replica:
    """The connection to the replica, or to one of several (`hosts`). Not for several threads.

    `host`: which one; "" if the URL names only one. `passed_over`: why others are not read, by host.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.host, self.passed_over = "", dict[str, str]()
        self._connection: Connection | None = None
        # When the hosts were compared last, the last commit that a snapshot showed, and whether the next snapshot has to be of the
        # same server as what was asked before.
        self._compared_at, self._shown, self._stays = 0.0, datetime.max.replace(tzinfo=UTC), False
        self._may_ask_timeline = False
        # While `in_one_snapshot` runs: the snapshot, once there is one, and what ends it.
        self._shares = False
        self._shared: tuple[Snapshot, object, ExitStack] | None = None

    @contextmanager
    def in_one_snapshot(self) -> Iterator[None]:
        """For as long as the block runs, all snapshots of the same table are one, also for counters with other columns.

        It may be older than something that the reader has read in Redis meanwhile. No reader relies on the time of a snapshot: each
        compares its horizon and its fingerprint with what it has to show.
        """
        self._shares = True
        try:
            yield
        finally:
            self._shares = False
            self._leave_shared()

    @contextmanager
    def snapshot(self, counter: Counter | None = None) -> Iterator[Snapshot]:
        """A snapshot, for as long as the block runs; to read the counter's table in it, name the counter.

        Raises psycopg2.Error; then the next call connects again. One of these errors is LockNotAvailable: another session
        is about to change the table. Wait, and try again.
        """
        if not self._shares or counter is None:
            self._leave_shared()
            with self._open(counter) as snapshot:
                yield snapshot
            return
        described_by = sql.described_by(counter)
        if self._shared is None or self._shared[1] != described_by:
            self._leave_shared()
            stack = ExitStack()
            self._shared = stack.enter_context(self._open(counter)), described_by, stack
        try:
            yield self._shared[0]
        except psycopg2.Error:
            self.close()
            raise

    def _leave_shared(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            shared[2].close()

    @contextmanager
    def _open(self, counter: Counter | None) -> Iterator[Snapshot]:
        self._look_for_a_newer_one()
        if self._connection is None:
            self._connection = self._connect()
        try:
            # If not, it asks again: a replica that lags shows the function later, and this connection may live long.
            self._may_ask_timeline = self._may_ask_timeline or ask(self._connection, sql.MAY_ASK_TIMELINE) == [(True,)]
            standpoint = sql.standpoint(by_function=self._may_ask_timeline)
            # The order matters: commits that were replayed before the snapshot are in it, and
            # the table cannot get another file meanwhile.
            ((source, lsn, committed_through, behind_bytes),) = ask(self._connection, standpoint)
            self._shown = committed_through
            ask(self._connection, sql.BEGIN)
            if counter is not None:
                ask(self._connection, sql.fill_in(sql.LOCK, counter))
            ((horizon, xmax, unflushed_lsn),) = ask(self._connection, sql.HORIZON)
            fingerprint, misordered = "", False
            if counter is not None:
                if unflushed_lsn is not None:
                    flush(self._connection, unflushed_lsn)
                ((fingerprint, misordered),) = describe(self._connection, sql.described_by(counter))
            of_server = (source, lsn, committed_through, horizon, xmax, behind_bytes)
            yield Snapshot(self._connection, *of_server, fingerprint, misordered)
        except psycopg2.Error:
            self.close()
            raise
        finally:
            # No transaction stays open, however the block ended (Redis failed, Ctrl-C).
            self._end()

    def ended_now(self, since: int, unended: Iterable[int]) -> Shown | None:
        """The rows that a snapshot after this call will show: every xact except those that are still open now.

        Looks at the xacts from `since` on, and at those that had not ended before; None if there are too many to look
        at. A snapshot's own list of open xacts is empty on a standby, so they are asked one by one. An xact that has
        ended here has ended before the snapshot, and so is in it.
        """
        if self._connection is None:
            self._connection = self._connect()
        # Another replica may not show yet what has ended on this one.
        self._stays = True
        try:
            ((xmin, xmax, _),) = ask(self._connection, sql.HORIZON)
            since = max(since, xmin)  # below it all have ended
            if xmax - since > sql.MOST_XACTS_ASKED:
                return None
            return Shown(
                xmax, frozenset(xact for (xact,) in ask(self._connection, sql.OPEN, (list(unended), since, xmax)))
            )
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
        self._stays = False
        dsns = hosts.split(self.dsn)
        self._may_ask_timeline = False
        if len(dsns) == 1:
            return connect(self.dsn)
        self._compared_at = time.monotonic()
        connection, host, passed_over = hosts.choose(dsns, connect, shown_by)
        if host != self.host:
            log.info("replica.chosen", host=host)
        for other, reason in passed_over.items():
            if other not in self.passed_over:
                log.warning("replica.passed_over", host=other, reason=reason)
        self.host, self.passed_over = host, dict(passed_over)
        return connection

    def _look_for_a_newer_one(self) -> None:
        """If there are several replicas, and this one shows nothing new, or others were passed over, compare them again."""
        stays, self._stays = self._stays, False
        if self._connection is None or not self.host or stays:
            return
        is_old = datetime.now(UTC) - self._shown > hosts.BEHIND
        if (is_old or self.passed_over) and time.monotonic() - self._compared_at > COMPARE_SECONDS:
            self.close()

    def close_if_lost(self) -> None:
        """Close a connection whose server has gone: a server sends an idle client nothing before it ends."""
        if self._connection is None:
            return
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        if poll.poll(0):
            self.close()

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        self._shared = None
        if connection is not None:
            connection.close()


def connect(dsn: str) -> Connection:
    """A connection for snapshots. Raises psycopg2.Error."""
    connection = psycopg2.connect(
        dsn,
        connect_timeout=CONNECT_SECONDS,
        tcp_user_timeout=SILENCE_MILLISECONDS,
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        application_name="rollcall-manage",
        options=OPTIONS,
    )
    if connection.server_version < LEAST_VERSION:
        connection.close()
        raise psycopg2.NotSupportedError(TOO_OLD)
    connection.autocommit = True  # transactions are begun by name
    ask(connection, sql.PREPARE_TABLE)
    return connection


def shown_by(connection: Connection) -> datetime | None:
    """The last commit that a server shows."""
    ((_, _, committed_through, _),) = ask(connection, sql.STANDPOINT)
    return cast("datetime | None", committed_through)


def flush(connection: Connection, unflushed_lsn: str) -> None:
    """Flush the log of a primary to its disk up to there. Raises NotOnDisk if that takes longer than a moment."""
    if connection.server_version >= sql.FLUSHES_FROM_VERSION:
        ask(connection, sql.FLUSH)
        return
    deadline = time.monotonic() + FLUSH_WAIT_SECONDS
    while ask(connection, sql.FLUSHED, (unflushed_lsn,)) != [(True,)]:
        if time.monotonic() > deadline:
            raise NotOnDisk(
                f"the primary shows commits that are not on its disk yet: its log has to be flushed up to {unflushed_lsn}"
            )
        time.sleep(FLUSH_POLL_SECONDS)


def ask(
    connection: Connection, statement: str | Composable, parameters: Sequence[object] | Mapping[str, object] = ()
) -> list[Any]:
    """Run one statement; its rows. Raises psycopg2.Error, within ANSWER_SECONDS."""
    with cut_after(connection, ANSWER_SECONDS), connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def describe(connection: Connection, described_by: tuple[str, tuple[str, ...], bool]) -> list[Any]:
    """The fingerprint of a table, and whether the order of its indexes may differ from that of this server's collations."""
    relation, columns, whole = described_by
    return ask(connection, sql.TABLE, (relation, list(columns), whole))


def is_away(error: psycopg2.Error) -> bool:
    """Whether the replica itself does not answer (not reached, lost, ending), or only one statement failed."""
    return not isinstance(error, (*REFUSALS, QueryCanceled, LockNotAvailable, TransactionRollbackError, NotOnDisk))
