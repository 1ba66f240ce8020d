"""The demo of an application's own table: it has 300,000 orders, and the demo adopts it while the application works.

Then the demo shows its counts next to COUNT(DISTINCT) while both change, and compares them when the application
has stopped.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from contextlib import closing

import psycopg2
import psycopg2.extensions
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from compose.local.demo import Api, DemoFailed
from compose.local.ports import read_number
from compose.local.servers import Postgres
from compose.local.services import detail_of
from compose.local.stack import Stack

ORDERS = 300_000  # unless the variable of this name says otherwise
SECONDS = 20  # of looking on while both move; the same
COUNTED_SECONDS = 120.0  # for the builds, and for unresolved departures
WRITES_A_SECOND = 200

TABLE = "shop.orders"
COUNTERS = {"customers": ("customer_email",), "products": ("country", "sku")}
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
    INSERT INTO shop.orders (customer_email, country, sku)
    SELECT CASE WHEN n %% 50 > 0 THEN 'c' || (n * 7919) %% 60000 || '@example.org' END,
           (%s::text[])[1 + n %% 10], 'sku-' || (n * 31) %% 2000
    FROM generate_series((SELECT count(*) FROM shop.orders) + 1, %s) AS n
"""


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
    """The two steps of docs/adopt.md: the command, here as a superuser, and its lines for all services."""
    words = [word for name, fields in COUNTERS.items() for word in ("--counter", f"{name}={','.join(fields)}")]
    variables = stack.owner_variables() | {"DATABASE_URL": stack.primary.url}
    said = stack.ingest.run_command("adopt", TABLE, *words, "--apply", variables=variables)
    _, _, lines = said.partition("For rollcall.toml:\n")
    if lines:
        stack.declare(lines)
        stack.restart(stack.services)


def wait_until_live(query: Api) -> None:
    """Wait until both counters are built."""
    deadline = time.monotonic() + COUNTED_SECONDS
    while not all(counter is not None for counter in read_counts(query).values()):
        if time.monotonic() > deadline:
            raise DemoFailed(f"the counters of {TABLE} are not live after {COUNTED_SECONDS:.0f} s")
        time.sleep(0.05)


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
    """Whether query's counts become equal to the table's, now that nothing changes."""
    with closing(psycopg2.connect(database.url)) as connection:
        in_table = count_distinct(connection)
    began = time.monotonic()
    while (served := read_counts(query)) != in_table and time.monotonic() - began < COUNTED_SECONDS:
        time.sleep(0.05)
    for name, count in in_table.items():
        sign = "=" if served[name] == count else "≠"
        console.print(f"{name}: {shown(served[name])} {sign} COUNT(DISTINCT) {shown(count)}")
    console.print(
        f"The application has stopped; the counts were equal after {time.monotonic() - began:.1f} s."
        if served == in_table
        else "The counts are not equal."
    )
    return served == in_table
