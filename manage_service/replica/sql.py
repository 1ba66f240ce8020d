"""All SQL of manage: the statements on the replica, and how a counter's table and fields get into them.

Each is made for one index. What a snapshot proves by them stands in `snapshots`.
"""

from __future__ import annotations

from typing import Any, cast

from django.db import models
from psycopg2.sql import SQL, Composable, Composed, Identifier

from shared_models.declarations import Counter
from shared_models.protocol.timeline import RECEIVED_SQL, SOURCE_SQL

# One statement reads at most this many index entries: about 10 ms where the index is in memory.
CHUNK_ROWS = 50_000
# One statement of jumps returns at most this many members: 5 to 7 µs each.
CHUNK_JUMPS = 5_000
# From so many rows a member on, jumping from one value to the next beats reading every row's index entry.
# Measured on 2 million rows: a jump costs what 30 to 40 entries of an index-only scan cost.
JUMP_FROM_ROWS_PER_MEMBER = 40

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
RECEIVED_BY_FUNCTION = "rollcall_internal.received_timeline()"
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

# From here on `fill_in` puts the fields and the table of a counter in: {fields} f, g · {table} · {marks} %s, %s ·
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

# Whether there are departures, and this role may read them: see shared_models.triggers.
HAS_DEPARTURES = """
    SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'rollcall_triggers' AND c.relname = 'departure'
"""
# The index on (counter, xact): where a batch ends, and its members.
DEPARTED_END = """
    SELECT xact FROM rollcall_triggers.departure WHERE counter = %s AND xact >= %s AND xact < %s
    ORDER BY xact OFFSET %s LIMIT 1
"""
DEPARTED = """
    SELECT DISTINCT element FROM rollcall_triggers.departure WHERE counter = %s AND xact >= %s AND xact < %s LIMIT %s
"""
# About how many departures one batch has: a second's worth of questions to the table.
BATCH_DEPARTURES = 20_000
# More members than this in one batch, that is of one transaction: a reconcile is quicker.
MOST_DEPARTED = 200_000


def standpoint(*, by_function: bool) -> str:
    """STANDPOINT, for a role that may ask the function, or for one that reads the statistics itself."""
    return STANDPOINT.replace(RECEIVED_SQL, RECEIVED_BY_FUNCTION) if by_function else STANDPOINT


def quoted_table(counter: Counter) -> str:
    """The counter's table, as Postgres wants to read it in a regclass."""
    return '"' + counter.get_model()._meta.db_table.replace('"', '""') + '"'


def fill_in(statement: str, counter: Counter, **more: Composable) -> Composed:
    """One of the statements above, for this counter."""
    options = counter.get_model()._meta
    fields = [cast("models.Field[Any, Any]", options.get_field(name)) for name in counter.fields]
    columns = [Identifier(cast("str", field.column)) for field in fields]
    comma, conjunction = SQL(", "), SQL(" AND ")

    def of(table: str) -> list[Composed]:
        return [SQL("{}.{}").format(SQL(table), column) for column in columns]

    arrays = [SQL("%s::bigint[]" if isinstance(f, models.IntegerField) else "%s::text[]") for f in fields]
    equal = [SQL("{} = {}").format(t, v) for t, v in zip(of("t"), of("v"), strict=True)]
    known = {
        "fields": comma.join(columns),
        "table": Identifier(options.db_table),
        "marks": comma.join([SQL("%s")] * len(columns)),
        "walked": comma.join(of("w")),
        "values": comma.join(of("v")),
        "unnest": SQL("unnest({})").format(comma.join(arrays)),
        "joined": conjunction.join(equal),
    }
    return SQL(statement).format(**known, **more)
