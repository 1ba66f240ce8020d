"""Makes a table of many rows a partitioned one, while rows come in. No row moves: the table becomes the first partition, its past.

1. The index of the key that a partitioned table has to have, (id, create_time), is built CONCURRENTLY.
2. A constraint says that no row is from the month after next, or later. It is added without looking at the rows (NOT VALID),
   and then validated, which reads the table and blocks nobody. Postgres needs it to attach the table without reading it under
   a lock.
3. One short transaction renames the table, puts a partitioned one in its place, and attaches the first to the second.

Each step looks at what is there. So the same command goes on where it was stopped, or killed. In between the table is as good as
before: only the constraint would refuse rows one day, and the function of the table (`shared_models.partitions`) drops it in time.

The keeper sees the same parts as before, and new ones that are empty. So nothing has to be read again
(`manage_service.protocol.changes`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from psycopg2.extensions import cursor as Cursor

from ingest_service.adoption.plan import Plan
from shared_models import partitions, triggers
from shared_models.declarations import Table
from shared_models.partitions import CannotPartition
from shared_models.triggers import literal, quote

# The constraint has to hold for at least so long when the table is attached; else it is made anew, for later.
LEAST_TIME = timedelta(days=14)
KEY = """
    SELECT i.indisvalid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = %s::regclass AND c.relname = %s
"""
PAST_CHECK = """
    SELECT convalidated, substring(pg_get_constraintdef(oid) FROM '''([^'']+)''')::timestamptz
    FROM pg_constraint WHERE conrelid = %s::regclass AND conname = %s
"""


def plan_of(cursor: Cursor, table: Table) -> Plan:
    """What is left to do; nothing if the table is partitioned. Raises CannotPartition."""
    name = triggers.relation(table)
    cursor.execute("SELECT relkind, now() FROM pg_class WHERE oid = to_regclass(%s)", [name])
    found = cursor.fetchall()
    if not found:
        raise CannotPartition(
            f"there is no table {table.schema}.{table.relation}: run python -m ingest_service migrate"
        )
    ((kind, now),) = found
    if kind == "p":
        return Plan(table)
    cursor.execute("SELECT to_regprocedure(%s) IS NULL", [partitions.function_name(table)])
    if cursor.fetchall() == [(True,)]:
        raise CannotPartition("the function that makes partitions is not there: run python -m ingest_service migrate")
    apart = [*missing_key(cursor, table)]
    check, until = missing_check(cursor, table, now)
    return Plan(table, tuple(partitions.swap(cursor, table, until)), (*apart, *check), apart_first=True)


def missing_key(cursor: Cursor, table: Table) -> list[str]:
    """The index, unless it is there and valid. What is left of an interrupted attempt is removed."""
    index = partitions.key_of_past(table)
    cursor.execute(KEY, [triggers.relation(table), index])
    found = cursor.fetchall()
    if found == [(True,)]:
        return []
    drop = [f"DROP INDEX CONCURRENTLY {quote(table.schema)}.{quote(index)}"] if found else []
    return [*drop, partitions.make_key(table, "CONCURRENTLY")]


def missing_check(cursor: Cursor, table: Table, now: datetime) -> tuple[list[str], datetime]:
    """The constraint, and until when the past lasts."""
    alter, name = f"ALTER TABLE {triggers.relation(table)}", partitions.PAST_CHECK
    cursor.execute(PAST_CHECK, [triggers.relation(table), name])
    found = cursor.fetchall()
    if found and found[0][1] > now + LEAST_TIME:
        ((is_valid, until),) = found
        return [] if is_valid else [f"{alter} VALIDATE CONSTRAINT {name}"], until
    until = partitions.first_of_month(now, partitions.PAST_MONTHS)
    bound = f"{quote(partitions.COLUMN)} < {literal(until.isoformat())}"
    statements = [f"{alter} DROP CONSTRAINT {name}"] if found else []
    statements += [f"{alter} ADD CONSTRAINT {name} CHECK ({bound}) NOT VALID", f"{alter} VALIDATE CONSTRAINT {name}"]
    return statements, until
