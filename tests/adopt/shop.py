"""An application's table, made countable by the SQL of shared_models/triggers.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared_models import triggers
from shared_models.declarations import Counter, Field, Table, Term
from tests.servers import sql, started_primary

ORDERS = """
    CREATE TABLE shop.orders (
        id bigserial, email text, country text, sku text, deleted_at timestamptz, note text, PRIMARY KEY (id)
    )
"""
PARTITIONED = """
    CREATE TABLE shop.orders (
        id bigserial, email text, country text, sku text, deleted_at timestamptz, note text
    ) PARTITION BY LIST (country);
    CREATE TABLE shop.nl PARTITION OF shop.orders FOR VALUES IN ('NL');
    CREATE TABLE shop.rest PARTITION OF shop.orders DEFAULT PARTITION BY LIST (sku);
    CREATE TABLE shop.rest_a PARTITION OF shop.rest FOR VALUES IN ('a');
    CREATE TABLE shop.rest_b PARTITION OF shop.rest DEFAULT;
    INSERT INTO shop.orders (email, country, sku) VALUES ('ann', 'NL', 'a'), ('bob', 'BE', 'a'), ('cat', 'FR', 'b')
"""
TABLE = Table("orders", "shop", "orders", (Field("email", "text"), Field("country", "text"), Field("sku", "text")))
CUSTOMERS = Counter("customers", TABLE, ("email",), where="deleted_at IS NULL")
PLACES = Counter("places", TABLE, ("country", "sku"))
COUNTERS = (CUSTOMERS, PLACES)
WATCHED = {"customers": ("email", "deleted_at"), "places": ("country", "sku")}


def make_shop(statement: str = ORDERS) -> None:
    """The schema `shop` with this table, and nothing else."""
    run("DROP SCHEMA IF EXISTS shop CASCADE")
    run(f"DROP SCHEMA IF EXISTS {triggers.SCHEMA} CASCADE")
    run("CREATE SCHEMA shop")
    run(statement)


def make_countable(
    table: Table = TABLE,
    counters: tuple[Counter, ...] = COUNTERS,
    watched: Mapping[str, tuple[str, ...]] = WATCHED,
    partitions: tuple[tuple[str, str], ...] = (),
) -> None:
    """What `adopt` does, without its care."""
    for statement in (triggers.MAKE_SCHEMA, *triggers.MAKE_DEPARTURE, *triggers.column(table)):
        run(statement)
    for piece in triggers.triggers(table, counters, watched, partitions):
        for statement in piece.statements():
            run(statement)


def indexes(table: Table, *counters: Counter) -> list[triggers.Piece]:
    """Those that `adopt` makes, by then CONCURRENTLY."""
    wanted = [((Term("xact", "bigint"),), "xact > 0"), *((counter.terms, counter.where) for counter in counters)]
    return [triggers.index(table.schema, table.relation, terms, where) for terms, where in wanted]


def run(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return sql(started_primary(), statement, *parameters)


def departed(counter: Counter = CUSTOMERS) -> list[Any]:
    """What has been noted for this counter since the last time, ordered: members, or "all" at the end."""
    found = run(f"DELETE FROM {triggers.DEPARTURE} WHERE counter = %s RETURNING element", triggers.key(counter))
    members = [
        member if len(member) > 1 else member[0]
        for (element,) in found
        if element is not None
        for member in (map(tuple, element) if isinstance(element[0], list) else [tuple(element)])
    ]
    return sorted(members) + ["all"] * [element for (element,) in found].count(None)
