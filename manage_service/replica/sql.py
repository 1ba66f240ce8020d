"""All SQL of manage: the statements on the replica, and how a counter's table and fields get into them.

Each is made for one index. `snapshots` says what a snapshot proves with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from shared_models import partitions, triggers
from shared_models.declarations import NUMBERS, Counter, Storage, Term
from shared_models.protocol.timeline import RECEIVED_SQL, SOURCE_SQL

# One statement reads at most this many index entries: about 10 ms if the index is in memory.
CHUNK_ROWS = 50_000
# One statement of jumps descends at most so many indexes: 5 to 7 µs each, and up to 20 µs if the rows are spread over partitions.
# A jump descends the index of each partition.
CHUNK_JUMPS = 5_000
LEAVES = "SELECT count(*) FROM pg_partition_tree(%s) WHERE isleaf"
# If a member has at least this many rows, jumping from one value to the next is faster than reading every row's index
# entry. Measured on 2 million rows: a jump costs as much as 30 to 40 entries of an index-only scan.
JUMP_FROM_ROWS_PER_MEMBER = 40

PLAIN = ("text", "varchar", *NUMBERS)
# The type with which an array of a field's values is sent, if it is not the field's own.
ARRAYS = dict.fromkeys(NUMBERS, "bigint") | {"varchar": "text", "enum": "text"}
# A label as the enum that the column has, whatever its name is; NULL if it has no such label.
LABEL = """CASE WHEN EXISTS (
    SELECT FROM pg_enum AS e JOIN pg_attribute AS a ON a.atttypid = e.enumtypid
    WHERE a.attrelid = {regclass}::regclass AND a.attname = {name} AND e.enumlabel = {value}
) THEN (jsonb_populate_record(NULL::{row}, jsonb_build_object({name}, {value}))).{column} END"""

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
# LOCK takes no snapshot, so it has to come first. ALTER TABLE … TYPE, and TRUNCATE, give a table a new file: an earlier
# snapshot that reads the table after them sees it empty. LOCK needs the SELECT right on the whole table.
LOCK = "LOCK TABLE {table} IN ACCESS SHARE MODE"
# The last value is the end of the log after the snapshot was taken; NULL if all of it is on the disk, and on a standby.
HORIZON = """
    SELECT pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmax(now)::text::bigint,
           CASE WHEN pg_is_in_recovery() THEN NULL
                WHEN pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn() THEN pg_current_wal_insert_lsn()::text END
    FROM pg_current_snapshot() AS now
"""
# Writes an empty message to the log, and flushes it and everything before it: a few milliseconds. Without it the end of
# the log may wait for as long as a transaction is open and nobody commits.
FLUSH = "SELECT pg_logical_emit_message(false, 'rollcall', '', true)"
FLUSHES_FROM_VERSION = 17_00_00
# Older versions have to wait until the server flushes: at the next commit, or some seconds later. Between the start
# of a page of the log and its first record there are up to 40 bytes that are flushed only with that record.
FLUSHED = """
    SELECT flushed >= shown
           OR (flushed - '0/0') %% current_setting('wal_block_size')::int = 0 AND shown - flushed <= 40
    FROM (SELECT pg_current_wal_flush_lsn() AS flushed, %s::pg_lsn AS shown) AS log
"""

# `fill_in` fills the terms and the table of a counter into the statements below. The terms make an element (`Counter.terms`):
# they are columns, or the days of times. Below, f and g are two terms, and "f" and "g" are their names:
# {terms} f AS "f", g AS "g" · {names} "f", "g" · {texts} "f", "g"::text · {table} ·
# {counts} f IS NOT NULL AND g IS NOT NULL AND (the counter's condition) · {unnest} unnest(%s::text[], %s::uuid[]) ·
# {values} v.f, v.g::text · {joined} t.f = v.f AND t.g = v.g AND (the condition)
# A walk of the index goes upwards by all terms. With last_seen it goes downwards by the member only, so that the last day comes
# first. {key} f, g · {walked} w.f, w.g · {marks} %s, %s · {beyond} > · {order} f, g · {distinct}, {ordered}: of the names
#
# A row counts if none of its terms is NULL, and the condition is true: {counts}, and {joined}, are that rule, everywhere.

# Index-only scan of the counter's index, after a member; stops after CHUNK_ROWS entries. It sorts by the values,
# and not by their texts, which have the same names: the next chunk begins after the last member.
SCAN = """
    SELECT {texts} FROM
        (SELECT {distinct} FROM
            (SELECT {terms} FROM {table} WHERE {counts} {behind} ORDER BY {order} LIMIT {limit}) AS chunk {first}) AS members
    ORDER BY {ordered}
"""
# Loose index scan: one descent of the counter's index for each member.
JUMP = """
    WITH RECURSIVE walk AS (
        (SELECT {terms} FROM {table} WHERE {counts} {behind} ORDER BY {order} LIMIT 1)
        UNION ALL
        SELECT next.* FROM walk AS w CROSS JOIN LATERAL
            (SELECT {terms} FROM {table} WHERE {counts} AND ({key}) {beyond} ({walked}) ORDER BY {order} LIMIT 1) AS next
    )
    SELECT {texts} FROM walk LIMIT {limit}
"""
# Raises an error if a text in the condition is no value of the column's type: Postgres reads these texts before any row.
PARSED = "SELECT FROM {table} WHERE {counts} LIMIT 0"
BEHIND = "AND ({key}) {beyond} ({marks})"
# The planner's estimate from a table's statistics: two numbers of a plan that does not run.
ESTIMATE = "EXPLAIN (FORMAT JSON) SELECT DISTINCT {key} FROM {of} WHERE {counts}"
# What has statistics: the table's leaves, if this role may read all of them. Autovacuum analyzes them, and never a partitioned
# table itself. Else the table as a whole, if somebody has analyzed it.
ANALYZED = """
    WITH leaf AS (
        SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.reltuples,
               has_table_privilege(c.oid, 'SELECT') AS readable
        FROM pg_partition_tree(%s) AS t JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE t.isleaf AND c.relkind <> 'p')
    SELECT schema, name, reltuples > 0 FROM leaf WHERE reltuples >= 0 AND (SELECT bool_and(readable) FROM leaf)
    UNION ALL
    SELECT n.nspname, c.relname, true FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = %s::regclass AND c.reltuples >= 0 AND NOT coalesce((SELECT bool_and(readable) FROM leaf), false)
"""
# These use the index on xact, which may leave out the rows that are older than the column (xact = 0). The first finds the
# end of a slice of at most so many rows, the second reads its rows.
SLICE_END = "SELECT xact FROM {table} WHERE xact > 0 AND xact >= %s AND xact < %s ORDER BY xact OFFSET %s LIMIT 1"
RECENT = (
    "SELECT {texts} FROM (SELECT {terms} FROM {table} WHERE {counts} AND xact > 0 AND xact >= %s {narrowed}) AS rows"
)
# Which of the rows that RECENT finds no earlier pass has added.
UNREAD = "(xact < %s OR xact >= %s OR xact = ANY(%s))"
# Whether RECENT would find a row for any counter of the table, or there are more than {limit} rows to look at.
HAS_RECENT = """
    SELECT count(*) > {limit} OR coalesce(bool_or({unread}), false)
    FROM (SELECT xact FROM {table} WHERE xact > 0 AND xact >= %s AND xact < %s LIMIT {limit} + 1) AS rows
"""
# The xacts in a list and in a range that have not ended.
OPEN = """
    SELECT xact FROM (SELECT unnest(%s::bigint[]) UNION SELECT generate_series(%s::bigint, %s::bigint - 1)) AS asked (xact)
    WHERE pg_xact_status(xact::text::xid8) = 'in progress'
"""
# Asking about so many takes about a second.
MOST_XACTS_ASKED = 1_000_000
FETCH = f"FETCH {CHUNK_ROWS} FROM recent"
# One descent of the counter's index for each value.
WITHOUT_ROW = """
    SELECT {values} FROM {unnest} AS v({names})
    WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {joined})
"""
# The last day of each of these members; NULL if it has no row.
LAST_SEEN = """
    SELECT {values}, (SELECT {day} FROM {table} AS t WHERE {joined} AND {counts} ORDER BY {last} LIMIT 1)::text
    FROM {unnest} AS v({names})
"""
# The same, then it reads the xact from the heap, until it finds a lower one: usually in the first row.
WITH_ROW_BELOW = """
    SELECT {values} FROM {unnest} AS v({names})
    WHERE EXISTS (SELECT FROM {table} AS t WHERE {joined} AND (t.xact < %s OR t.xact >= %s))
"""

# The version of a column's collation that its indexes were made with, and that of this server's libraries; NULL if it
# has none. A column with the database's own collation has the version of the database.
RECORDED = "CASE o.collprovider WHEN 'd' THEN d.datcollversion ELSE o.collversion END"
ACTUAL = """CASE o.collprovider WHEN 'd' THEN pg_database_collation_actual_version(d.oid)
                ELSE pg_collation_actual_version(o.oid) END"""
COLLATED = """LEFT JOIN pg_collation AS o ON o.oid = a.attcollation
    LEFT JOIN pg_database AS d ON d.datname = current_database()"""
# The fingerprint of a table, and whether an index on these columns may be in another order than this server's. Other oids and
# files: parts came or went, the table was swapped, emptied, rewritten. Other columns or labels: members have other
# texts. If the counter has a condition, this uses all columns: the condition is not parsed. It costs a few descents of the
# catalog's indexes, and one for each partition. Prepared, because planning it takes longer than running it.
_DESCRIBED = f"""
    WITH col AS (
        SELECT a.attnum, a.atttypid, (a.attname, a.attnum, a.atttypid, a.atttypmod, a.attcollation)::text AS described,
               a.attname = ANY ({{names}}) AND {RECORDED} <> {ACTUAL} AS misordered
        FROM pg_attribute AS a {COLLATED}
        WHERE a.attrelid = {{regclass}}::regclass AND a.attnum > 0 AND NOT a.attisdropped
          AND ({{whole}} OR a.attname = ANY ({{names}}) OR a.attname = 'xact')
    )
"""
_PARTS = """(SELECT string_agg(c.oid || '/' || c.relfilenode, ' ' ORDER BY c.oid) FROM pg_class AS c
                WHERE c.oid = ANY (ARRAY(SELECT relid FROM pg_partition_tree({regclass}) UNION SELECT {regclass}::regclass)))"""
_SHAPE = """string_agg(described, ' ' ORDER BY attnum),
               (SELECT string_agg((e.oid, e.enumlabel)::text, ' ' ORDER BY e.oid) FROM pg_enum AS e
                WHERE e.enumtypid = ANY (ARRAY(SELECT atttypid FROM col)))"""
_HASH = "left(encode(sha256(convert_to(concat_ws(E'\\n', {of}), 'UTF8')), 'hex'), 16)"
_OF_TABLE = {"regclass": "$1", "names": "$2", "whole": "$3"}
PREPARE_TABLE = f"""
    PREPARE rollcall_table (text, text[], boolean) AS {_DESCRIBED.format(**_OF_TABLE)}
    SELECT {_HASH.format(of=f"{_PARTS.format(regclass='$1')}, {_SHAPE}")}, coalesce(bool_or(misordered), false) FROM col
"""
TABLE = "EXECUTE rollcall_table (%s, %s, %s)"
# The same, not hashed into one: its columns and labels, and its parts. Only for a table that has changed.
PARTS = f"""{_DESCRIBED.format(regclass="%(regclass)s", names="%(names)s", whole="%(whole)s")}
    SELECT {_HASH.format(of=_SHAPE)}, {_PARTS.format(regclass="%(regclass)s")} FROM col
"""
# Which of these parts, that are in the table no longer, are being retired: `ingest_service.retaining` says so in a comment, before
# it detaches them.
RETIRED = f"""
    SELECT oid::int8 FROM unnest(%s::oid[]) AS gone (oid)
    WHERE starts_with(obj_description(oid, 'pg_class'), '{partitions.RETIRED}')
"""
# All that were detached, and are still there.
RETIRING = f"""
    SELECT c.relname::text FROM pg_description AS d JOIN pg_class AS c ON c.oid = d.objoid
    WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND NOT c.relispartition
      AND starts_with(d.description, '{partitions.RETIRED}') ORDER BY 1
"""
# What is known of these new parts. A partitioned one has no rows of its own. Another one is in pg_inherits if it was attached
# before the snapshot: then the snapshot shows all rows that it had then.
NEW_PARTS = """
    SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind = 'p',
           c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid)
           AND has_table_privilege(c.oid, 'SELECT')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = ANY (%s::oid[])
"""
IS_EMPTY = "SELECT NOT EXISTS (SELECT FROM {part})"
# The current role, if row-level security hides rows of the table from it.
ROW_SECURITY = "SELECT current_user::text WHERE row_security_active(%s::regclass)"
# The catalog's facts about a table, for `catalog`.
COLUMNS = f"""
    SELECT a.attname::text, t.typname::text, t.typtype, t.typnamespace = 'pg_catalog'::regnamespace, a.attgenerated,
           coalesce(o.collisdeterministic, true), {RECORDED}, {ACTUAL}, o.collprovider = 'd',
           coalesce(quote_ident(o.collnamespace::regnamespace::text) || '.' || quote_ident(o.collname), '')
    FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid {COLLATED}
    WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
"""
# The columns and expressions of each index in order.
INDEXES = f"""
    SELECT {triggers.INDEXED_COLUMNS}, pg_get_expr(i.indpred, i.indrelid)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS m ON m.oid = c.relam
    WHERE i.indrelid = %s::regclass AND m.amname = 'btree' AND i.indisvalid AND i.indislive
"""
# Rollcall's triggers before an update of a row (bits of tgtype: 1 row, 2 before, 16 update), and whether they are enabled.
STAMPS = """
    SELECT tgenabled FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal AND tgtype & 19 = 19
        AND (tgname = 'rollcall_stamp_xact' OR starts_with(tgname, 'zzz_rollcall_'))
"""
# Whether there are departures, and this role may read them: see shared_models.triggers.
HAS_DEPARTURES = """
    SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'rollcall_triggers' AND c.relname = 'departure'
"""
# Which of these counters have departures with an xact at or above `since`, which each counter has its own of; by the same index.
DEPARTING = """
    SELECT counter FROM unnest(%s::text[], %s::bigint[]) AS asked (counter, since) WHERE EXISTS
        (SELECT FROM rollcall_triggers.departure AS d WHERE d.counter = asked.counter AND d.xact >= asked.since)
"""
# How many texts of members the departures up to each one have, by the index on (counter, xact). One departure may have
# many members, and its array has all of their texts.
_DEPARTED = """
    SELECT xact, element, sum(cardinality(element)) OVER (ORDER BY xact) AS texts
    FROM rollcall_triggers.departure WHERE counter = %s AND xact >= %s AND xact < %s
"""
# The end of a batch of this many texts, and its departures: "all" instead of those beyond the limit.
DEPARTED_END = f"SELECT xact FROM ({_DEPARTED}) AS noted WHERE texts > %s ORDER BY xact LIMIT 1"
DEPARTED = f"SELECT DISTINCT CASE WHEN texts <= %s THEN element END FROM ({_DEPARTED}) AS noted"
# About how many members one batch has: the questions to the table take about a second.
BATCH_DEPARTURES = 20_000
# If one batch, that is one transaction, has more members than this, a reconcile is quicker.
MOST_DEPARTED = 200_000


def standpoint(*, by_function: bool) -> str:
    """STANDPOINT, for a role that may call the function, or for one that reads the statistics itself."""
    return STANDPOINT.replace(RECEIVED_SQL, RECEIVED_BY_FUNCTION) if by_function else STANDPOINT


def described_by(counter: Counter) -> tuple[str, tuple[str, ...], bool]:
    """What TABLE describes for this counter: the table, its columns, and whether all of them matter."""
    return triggers.relation(counter.table), tuple(sorted(triggers.columns_of(counter))), bool(counter.where)


def identifier(*names: str) -> Identifier:
    """A name in a statement that takes parameters: psycopg2 would read a % in it as the place of one."""
    return Identifier(*(name.replace("%", "%%") for name in names))


def label_of(counter: Counter, name: str, value: Composable) -> Composed:
    """A text as the enum that this column has."""
    return SQL(LABEL).format(
        regclass=Literal(triggers.relation(counter.table).replace("%", "%%")),
        name=Literal(name.replace("%", "%%")),
        value=value,
        row=identifier(counter.table.schema, counter.table.relation),
        column=identifier(name),
    )


def fill_in(statement: str, counter: Counter, terms: Sequence[Term] | None = None, **more: Composable) -> Composed:
    """One of the statements above, for this counter, or for only some of its terms."""
    terms = counter.terms if terms is None else terms
    walks_back = counter.storage is Storage.LAST_SEEN
    key = terms[: len(counter.fields)] if walks_back else terms
    comma, conjunction = SQL(", "), SQL(" AND ")
    # psycopg2 gives texts and numbers as `members.encode` takes them. For other types Postgres makes the text.
    as_text = [SQL("" if each.type in PLAIN else "::text") for each in terms]

    def made(of: Sequence[Term], row: str = "") -> list[Composable]:
        return [SQL(each.sql(row).replace("%", "%%")) for each in of]

    def named(of: Sequence[Term], row: str = "") -> list[Composable]:
        return [SQL(row) + identifier(each.name) for each in of]

    down = SQL(" DESC" if walks_back else "")
    names = comma.join(named(terms))
    condition = [SQL(f"({counter.where})".replace("%", "%%"))] if counter.where else []
    filled = dict.fromkeys(each.column for each in counter.terms)
    arrays = [SQL(f"%s::{ARRAYS.get(each.type, each.type)}[]") for each in terms]
    equal = [
        SQL("{} = {}").format(t, label_of(counter, each.column, v) if each.type == "enum" else v)
        for t, v, each in zip(made(terms, "t."), named(terms, "v."), terms, strict=True)
    ]
    known = {
        "terms": comma.join(
            SQL("{} AS {}").format(value, name) for value, name in zip(made(terms), named(terms), strict=True)
        ),
        "names": names,
        "texts": comma.join(map(add, named(terms), as_text)),
        "table": identifier(counter.table.schema, counter.table.relation),
        "counts": conjunction.join([*(SQL("{} IS NOT NULL").format(identifier(name)) for name in filled), *condition]),
        "key": comma.join(made(key)),
        "marks": comma.join([SQL("%s")] * len(key)),
        "walked": comma.join(named(key, "w.")),
        "beyond": SQL("<" if walks_back else ">"),
        "order": comma.join(each + down for each in made(terms)),
        "distinct": SQL("DISTINCT ON ({}) {}").format(comma.join(named(key)), names)
        if walks_back
        else SQL("DISTINCT ") + names,
        "first": SQL("ORDER BY ") + comma.join(each + down for each in named(terms)) if walks_back else SQL(""),
        "ordered": comma.join(each + down for each in named(key, "members.")),
        "values": comma.join(map(add, named(terms, "v."), as_text)),
        "unnest": SQL("unnest({})").format(comma.join(arrays)),
        "joined": conjunction.join([*equal, *condition]),
    }
    return SQL(statement).format(**known, **more)
