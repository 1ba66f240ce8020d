"""Whether a table can be counted, and by whom it can be adopted. Each refusal says what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg2
from psycopg2.extensions import cursor as Cursor

from ingest_service.adoption import catalog
from ingest_service.adoption.catalog import Column, Relation
from shared_models import triggers
from shared_models.declarations import TIMES, TYPES, Counter, Table


class CannotAdopt(Exception):
    """The table cannot be adopted like this. Nothing was changed."""


KINDS = {
    "v": "is a view: adopt the tables below it",
    "m": "is a materialized view: nothing says when its rows change",
    "f": "is a foreign table: its rows are in another database, where other transactions write them",
    "S": "is a sequence",
    "i": "is an index",
    "I": "is an index",
    "c": "is a type",
}
PERSISTENCE = {
    "t": "is a temporary table: no other session sees it",
    "u": "is unlogged, and not on a replica: ALTER TABLE … SET LOGGED first",
}


def check_relation(cursor: Cursor, relation: Relation) -> None:
    """The table itself, apart from any counter."""
    if cursor.connection.server_version < triggers.LEAST_VERSION:
        raise CannotAdopt(triggers.TOO_OLD)
    who = f"{relation.schema}.{relation.name}"
    if relation.kind not in ("r", "p"):
        raise CannotAdopt(f"{who} {KINDS.get(relation.kind, 'is not a table')}")
    if relation.persistence != "p":
        raise CannotAdopt(f"{who} {PERSISTENCE[relation.persistence]}")
    if relation.schema in ("pg_catalog", "information_schema", triggers.SCHEMA):
        raise CannotAdopt(f"{who} is not a table of an application")
    if relation.is_partition:
        raise CannotAdopt(f"{who} is a partition: adopt the partitioned table, and its partitions are adopted with it")
    if relation.inherits:
        raise CannotAdopt(
            f"{who} inherits, or is inherited from, by INHERITS: triggers and indexes do not. Use partitions"
        )
    foreign = [f"{schema}.{name}" for schema, name, kind in relation.partitions if kind == "f"]
    if foreign:
        raise CannotAdopt(
            f"{who}: its partition {foreign[0]} is a foreign table, whose rows carry no xact of this database"
        )
    if not relation.is_owned:
        cursor.execute("SELECT current_user")
        ((user,),) = cursor.fetchall()
        raise CannotAdopt(
            f"{who} belongs to {relation.owner}, and {user} has no right to change it: "
            f"run this as {relation.owner}, or as a superuser"
        )
    check_xact(who, relation.columns.get("xact"))


def check_xact(who: str, column: Column | None) -> None:
    """A column of this name is ours, or nobody's."""
    if column and (column.type, column.not_null, column.default) != (
        "bigint",
        True,
        "((pg_current_xact_id())::text)::bigint",
    ):
        raise CannotAdopt(
            f"{who} has a column named xact that is not Rollcall's ({column.type}, default {column.default or 'none'}): "
            "rename it; Rollcall needs this name for the transaction that wrote the row"
        )


def check_schema(cursor: Cursor, relation: Relation) -> None:
    """Rights in schemas: the function and the indexes lie beside the table, the departures in a schema of their own."""
    cursor.execute(
        """SELECT current_user, current_database(), has_schema_privilege(%(schema)s, 'CREATE'),
                  rolsuper OR has_schema_privilege(%(owner)s, %(schema)s, 'CREATE'),
                  has_database_privilege(current_database(), 'CREATE'), current_setting('server_encoding')
           FROM pg_roles WHERE rolname = current_user""",
        {"schema": relation.schema, "owner": relation.owner},
    )
    ((user, database, may_make, owner_may_make, may_make_schemas, encoding),) = cursor.fetchall()
    if encoding == "SQL_ASCII":
        raise CannotAdopt(
            f"the encoding of the database {database} is SQL_ASCII, in which texts are bytes of no known encoding: "
            "restore a dump of it into a database with ENCODING 'UTF8'"
        )
    if may_make and not owner_may_make:
        raise CannotAdopt(
            f"{relation.owner}, which owns the table, has to own its function, too, and may make nothing in the schema "
            f"{relation.schema}: GRANT CREATE ON SCHEMA {relation.schema} TO {relation.owner}"
        )
    if not may_make:
        raise CannotAdopt(
            f"{user} may make nothing in the schema {relation.schema}: GRANT CREATE ON SCHEMA {relation.schema} TO {user}"
        )
    has_schema, departure = read_departure(cursor)
    if not has_schema:
        if not may_make_schemas:
            raise CannotAdopt(
                f"{user} may make no schema in the database {database}: GRANT CREATE ON DATABASE {database} TO {user}, "
                f"or have a superuser run CREATE SCHEMA {triggers.SCHEMA} AUTHORIZATION {user}"
            )
        return
    if departure is None:
        cursor.execute("SELECT has_schema_privilege(%s, 'CREATE')", [triggers.SCHEMA])
        if cursor.fetchall() != [(True,)]:
            raise CannotAdopt(
                f"the schema {triggers.SCHEMA} exists, is empty, and belongs to somebody else: adopt as a superuser"
            )
        return
    names = {column.name for column in catalog.read_relation(cursor, departure).columns.values()}
    if names != {"counter", "element", "xact", "create_time"}:
        raise CannotAdopt(f"{triggers.DEPARTURE} is not Rollcall's: it has the columns {', '.join(sorted(names))}")
    if not may_note(cursor, relation.owner) and not may_grant_on(cursor, departure):
        raise CannotAdopt(
            f"{relation.owner} may not write {triggers.DEPARTURE}, which another owner's table brought along. Have its owner "
            f"run: GRANT USAGE ON SCHEMA {triggers.SCHEMA} TO {relation.owner}; "
            f"GRANT INSERT ON {triggers.DEPARTURE} TO {relation.owner}"
        )


def read_departure(cursor: Cursor) -> tuple[bool, int | None]:
    """Whether the schema of the departures is there; the table's oid."""
    cursor.execute(triggers.FIND_DEPARTURE)
    ((has_schema, departure),) = cursor.fetchall()
    return has_schema, departure


def may_note(cursor: Cursor, role: str) -> bool:
    """Whether this role, to which a table's function belongs, may write departures."""
    cursor.execute(
        """SELECT has_schema_privilege(%s, n.oid, 'USAGE') AND has_table_privilege(%s, c.oid, 'INSERT')
           FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
           WHERE n.nspname = %s AND c.relname = 'departure'""",
        [role, role, triggers.SCHEMA],
    )
    return cursor.fetchall() == [(True,)]


def may_grant_on(cursor: Cursor, departure: int) -> bool:
    """Whether the connected role has the rights of the departures' owner."""
    cursor.execute("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = %s", [departure])
    return cursor.fetchall() == [(True,)]


def check_order(cursor: Cursor, relation: Relation) -> None:
    """Our triggers come last, so that they see the row as the application's triggers have changed it."""
    cursor.execute(catalog.BEFORE_ROWS, [triggers.PREFIX, relation.oid, relation.oid])
    later = [name for (name,) in cursor.fetchall() if name.encode() > triggers.PREFIX.encode()]
    if later:
        raise CannotAdopt(
            f"the trigger {later[0]} of {relation.schema}.{relation.name} would fire after Rollcall's ({triggers.PREFIX}…) and may "
            "change the row again: triggers fire in the order of their names, so rename it (ALTER TRIGGER … RENAME TO …)"
        )


def check_counter(cursor: Cursor, relation: Relation, table: Table, counter: Counter) -> tuple[str, ...]:
    """One counter's fields and condition. The columns by which its rows differ, in the order of the triggers."""
    who = f"counter {counter.name}"
    declared = {field.name: field.type for field in table.fields}
    columns = [each.column for each in counter.terms]
    for term in counter.terms:
        check_field(who, relation, term.column, declared.get(term.column), of_time=bool(term.unit))
    if not counter.where:
        return relation.stored(columns)
    cursor.execute("SELECT has_database_privilege(current_database(), 'TEMPORARY'), current_user, current_database()")
    ((may_copy, user, database),) = cursor.fetchall()
    if not may_copy:
        raise CannotAdopt(
            f"{who}: its condition is tried on an empty, temporary copy of the table, and {user} may make none: "
            f"GRANT TEMPORARY ON DATABASE {database} TO {user}"
        )
    try:
        filtered = catalog.filtered_by(cursor, relation, counter)
    except psycopg2.Error as error:
        said = str(error.diag.message_primary or error).strip()
        raise CannotAdopt(f"{who}: Postgres refuses its condition ({counter.where}): {said}") from error
    for name in filtered:
        if relation.columns[name].generated == "v":
            raise CannotAdopt(f"{who}: {name} in its condition is generated when it is read: triggers do not see it")
    return relation.stored((*columns, *filtered))


def check_field(who: str, relation: Relation, name: str, declared: str | None, *, of_time: bool = False) -> None:
    """A column that makes a member: equal has to mean equal bytes, in each session and on each server. Or a day (`of_time`)."""
    column = relation.columns.get(name)
    place = f"{relation.schema}.{relation.name}"
    if column is None:
        raise CannotAdopt(f"{who}: {place} has no column {name}; it has {', '.join(relation.columns)}")
    if name == "xact":
        raise CannotAdopt(f"{who}: xact is written by Rollcall's triggers, and makes no member")
    made, types = ("a day", TIMES) if of_time else ("a member", TYPES)
    if column.declared not in types:
        reason = "citext compares without case, and equal has to mean equal bytes" if column.type == "citext" else None
        known = ", ".join(types)
        raise CannotAdopt(
            f"{who}: {name} is {column.type}, and {made} cannot be made of that ({reason or f'of these it can: {known}'}). "
            "A stored generated column of such a type, made from it, can be counted"
        )
    if not column.is_deterministic:
        raise CannotAdopt(
            f"{who}: the collation of {name} is nondeterministic: different texts are equal in it, "
            "and equal has to mean equal bytes"
        )
    if column.generated == "v":
        raise CannotAdopt(f"{who}: {name} is generated when it is read, and triggers do not see it: make it STORED")
    if declared is not None and declared != column.declared:
        raise CannotAdopt(f"{who}: {name} is declared as {declared}, and {place} has it as {column.declared}")


def check(cursor: Cursor, relation: Relation, table: Table, counters: Sequence[Counter]) -> dict[str, tuple[str, ...]]:
    """All of it; for each counter the columns by which its rows differ."""
    check_relation(cursor, relation)
    check_schema(cursor, relation)
    check_order(cursor, relation)
    return {counter.name: check_counter(cursor, relation, table, counter) for counter in counters}
