"""An application's table, shop.orders, and its adoption. The same numbers give the same rows."""

from __future__ import annotations

import random
from collections.abc import Sequence

from loadtest.bench.reconciling import run
from loadtest.bench.rows import FILL_ROWS
from loadtest.bench.world import World, connected

TABLE = "shop.orders"
COUNTERS = {"customers": ("customer_email",), "products": ("country", "sku")}
DECLARATIONS = """
[tables.orders]
name = "shop.orders"
fields = {customer_email = "text", country = "text", sku = "text"}

[counters.customers]
table = "orders"
member = ["customer_email"]

[counters.products]
table = "orders"
member = ["country", "sku"]
"""
# The number of orders for each customer.
ORDERS_PER_CUSTOMER = 5
PRODUCTS = 20_000
COLUMNS = "customer_email, country, sku, note"


def make(world: World, name: str = TABLE) -> None:
    """Make the empty table, as an application has it: nothing of Rollcall's, and only its key's index."""
    with connected(world.primary.url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA IF NOT EXISTS shop")
        cursor.execute(
            f"""CREATE TABLE {name} (
                    id bigserial PRIMARY KEY, customer_email text, country text NOT NULL, sku text NOT NULL, note text,
                    created_at timestamptz NOT NULL DEFAULT now())"""
        )


def make_indexes(world: World, name: str = TABLE) -> None:
    """Make the indexes of the counters, as if the application already had them."""
    with connected(world.primary.url) as connection, connection.cursor() as cursor:
        for fields in COUNTERS.values():
            cursor.execute(f"CREATE INDEX ON {name} ({', '.join(fields)})")


def fill(world: World, orders: int, name: str = TABLE) -> None:
    """Insert this many orders, not sorted by customer. Analyzes the table."""
    customers = max(1, orders // ORDERS_PER_CUSTOMER)
    with connected(world.primary.url) as connection, connection.cursor() as cursor:
        for start in range(0, orders, FILL_ROWS):
            cursor.execute(
                f"""INSERT INTO {name} ({COLUMNS})
                    SELECT 'c' || n * 7919 %% %(customers)s || '@example.org', 'N' || n %% 10,
                           'sku-' || n * 31 %% %(products)s, 'order ' || n
                    FROM generate_series(%(first)s::bigint, %(last)s) AS n""",
                {
                    "customers": customers,
                    "products": PRODUCTS,
                    "first": start,
                    "last": min(orders, start + FILL_ROWS) - 1,
                },
            )
        cursor.execute(f"VACUUM (ANALYZE) {name}")
        cursor.execute("CHECKPOINT")


def some(draw: random.Random, orders: int) -> list[tuple[str, str, str, str]]:
    """More orders, of existing customers."""
    return [
        (
            f"c{draw.randrange(20_000)}@example.org",
            f"N{draw.randrange(10)}",
            f"sku-{draw.randrange(PRODUCTS)}",
            f"order {draw.randrange(10**9)}",
        )
        for _ in range(orders)
    ]


def as_copy(orders: Sequence[tuple[str, ...]]) -> str:
    """The orders in COPY's format."""
    return "".join("\t".join(order) + "\n" for order in orders)


def adopt(world: World, *words: str) -> None:
    """Run `adopt shop.orders --apply` as a superuser; `--undo` undoes it."""
    variables = world.stores_of_ingest() | {"AUTH": "off"}
    run(world, "ingest_service", "adopt", TABLE, *words, "--apply", variables=variables)
