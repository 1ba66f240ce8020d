"""The SQL of a table that is partitioned by month: what partitions there are, how they are made ahead, how a table becomes one.

The partitions are ranges of `create_time`, which the database writes. There is no default partition: to attach a partition,
Postgres would have to read all of it. Rows from before the first month lie in one partition, NAME_past, which has no lower bound. A
row from behind the last month is refused by Postgres, and its transaction with it. So the months are made ahead: by a function
that belongs to the table's owner, and that ingest may call and nobody else.

The function makes a partition by CREATE TABLE … LIKE and ATTACH, and not by PARTITION OF, which would lock out everybody who
reads or writes the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.utils import CursorWrapper
from psycopg2.extensions import cursor as PsycopgCursor

from shared_models import triggers
from shared_models.declarations import Table
from shared_models.triggers import Piece, literal, quote

Cursor: TypeAlias = PsycopgCursor | CursorWrapper

COLUMN = "create_time"
MONTHS_AHEAD = 3
# While a table of many rows is about to become partitioned, this says to Postgres that no row lies behind the past. It would refuse
# rows from then on. So it ends at least so many months later, and the function of the table drops it before that.
PAST_CHECK = "rollcall_past"
PAST_MONTHS = 2
DROP_PAST_CHECK_BEFORE = "interval '7 days'"

# The comment of a partition that is being retired begins with this: see `ingest_service.retaining`.
RETIRED = "Rollcall retires this partition"

# The partitions of one level: oid, schema, name, whether it is being detached, the first moment that it holds, the first that it
# does not. (The bounds are read in the session's own time zone and format, in which Postgres has just written them.)
BOUNDS = r"""
    SELECT c.oid::int8 AS oid, n.nspname::text AS schema, c.relname::text AS name, i.inhdetachpending AS pending,
           coalesce(substring(bound FROM 'FROM \(''([^'']+)''\)')::timestamptz, '-infinity') AS begins,
           coalesce(substring(bound FROM 'TO \(''([^'']+)''\)')::timestamptz, 'infinity') AS ends
    FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS bound
    WHERE i.inhparent = {regclass}::regclass AND starts_with(bound, 'FOR VALUES FROM')
"""
MONTHS = f"""
    SELECT n, date_trunc('month', now(), 'UTC') + n * interval '1 month' AS month FROM generate_series(0, {MONTHS_AHEAD}) AS n
"""
# How many of the months to come have a partition, without a gap; NULL: the table is not partitioned by create_time.
AHEAD = """
    SELECT CASE WHEN is_by_time THEN (SELECT coalesce(min(n), {months} + 1) - 1 FROM ({each_month}) AS wanted
        WHERE NOT EXISTS (SELECT FROM ({bounds}) AS p WHERE NOT pending AND begins <= month AND month < ends)) END
    FROM (SELECT EXISTS (SELECT FROM pg_partitioned_table AS t JOIN pg_attribute AS a ON a.attrelid = t.partrelid
        WHERE t.partrelid = to_regclass({regclass}) AND t.partstrat = 'r' AND t.partnatts = 1 AND a.attnum = t.partattrs[0]
        AND a.attname = {column}) AS is_by_time) AS table_
"""
HAS_PAST_CHECK = "SELECT true FROM pg_constraint WHERE conrelid = to_regclass({regclass}) AND conname = {check}"


def bounds(regclass: str) -> str:
    """BOUNDS of a table that SQL knows as this literal."""
    return BOUNDS.format(regclass=regclass)


def ahead(table: Table) -> str:
    """The statement AHEAD."""
    regclass = literal(triggers.relation(table))
    return AHEAD.format(
        months=MONTHS_AHEAD,
        each_month=MONTHS,
        bounds=bounds(regclass),
        regclass=regclass,
        column=literal(COLUMN),
    )


def has_past_check(table: Table) -> str:
    """Whether somebody has begun to partition the table."""
    return HAS_PAST_CHECK.format(regclass=literal(triggers.relation(table)), check=literal(PAST_CHECK))


def function_text(table: Table) -> str:
    """The name of the function that makes partitions ahead, as the catalog has it."""
    return triggers.shorten(f"rollcall_partitions_{table.relation}", f"{table.schema}.{table.relation}")


def function_name(table: Table) -> str:
    """The same, quoted, with its arguments."""
    return f"{quote(table.schema)}.{quote(function_text(table))}()"


def past_of(table: Table) -> str:
    """The name of the partition without a lower bound."""
    return f"{table.relation}_past"


def function(table: Table) -> Piece:
    """The function that makes what is missing of this month and the next three. Several sessions may call it at once.

    It asks first, and then again under a lock that makes the others wait, and no reader or writer. A table that is not partitioned
    stays as it is.
    """
    name, regclass, place = function_name(table), literal(triggers.relation(table)), triggers.relation(table)
    made = triggers.of_statements(table, ("part", "part"))
    begin = f"{quote(table.schema)}.{quote(table.relation)[:-1]}_"
    lines = [
        "DECLARE",
        "    missing timestamptz;",
        "    part text;",
        "    made text;",
        "    asked_again boolean := false;",
        "BEGIN",
        f"    IF NOT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = {regclass}::regclass) THEN",
        "        -- Somebody has begun to partition the table, and has not ended it: rows would soon be refused.",
        f"        IF EXISTS (SELECT FROM pg_constraint WHERE conrelid = {regclass}::regclass AND conname = '{PAST_CHECK}'",
        "                   AND substring(pg_get_constraintdef(oid) FROM '''([^'']+)''')::timestamptz",
        f"                       < now() + {DROP_PAST_CHECK_BEFORE}) THEN",
        f"            ALTER TABLE {place} DROP CONSTRAINT {PAST_CHECK};",
        "        END IF;",
        "        RETURN;",
        "    END IF;",
        "    LOOP",
        f"        SELECT min(month) INTO missing FROM ({MONTHS}) AS wanted WHERE NOT EXISTS (",
        f"            SELECT FROM ({bounds(regclass)}) AS there WHERE begins <= month AND month < ends);",
        "        EXIT WHEN missing IS NULL;",
        "        IF NOT asked_again THEN",
        f"            LOCK TABLE ONLY {place} IN SHARE UPDATE EXCLUSIVE MODE;",
        "            asked_again := true;",
        "            CONTINUE;",
        "        END IF;",
        f"        part := {literal(begin)} || to_char(missing, 'YYYY_MM') || '\"';",
        f"        EXECUTE format('CREATE TABLE %s (LIKE {place.replace('%', '%%')} INCLUDING DEFAULTS INCLUDING GENERATED "
        "INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION INCLUDING STATISTICS)', part);",
        *(f"        {each}" for each in copy_grants(regclass)),
        f"        IF to_regprocedure({literal(triggers.function_name(table) + '()')}) IS NOT NULL THEN",
        *(f"            {each}" for piece in made for each in make_on_part(piece)),
        "        END IF;",
        f"        EXECUTE format('ALTER TABLE {place.replace('%', '%%')} ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',",
        "                       part, missing, missing + interval '1 month');",
        "    END LOOP;",
        "END",
    ]
    settings = " ".join([triggers.PATH, *triggers.CLOCK, "SET lock_timeout = '2s'"])
    create = "\n".join(
        [
            f"CREATE OR REPLACE FUNCTION {name} RETURNS void",
            f"LANGUAGE plpgsql SECURITY DEFINER {settings} AS {triggers.body(lines)}",
        ]
    )
    return Piece("FUNCTION", function_text(table), name, create, f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")


def copy_grants(regclass: str) -> Iterator[str]:
    """PL/pgSQL: whoever may read all of the table may read the partition. Manage reads partitions by themselves, too."""
    yield "FOR made IN SELECT format('GRANT SELECT ON %s TO %s', part,"
    yield "                          CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(rolname) END)"
    yield "    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) LEFT JOIN pg_roles AS r ON r.oid = grantee"
    yield f"    WHERE c.oid = {regclass}::regclass AND privilege_type = 'SELECT' AND grantee <> relowner"
    yield "LOOP EXECUTE made; END LOOP;"


def make_on_part(piece: Piece) -> Iterator[str]:
    """PL/pgSQL: a trigger of statements on the partition, with the same mark that `adopt` would give it."""
    create, then = (f'replace({literal(text)}, \'"part"."part"\', part)' for text in (piece.create, piece.then))
    yield f"EXECUTE {create};"
    if piece.then:
        yield f"EXECUTE {then};"
    yield f"made := left(encode(sha256(convert_to({create} || {then}, 'UTF8')), 'hex'), 16);"
    yield f"EXECUTE format('COMMENT ON TRIGGER {piece.name} ON %s IS %L', part, {literal(triggers.MARK)} || made);"


def leaves(schema_editor: BaseDatabaseSchemaEditor, place: str) -> list[str]:
    """The names of the partitions that hold rows, of a table in the schema public; none if it is not partitioned."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(
            """SELECT c.relname FROM pg_partition_tree(%s) AS t JOIN pg_class AS c ON c.oid = t.relid
               WHERE t.isleaf AND c.relkind = 'r' ORDER BY 1""",
            [place],
        )
        return [name for (name,) in cursor.fetchall()]


def is_invalid(schema_editor: BaseDatabaseSchemaEditor, index: str) -> bool:
    """Whether somebody has begun to make this index, and has not ended it."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT true FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid", [index])
        return bool(cursor.fetchall())


def first_of_month(moment: datetime, months: int = 0) -> datetime:
    """The beginning of the month (UTC), or of one so many months later."""
    year, month = divmod(moment.astimezone(UTC).year * 12 + moment.astimezone(UTC).month - 1 + months, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC)


class CannotPartition(Exception):
    """Something refers to the table, and would refer to its past alone. The text says what."""


# What names the table by its oid, and so would go on with the partition that it becomes.
REFERRERS = """
    SELECT DISTINCT format('the view %%s', r.ev_class::regclass) FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
    UNION SELECT format('the foreign key %%s of %%s', conname, conrelid::regclass) FROM pg_constraint
    WHERE contype = 'f' AND %(oid)s IN (confrelid, conrelid)
    UNION SELECT format('the publication %%s', p.pubname) FROM pg_publication_rel AS l JOIN pg_publication AS p ON p.oid = l.prpubid
    WHERE l.prrelid = %(oid)s
    UNION SELECT format('the policy %%s', polname) FROM pg_policy WHERE polrelid = %(oid)s
    UNION SELECT format('the table %%s, which inherits', i.inhrelid::regclass) FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = %(oid)s AND NOT c.relispartition
    ORDER BY 1
"""
INDEXES = """
    SELECT c.relname, i.indisprimary, pg_get_indexdef(i.indexrelid) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = %(oid)s AND i.indislive ORDER BY c.relname
"""
TRIGGERS = """
    SELECT tgname, pg_get_triggerdef(oid), tgtype & 1 = 1, tgenabled, obj_description(oid, 'pg_trigger')
    FROM pg_trigger WHERE tgrelid = %(oid)s AND NOT tgisinternal ORDER BY tgname
"""
STATISTICS = """
    SELECT n.nspname, s.stxname, pg_get_statisticsobjdef(s.oid) FROM pg_statistic_ext AS s
    JOIN pg_namespace AS n ON n.oid = s.stxnamespace WHERE s.stxrelid = %(oid)s ORDER BY 2
"""
GRANTS = """
    SELECT privilege_type, NULL, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, is_grantable
    FROM pg_class CROSS JOIN LATERAL aclexplode(relacl) WHERE oid = %(oid)s AND grantee <> relowner
    UNION ALL
    SELECT privilege_type, attname::text, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
           is_grantable
    FROM pg_attribute CROSS JOIN LATERAL aclexplode(attacl) WHERE attrelid = %(oid)s
    ORDER BY 1, 2, 3
"""
LIKE = "INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING STORAGE INCLUDING COMPRESSION INCLUDING COMMENTS"
ENABLED = {"A": "ENABLE ALWAYS", "R": "ENABLE REPLICA", "D": "DISABLE"}


def key_of_past(table: Table) -> str:
    """The index that becomes the primary key of the past."""
    return f"{past_of(table)}_pkey"


def make_key(table: Table, concurrently: str = "") -> str:
    """The statement that makes that index."""
    return f"CREATE UNIQUE INDEX {concurrently} {quote(key_of_past(table))} ON {triggers.relation(table)} (id, {quote(COLUMN)})"


@dataclass(frozen=True, slots=True)
class Made:
    """What has been made on the table, apart from its columns: each as the catalog has it."""

    oid: int
    owner: str
    keys: list[str]  # the names of primary keys
    indexes: list[tuple[str, str]]  # name, statement
    triggers: list[tuple[str, str, bool, str, str | None]]  # name, statement, whether it is of rows, enabled, comment
    statistics: list[tuple[str, str, str]]  # schema, name, statement
    grants: list[tuple[str, str | None, str, bool]]  # right, column, to whom, whether they may grant it

    def again(self, place: str) -> Iterator[str]:
        """The statements that make it on another table, which is in its place."""
        yield f"ALTER TABLE {place} OWNER TO {quote(self.owner)}"
        yield from (statement.replace(" ON ONLY ", " ON ", 1) for _, statement in self.indexes)
        yield from (statement for _, _, statement in self.statistics)
        for name, statement, _, enabled, comment in self.triggers:
            yield statement
            if enabled in ENABLED:
                yield f"ALTER TABLE {place} {ENABLED[enabled]} TRIGGER {quote(name)}"
            if comment:
                yield f"COMMENT ON TRIGGER {quote(name)} ON {place} IS {literal(comment)}"
        for right, column, grantee, may_grant in self.grants:
            option = " WITH GRANT OPTION" if may_grant else ""
            yield f"GRANT {right}{listed(column)} ON {place} TO {grantee}{option}"


def listed(column: str | None) -> str:
    """The column of a right; nothing for the whole table."""
    return "" if column is None else f" ({quote(column)})"


def read_made(cursor: Cursor, table: Table) -> Made:
    """What has been made on the table. Raises CannotPartition."""
    place = triggers.relation(table)
    cursor.execute(
        "SELECT oid::int8, pg_get_userbyid(relowner) FROM pg_class WHERE oid = %s::regclass",
        [place],
    )
    ((oid, owner),) = cursor.fetchall()

    def ask(statement: str) -> list[Any]:
        cursor.execute(statement, {"oid": oid})
        return cursor.fetchall()

    referrers = [text for (text,) in ask(REFERRERS)]
    if referrers:
        raise CannotPartition(
            f"{table.schema}.{table.relation} is in use by {', '.join(referrers)}: drop that, and make it again"
        )
    indexes = ask(INDEXES)
    return Made(
        oid,
        owner,
        [name for name, is_primary, _ in indexes if is_primary],
        [(name, made) for name, is_primary, made in indexes if not is_primary and name != key_of_past(table)],
        ask(TRIGGERS),
        ask(STATISTICS),
        ask(GRANTS),
    )


def swap(cursor: Cursor, table: Table, until: datetime) -> list[str]:
    """The statements that put a partitioned table in the table's place, with the table as its past, up to `until`. No row moves.

    Run them in one transaction: they lock the table for a moment. The index `key_of_past` has to be there, and the table
    has to be empty, or to have the valid constraint PAST_CHECK: then Postgres does not read it. Raises CannotPartition.
    """
    place, old, schema = triggers.relation(table), past_of(table), quote(table.schema)
    past, made = f"{schema}.{quote(old)}", read_made(cursor, table)
    sequence, key = f"{table.relation}_id_seq", quote(key_of_past(table))
    found = [
        f"LOCK TABLE {place} IN ACCESS EXCLUSIVE MODE",
        # Those of the partitioned table go to its partitions.
        *(f"DROP TRIGGER {quote(name)} ON {place}" for name, _, is_of_rows, *_ in made.triggers if is_of_rows),
        # Each partition has its own: autovacuum analyzes these, and never a partitioned table.
        *(
            f"ALTER STATISTICS {quote(of)}.{quote(name)} RENAME TO {quote(renamed(table, name))}"
            for of, name, _ in made.statistics
        ),
        f"ALTER TABLE {place} RENAME TO {quote(old)}",
        f"ALTER SEQUENCE {schema}.{quote(sequence)} RENAME TO {quote(old + '_id_seq')}",
        *(f"ALTER TABLE {past} DROP CONSTRAINT {quote(name)}" for name in made.keys),
        f"ALTER TABLE {past} ADD CONSTRAINT {key} PRIMARY KEY USING INDEX {key}",
        *(f"ALTER INDEX {schema}.{quote(name)} RENAME TO {quote(renamed(table, name))}" for name, _ in made.indexes),
        f"CREATE TABLE {place} (LIKE {past} {LIKE}) PARTITION BY RANGE ({quote(COLUMN)})",
        f"ALTER TABLE {place} ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (SEQUENCE NAME {schema}.{quote(sequence)})",
        # Nobody can take a number meanwhile.
        f"SELECT setval({literal(f'{schema}.{quote(sequence)}')}, last_value, is_called) FROM {schema}.{quote(old + '_id_seq')}",
        f"ALTER TABLE {past} ALTER COLUMN id DROP IDENTITY",
        f"ALTER TABLE {place} ADD CONSTRAINT {quote(table.relation + '_pkey')} PRIMARY KEY (id, {quote(COLUMN)})",
        *made.again(place),
        *(
            f"REVOKE {right}{listed(column)} ON {past} FROM {grantee}"
            for right, column, grantee, _ in made.grants
            if right != "SELECT" or column is not None
        ),
        f"ALTER TABLE {place} ATTACH PARTITION {past} FOR VALUES FROM (MINVALUE) TO ({literal(until.isoformat())})",
        f"ALTER TABLE {past} DROP CONSTRAINT IF EXISTS {PAST_CHECK}",
    ]
    if any(name.startswith(triggers.PREFIX) for name, *_ in made.triggers):
        found += [text for piece in triggers.of_statements(table, (table.schema, old)) for text in piece.statements()]
    return [*found, f"SELECT {function_name(table)}"]


def swap_back(cursor: Cursor, table: Table) -> list[str]:
    """The statements that put a table without partitions in the table's place, for a migration backwards. They copy every row, and
    lock the table meanwhile. Raises CannotPartition."""
    place, made, schema = triggers.relation(table), read_made(cursor, table), quote(table.schema)
    name, numbers = quote(table.relation + "_whole"), quote(table.relation + "_whole_id_seq")
    whole, sequence = f"{schema}.{name}", quote(table.relation + "_id_seq")
    return [
        f"LOCK TABLE {place} IN ACCESS EXCLUSIVE MODE",
        f"CREATE TABLE {whole} (LIKE {place} {LIKE})",
        f"INSERT INTO {whole} SELECT * FROM {place}",
        f"ALTER TABLE {whole} ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (SEQUENCE NAME {schema}.{numbers})",
        f"SELECT setval({literal(f'{schema}.{numbers}')}, last_value, is_called) FROM {schema}.{sequence}",
        f"DROP TABLE {place}",
        f"ALTER TABLE {whole} RENAME TO {quote(table.relation)}",
        f"ALTER SEQUENCE {schema}.{numbers} RENAME TO {sequence}",
        f"ALTER TABLE {place} ADD CONSTRAINT {quote(table.relation + '_pkey')} PRIMARY KEY (id)",
        *made.again(place),
    ]


def renamed(table: Table, index: str) -> str:
    """The name of an index of the table when that is the past."""
    rest = index.removeprefix(table.relation)
    return past_of(table) + rest if rest != index else triggers.shorten(f"{past_of(table)}_{index}", index)
