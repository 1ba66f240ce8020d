"""The demo of an application's own table: it has 300,000 orders, and the demo adopts it while the application works.

Then the demo shows its counts next to COUNT(DISTINCT) while both change. When the application has stopped, it asks for more,
the largest countries and the last days, and compares each answer with SQL's.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import psycopg2
import psycopg2.extensions
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from compose.local.demo import TIMES_ASKED, TIMES_COUNTED, Api, DemoFailed, timed
from compose.local.ports import read_number
from compose.local.servers import Postgres
from compose.local.services import detail_of
from compose.local.stack import Stack

ORDERS = 300_000  # unless the variable of this name says otherwise
SECONDS = 20  # of looking on while both move; the same
COUNTED_SECONDS = 120.0  # for the builds, and for unresolved departures
WRITES_A_SECOND = 200

TABLE = "shop.orders"
COUNTERS = ("customers", "products")
DECLARED = """
[tables.orders]
name = "shop.orders"
fields = {customer_email = "text", country = "text", sku = "text", created_at = "timestamptz"}

[counters.customers]
table = "orders"
member = ["customer_email"]
by = ["country", "day(created_at)"]
last_seen = "created_at"

[counters.products]
table = "orders"
member = ["country", "sku"]
"""
COUNTRIES = ("BE", "DE", "DK", "ES", "FR", "IT", "NL", "PL", "PT", "SE")

# As an application would have it: an owner of its own, no column for Rollcall, an index of its own.
MAKE = """
    DO $$ BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'shop') THEN CREATE ROLE shop; END IF;
    END $$;
    CREATE SCHEMA IF NOT EXISTS shop AUTHORIZATION shop;
    SET ROLE shop;
    CREATE TABLE IF NOT EXISTS shop.orders (
        id bigserial PRIMARY KEY,
        customer_email text,
        country text NOT NULL,
        sku text NOT NULL,
        note text,
        created_at timestamptz NOT NULL DEFAULT now()
    );
"""
FILL = """
    INSERT INTO shop.orders (customer_email, country, sku, created_at)
    SELECT CASE WHEN n %% 50 > 0 THEN 'c' || (n * 7919) %% 60000 || '@example.org' END,
           (%s::text[])[1 + n * n %% 1009 %% 10], 'sku-' || (n * 31) %% 2000, now() - n * 104729 %% 5184000 * interval '1 second'
    FROM generate_series((SELECT count(*) FROM shop.orders) + 1, %s::bigint) AS n
"""


class Question(NamedTuple):
    """What query is asked, and the same as people ask it in SQL; the statement gives the rows of the answer."""

    words: str
    path: str
    statement: str
    parameters: tuple[int, ...] = ()


def of_days(days: int) -> Question:
    """The customers of the last days; a day begins at midnight in UTC, because no time zone is declared."""
    return Question(
        "customers today" if days == 1 else f"customers of {days} days",
        f"/v1/counts/customers?window={days}d",
        """SELECT COUNT(DISTINCT customer_email) FROM shop.orders
           WHERE created_at >= ((now() AT TIME ZONE 'UTC')::date - %s)::timestamp AT TIME ZONE 'UTC'""",
        (days - 1,),
    )


QUESTIONS = (
    Question("customers", "/v1/counts/customers", "SELECT COUNT(DISTINCT customer_email) FROM shop.orders"),
    Question("products", "/v1/counts/products", "SELECT COUNT(DISTINCT (country, sku)) FROM shop.orders"),
    Question(
        "customers: top 3 countries",
        "/v1/counts/customers?by=country&top=3",
        """SELECT country, COUNT(DISTINCT customer_email) FROM shop.orders
           GROUP BY country ORDER BY 2 DESC, country COLLATE "C" LIMIT 3""",
    ),
    of_days(1),
    of_days(7),
    of_days(30),
)


class Application(threading.Thread):
    """An application that knows nothing of Rollcall: it inserts, updates and deletes, until it is told to end."""

    def __init__(self, database: Postgres) -> None:
        super().__init__(name="application", daemon=True)
        self.database = database
        self.over = threading.Event()
        self.statements = 0
        self.failure: Exception | None = None
        self._random = random.Random(1)

    def run(self) -> None:
        try:
            with closing(psycopg2.connect(self.database.url)) as connection, connection.cursor() as cursor:
                connection.autocommit = True
                cursor.execute("SET ROLE shop")
                cursor.execute("SELECT min(id), max(id) FROM shop.orders")
                ((self.oldest, self.newest),) = cursor.fetchall()
                while not self.over.wait(1 / WRITES_A_SECOND):
                    cursor.execute(*self.statement())
                    self.statements += 1
        except psycopg2.Error as error:
            self.failure = error

    def statement(self) -> tuple[str, list[object]]:
        """The next statement. Deletes remove the oldest orders; a few updates change the customer, most change the note."""
        which = self._random.random()
        some = self._random.randint(self.oldest, self.newest)
        if which < 0.4:
            email = f"new{self._random.randint(1, 5000)}@example.org" if which > 0.02 else None
            sku = f"sku-{self._random.randint(1, 2400)}"
            insert = "INSERT INTO shop.orders (customer_email, country, sku) VALUES (%s, %s, %s)"
            self.newest += 1
            return insert, [email, self._random.choice(COUNTRIES), sku]
        if which < 0.55:
            return "UPDATE shop.orders SET note = 'paid' WHERE id = %s", [some]
        if which < 0.7:
            moved = f"moved{self._random.randint(1, 500)}@example.org"
            return "UPDATE shop.orders SET customer_email = %s WHERE id = %s", [moved, some]
        self.oldest += 5
        return "DELETE FROM shop.orders WHERE id < %s", [self.oldest]

    def end(self) -> None:
        """Stop. When this returns, the last statement has ended."""
        self.over.set()
        self.join()
        if self.failure:
            raise DemoFailed(f"the application got an error: {self.failure}")


def run(stack: Stack, console: Console | None = None) -> int:
    """Make the table, adopt it while the application works, show the counts; 0 if they are equal at the end."""
    console = console or Console(highlight=False)
    orders, seconds = read_number(os.environ, "ORDERS") or ORDERS, read_number(os.environ, "SECONDS") or SECONDS
    make_orders(stack.primary, orders)
    application = Application(stack.primary)
    application.start()
    try:
        console.print(
            f"An application has {orders:,} orders in {TABLE}, and writes up to {WRITES_A_SECOND} statements a second."
        )
        began = time.monotonic()
        adopt(stack)
        console.print(f"Adopted in {time.monotonic() - began:.1f} s; its declaration is in {stack.declarations_path}.")
        query = Api(stack.query)
        wait_until_live(query)
        look_on(query, stack.primary, application, seconds, console)
    finally:
        application.end()
    equal = compare_at_rest(Api(stack.query), stack.primary, console)
    console.print("The stack is still up, and the table adopted. `make reset` removes both.")
    return 0 if equal else 1


def make_orders(database: Postgres, orders: int) -> None:
    """Fill the table to this many orders."""
    with closing(psycopg2.connect(database.url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(MAKE)
        cursor.execute(FILL, [list(COUNTRIES), orders])


def adopt(stack: Stack) -> None:
    """The steps of docs/adopt.md: the declaration for all services, and the command, here as a superuser."""
    declared = stack.declarations_path.read_text() if stack.declarations_path.exists() else ""
    if DECLARED.strip() not in declared:
        if "[tables.orders]" in declared:
            raise DemoFailed(
                f"{stack.declarations_path} declares {TABLE} in another way than this demo. `make reset` removes it."
            )
        stack.declare(DECLARED)
    variables = stack.owner_variables() | {"DATABASE_URL": stack.primary.url}
    stack.ingest.run_command("adopt", "orders", "--apply", variables=variables)
    if Api(stack.query).ask("GET", QUESTIONS[0].path)[0] == 404:  # started without the declaration
        stack.restart(stack.services)


def wait_until_live(query: Api) -> None:
    """Wait until every question has an answer: the counters and their groups are built."""
    deadline = time.monotonic() + COUNTED_SECONDS
    while any(read_answer(query, question) is None for question in QUESTIONS):
        if time.monotonic() > deadline:
            raise DemoFailed(f"the counters of {TABLE} are not live after {COUNTED_SECONDS:.0f} s")
        time.sleep(0.05)


def read_answer(query: Api, question: Question) -> list[tuple[Any, ...]] | None:
    """Query's answer, as SQL's rows; None if it is not live."""
    status, body = query.ask("GET", question.path)
    if status == 503:
        return None
    if status != 200:
        raise DemoFailed(f"query answered {status} to {question.path}: {detail_of(body)}")
    answer = json.loads(body)
    if "top" in answer:
        return [(*each["group"], each["count"]) for each in answer["top"]]
    return [(answer["count"],)]


def read_counts(query: Api) -> dict[str, int | None]:
    """The counts from query; None if one is not live."""
    status, body = query.ask("GET", "/v1/counts")
    if status != 200:
        raise DemoFailed(f"query answered {status}: {detail_of(body)}")
    counters = json.loads(body)["counters"]
    return {name: counters[name]["count"] if counters[name]["state"] == "live" else None for name in COUNTERS}


def count_distinct(connection: psycopg2.extensions.connection) -> dict[str, int]:
    """The same counts from the table, as people write the SQL: NULL does not count."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(DISTINCT customer_email), COUNT(DISTINCT (country, sku)) FROM shop.orders")
        ((customers, products),) = cursor.fetchall()
    return {"customers": customers, "products": products}


def shown(count: int | None) -> str:
    """A count for people."""
    return "cold" if count is None else f"{count:,}"


def look_on(query: Api, database: Postgres, application: Application, seconds: int, console: Console) -> None:
    """A line each second: query's counts, and the table's a moment later."""
    table = Table("second", "statements", box=box.SIMPLE_HEAD)
    for name in COUNTERS:
        table.add_column(name, justify="right")
        table.add_column("DISTINCT", justify="right")
    with closing(psycopg2.connect(database.url)) as connection, Live(table, console=console, refresh_per_second=4):
        for second in range(1, seconds + 1):
            served, in_table = read_counts(query), count_distinct(connection)
            numbers = [shown(number) for name in COUNTERS for number in (served[name], in_table[name])]
            table.add_row(str(second), f"{application.statements:,}", *numbers)
            time.sleep(1)
    console.print(
        "Each pair is read one after the other while rows come and go: they differ by what happened in between."
    )


def compare_at_rest(query: Api, database: Postgres, console: Console) -> bool:
    """Whether query's answers become equal to SQL's, now that nothing changes; prints both, and how long they take."""
    with closing(psycopg2.connect(database.url)) as connection:
        connection.autocommit = True
        in_table = [timed(TIMES_COUNTED, select, connection, question) for question in QUESTIONS]
    began = time.monotonic()
    while not all_equal(query, in_table) and time.monotonic() - began < COUNTED_SECONDS:
        time.sleep(0.05)
    took = time.monotonic() - began
    table, equal = Table("", box=box.SIMPLE_HEAD), True
    for column in ("query", "ms", "SQL", "ms", "equal"):
        table.add_column(column, justify="right")
    for question, (expected, in_table_ms) in zip(QUESTIONS, in_table, strict=True):
        served, served_ms = timed(TIMES_ASKED, read_answer, query, question)
        same = served == expected
        equal = equal and same
        times = f"{served_ms:.2f}", f"{in_table_ms:.1f}"
        table.add_row(
            question.words, told(served), times[0], told(expected), times[1], "[green]yes" if same else "[red]no"
        )
    console.print(table)
    console.print(
        f"The application has stopped; the counts were equal after {took:.1f} s. Median times of {TIMES_ASKED} requests, "
        f"{TIMES_COUNTED} statements."
        if equal
        else "The counts are not equal."
    )
    return equal


def all_equal(query: Api, in_table: Sequence[tuple[list[tuple[Any, ...]], float]]) -> bool:
    """Whether query answers every question as SQL has."""
    pairs = zip(QUESTIONS, in_table, strict=True)
    return all(read_answer(query, question) == expected for question, (expected, _) in pairs)


def select(connection: psycopg2.extensions.connection, question: Question) -> list[tuple[Any, ...]]:
    """SQL's answer."""
    with connection.cursor() as cursor:
        cursor.execute(question.statement, question.parameters)
        return cursor.fetchall()


def told(rows: list[tuple[Any, ...]] | None) -> str:
    """An answer for people, a line for each row: "BE 5,880"."""
    if rows is None:
        return "cold"
    return "\n".join(" ".join(f"{each:,}" if isinstance(each, int) else each for each in row) for row in rows)
