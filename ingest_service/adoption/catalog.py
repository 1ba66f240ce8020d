"""What the database says of a table: read, and not judged (see `fitness`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg2.extensions import cursor as Cursor

from shared_models import triggers
from shared_models.declarations import TYPE_NAMES, Counter

# The types of Postgres that a member can be made of, under their names in rollcall.toml.
TYPES = {name: name for name in ("text", "varchar", "uuid", "date", "timestamptz")} | TYPE_NAMES


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `type` as people write it; `declared` as rollcall.toml does, "" if it cannot be counted by."""

    name: str
    type: str
    declared: str
    not_null: bool
    generated: str  # "", "s" stored, "v" virtual
    is_deterministic: bool
    default: str | None
    made_of: tuple[str, ...]  # for a generated one: the columns of its expression


@dataclass(frozen=True, slots=True)
class Relation:
    """One table, or what has been named instead of one."""

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    owner: str
    is_owned: bool  # whether the connected role has the rights of the owner
    is_partition: bool
    inherits: bool
    has_row_security: bool
    columns: Mapping[str, Column]
    partitions: tuple[tuple[str, str, str], ...]  # schema, name, kind: of each level, parents first

    def stored(self, names: Sequence[str]) -> tuple[str, ...]:
        """These columns, generated ones as what they are made of: they have no value yet when a row's triggers look."""
        found = (self.columns[name].made_of if self.columns[name].generated else (name,) for name in names)
        return tuple(dict.fromkeys(name for names in found for name in names))


RELATION = """
    SELECT c.oid::int8, n.nspname, c.relname, c.relkind, c.relpersistence, pg_get_userbyid(c.relowner),
           pg_has_role(c.relowner, 'USAGE'), c.relispartition,
           NOT c.relispartition AND c.relkind = 'r'
           AND EXISTS (SELECT FROM pg_inherits AS i WHERE c.oid IN (i.inhrelid, i.inhparent)),
           c.relrowsecurity
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = %s
"""
COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), t.typname, t.typtype, t.typnamespace = 'pg_catalog'::regnamespace,
           a.attnotnull, a.attgenerated, coalesce(o.collisdeterministic, true), pg_get_expr(d.adbin, d.adrelid),
           ARRAY(SELECT DISTINCT b.attname::text FROM pg_depend AS p JOIN pg_attribute AS b
                 ON b.attrelid = p.refobjid AND b.attnum = p.refobjsubid
                 WHERE p.refclassid = 'pg_class'::regclass AND p.refobjid = a.attrelid AND p.refobjsubid <> a.attnum
                   AND p.refobjsubid > 0
                   AND (p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
                        OR p.classid = 'pg_class'::regclass AND p.objid = a.attrelid AND p.objsubid = a.attnum))
    FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_collation AS o ON o.oid = a.attcollation
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
PARTITIONS = """
    SELECT n.nspname, c.relname, c.relkind FROM pg_partition_tree(%s) AS t
    JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE t.level > 0 ORDER BY t.level, 1, 2
"""
# Ours on the table and its partitions; a clone is how a trigger of rows stands on a partition.
TRIGGERS = """
    SELECT t.tgname, n.nspname, c.relname, coalesce(obj_description(coalesce(nullif(t.tgparentid, 0), t.oid), 'pg_trigger'), ''),
           t.tgenabled, t.tgparentid <> 0
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE NOT t.tgisinternal AND starts_with(t.tgname, %s)
      AND c.oid IN (SELECT relid FROM pg_partition_tree(%s) UNION SELECT %s::oid)
"""
# Triggers of rows that change what will be written (bits of tgtype: 1 row, 2 before, 4 insert, 16 update).
BEFORE_ROWS = """
    SELECT DISTINCT t.tgname FROM pg_trigger AS t
    WHERE NOT t.tgisinternal AND t.tgtype & 3 = 3 AND t.tgtype & 20 <> 0 AND NOT starts_with(t.tgname, %s)
      AND t.tgrelid IN (SELECT relid FROM pg_partition_tree(%s) UNION SELECT %s::oid)
    ORDER BY 1
"""
FUNCTION = """
    SELECT coalesce(obj_description(p.oid, 'pg_proc'), ''), pg_get_userbyid(p.proowner)
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = %s AND p.proname = %s AND p.pronargs = 0
"""
# Those that our triggers on the table and its partitions run, and no other table's do.
FUNCTIONS = """
    WITH ours AS (SELECT relid FROM pg_partition_tree(%s) UNION SELECT %s::oid)
    SELECT n.nspname, p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgfoid = p.oid AND starts_with(t.tgname, %s) AND t.tgrelid IN (TABLE ours))
      AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgfoid = p.oid AND t.tgrelid NOT IN (TABLE ours))
      AND starts_with(p.proname, 'rollcall_')
    ORDER BY 1, 2
"""
# The publications that send all columns of the table, or of a partition of it.
PUBLISHED = """
    SELECT DISTINCT p.pubname FROM pg_publication AS p LEFT JOIN pg_publication_rel AS r ON r.prpubid = p.oid
    LEFT JOIN pg_publication_namespace AS n ON n.pnpubid = p.oid
    WHERE p.puballtables OR n.pnnspid = (SELECT relnamespace FROM pg_class WHERE oid = %s)
       OR r.prattrs IS NULL AND r.prrelid IN (SELECT relid FROM pg_partition_tree(%s) UNION SELECT %s::oid)
    ORDER BY 1
"""
STATISTICS = """
    SELECT n.nspname, s.stxname, coalesce(obj_description(s.oid, 'pg_statistic_ext'), ''),
           ARRAY(SELECT a.attname::text FROM pg_attribute AS a
                 WHERE a.attrelid = s.stxrelid AND a.attnum = ANY (s.stxkeys) ORDER BY a.attname::text COLLATE "C")
    FROM pg_statistic_ext AS s JOIN pg_namespace AS n ON n.oid = s.stxnamespace
    WHERE s.stxrelid = %s AND 'd' = ANY (s.stxkind) AND s.stxexprs IS NULL
"""
INDEXES = f"""
    SELECT n.nspname, c.relname, i.indisvalid AND i.indisready, i.indpred IS NULL,
           coalesce(obj_description(c.oid, 'pg_class'), ''), {triggers.INDEXED_COLUMNS}
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_am AS m ON m.oid = c.relam
    WHERE i.indrelid = %s AND m.amname = 'btree' AND i.indislive
"""


def find(cursor: Cursor, name: str) -> int | None:
    """The oid of what SQL would find by this name, which may be quoted and have a schema."""
    cursor.execute("SELECT to_regclass(%s)::oid::int8", [name])
    ((oid,),) = cursor.fetchall()
    return None if oid is None else int(oid)


def read_relation(cursor: Cursor, oid: int) -> Relation:
    """The table with its columns and partitions."""
    cursor.execute(RELATION, [oid])
    (about,) = cursor.fetchall()
    cursor.execute(COLUMNS, [oid])
    columns = {}
    for name, shown, type_, kind, is_of_postgres, *rest, made_of in cursor.fetchall():
        declared = "enum" if kind == "e" else TYPES.get(type_, "") if kind == "b" and is_of_postgres else ""
        columns[name] = Column(*(name, shown, declared, *rest, tuple(made_of)))
    cursor.execute(PARTITIONS, [oid])
    return Relation(*(*about, columns, tuple(cursor.fetchall())))


def filtered_by(cursor: Cursor, relation: Relation, counter: Counter) -> tuple[str, ...]:
    """The columns in the counter's condition, as Postgres finds them: it makes the counter's index over an empty copy.

    If Postgres refuses the condition, the caller gets its error. Nothing of this stays.
    """
    # As it stands: nothing may follow WHERE, so what Postgres takes is one condition, and is one in parentheses, too.
    copy = triggers.index("pg_temp", "rollcall_copy", counter.terms, counter.where)
    table = f"{triggers.quote(relation.schema)}.{triggers.quote(relation.name)}"
    cursor.execute("BEGIN")
    try:
        cursor.execute(f"CREATE TEMPORARY TABLE rollcall_copy (LIKE {table})")
        cursor.execute(copy.create)
        cursor.execute(
            """SELECT a.attname FROM pg_depend AS d JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
               WHERE d.classid = 'pg_class'::regclass AND d.objid = %s::regclass AND d.refclassid = 'pg_class'::regclass
                 AND d.refobjid = 'pg_temp.rollcall_copy'::regclass""",
            [f"pg_temp.{triggers.quote(copy.name)}"],
        )
        return tuple(name for (name,) in cursor.fetchall() if name not in counter.fields)
    finally:
        cursor.execute("ROLLBACK")
