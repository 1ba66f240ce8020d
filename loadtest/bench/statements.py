"""The cost of an application's own statements on an adopted table, compared with twins that have fewer parts of `adopt`."""

from __future__ import annotations

import io
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from psycopg2.extras import execute_values

from loadtest.bench import orders
from loadtest.bench.results import Report, Result
from loadtest.bench.world import World, connected, run_sql
from shared_models import declarations, triggers
from shared_models.declarations import Term

# The twins are equal except for their parts of `adopt`: each has those of the earlier ones, and one more.
PLAIN, COLUMN, INDEX, ADOPTED = "shop.plain", "shop.with_column", "shop.with_index", orders.TABLE
TABLES = (PLAIN, COLUMN, INDEX, ADOPTED)
# There are many short rounds: other work on the machine disturbs some of them, but not the median.
SHORT_ROUNDS = 20
SINGLES, BATCH_ROWS, COPY_ROWS, CHANGED_ROWS = 40, 1_000, 5_000, 2_000
GOALS = {"insert": 0.95, "copy": 0.95, "update": 0.8, "delete": 0.8}

# Runs one kind of statement on a table; returns the number of rows.
Kind = Callable[[Any, str], int]


def application(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """application.statements: rows a second, compared with the plain twin; each kind once a round on each table, in any order."""
    make_tables(world, table_rows)
    took: dict[str, dict[str, list[float]]] = {}
    draw = random.Random(1)
    # All tables have the same rows, so that a statement finds the same ones in each. Deletes remove the oldest.
    oldest = 1
    with connected(world.primary.url) as connection, connection.cursor() as cursor:
        for turn in range(-1, rounds * SHORT_ROUNDS):  # the first one warms up
            newest = newest_id(cursor)
            kinds = kinds_of(draw, oldest, newest)
            for name in draw.sample(sorted(kinds), len(kinds)):
                for table in draw.sample(TABLES, len(TABLES)):
                    began = time.perf_counter()
                    done = kinds[name](cursor, table)
                    seconds = time.perf_counter() - began
                    if turn >= 0:
                        took.setdefault(name, {}).setdefault(table, []).append(done / seconds)
            oldest += SINGLES + CHANGED_ROWS
            for table in (*TABLES, triggers.DEPARTURE):
                cursor.execute(f"VACUUM {table}")
    for name, found in sorted(took.items()):
        parts = ", ".join(f"{what} {ratio(found[table], found[PLAIN]):.2f}"
                          for what, table in (("with the column alone", COLUMN), ("and its index", INDEX)))  # fmt: skip
        pairs = list(zip(found[ADOPTED], found[PLAIN], strict=True))
        quarters = statistics.quantiles((value / against for value, against in pairs), n=4)
        note = f"{parts}; half of the rounds between {quarters[0]:.2f} and {quarters[2]:.2f}"
        goal = GOALS[name.replace(",", " ").split()[0]]
        report.add(
            Result(f"application.statements: {name}", "rows/s", "its plain twin, rows/s", pairs, goal=goal, note=note)
        )


def ratio(values: Iterable[float], against: Iterable[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(value / other for value, other in zip(values, against, strict=True))


def newest_id(cursor: Any) -> int:
    """Of the rows that are in each table."""
    cursor.execute(f"SELECT max(id) FROM {PLAIN}")
    return int(cursor.fetchone()[0])


def make_tables(world: World, table_rows: int) -> None:
    """Make the twins, with the indexes of the counters, as if the application had them."""
    for table in TABLES:
        orders.make(world, table)
        orders.fill(world, table_rows, table)
        orders.make_indexes(world, table)
    world.declare(orders.DECLARATIONS)
    orders.adopt(world)
    for table in (COLUMN, INDEX):
        schema, _, relation = table.partition(".")
        twin = declarations.Table("twin", schema, relation, ())
        for statement in triggers.column(twin):
            run_sql(world.primary.url, statement)
    run_sql(world.primary.url, triggers.index(schema, relation, (Term("xact", "bigint"),), "xact > 0").create)
    for table in TABLES:
        # VACUUM runs between the rounds, and not in the middle of one table's.
        run_sql(world.primary.url, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        run_sql(world.primary.url, f"VACUUM (ANALYZE) {table}")
    run_sql(world.primary.url, "CHECKPOINT")


def kinds_of(draw: random.Random, oldest: int, newest: int) -> dict[str, Kind]:
    """The statements of a round, by name. Updates do not touch the rows that the round deletes."""
    doomed = oldest + SINGLES
    first = draw.randrange(doomed + CHANGED_ROWS, max(doomed + CHANGED_ROWS + 1, newest - CHANGED_ROWS))
    ids = [draw.randint(doomed + CHANGED_ROWS, newest) for _ in range(SINGLES)]
    single, batch = orders.some(draw, SINGLES), orders.some(draw, BATCH_ROWS)
    lines = orders.as_copy(orders.some(draw, COPY_ROWS))
    email = f"moved{draw.randrange(10**6)}@example.org"

    def one_by_one(statement: str, parameters: Sequence[tuple[Any, ...]]) -> Kind:
        def run(cursor: Any, table: str) -> int:
            for each in parameters:
                cursor.execute(statement.format(table), each)
            return len(parameters)

        return run

    def at_once(statement: str, *parameters: Any) -> Kind:
        def run(cursor: Any, table: str) -> int:
            cursor.execute(statement.format(table), parameters)
            return int(cursor.rowcount)

        return run

    def insert_batch(cursor: Any, table: str) -> int:
        execute_values(cursor, f"INSERT INTO {table} ({orders.COLUMNS}) VALUES %s", batch, page_size=BATCH_ROWS)
        return BATCH_ROWS

    def copy(cursor: Any, table: str) -> int:
        cursor.copy_expert(f"COPY {table} ({orders.COLUMNS}) FROM STDIN", io.StringIO(lines))
        return COPY_ROWS

    between = "WHERE id >= %s AND id < %s"
    return {
        "insert, single": one_by_one(f"INSERT INTO {{}} ({orders.COLUMNS}) VALUES (%s, %s, %s, %s)", single),
        f"insert, {BATCH_ROWS:,} rows": insert_batch,
        f"copy, {COPY_ROWS:,} rows": copy,
        "update of nothing counted, single": one_by_one("UPDATE {} SET note = 'paid' WHERE id = %s", [(id_,) for id_ in ids]),
        f"update of nothing counted, {CHANGED_ROWS:,} rows": at_once(
            f"UPDATE {{}} SET note = 'sent' {between}", first, first + CHANGED_ROWS
        ),
        "update of the member, single": one_by_one(
            "UPDATE {} SET customer_email = %s WHERE id = %s", [(email, id_) for id_ in ids]
        ),
        f"update of the member, {CHANGED_ROWS:,} rows": at_once(
            f"UPDATE {{}} SET customer_email = %s || id %% 100 {between}",
            email, first, first + CHANGED_ROWS,
        ),
        "delete, single": one_by_one("DELETE FROM {} WHERE id = %s", [(id_,) for id_ in range(oldest, doomed)]),
        f"delete, {CHANGED_ROWS:,} rows": at_once(f"DELETE FROM {{}} {between}", doomed, doomed + CHANGED_ROWS),
    }  # fmt: skip


CASES = {"application.statements": application}
