"""A table of visits to pages, for counters by group and of the last days. The same numbers give the same rows."""

from __future__ import annotations

from loadtest.bench.reconciling import run
from loadtest.bench.rows import FILL_ROWS
from loadtest.bench.world import World, connected

TABLE = "web.visit"
PAGES, COUNTRIES, DEVICES, DAYS = 10_000, 50, 4, 90
# The number of visits of each visitor.
VISITS = 5
FIELDS = """
[tables.visit]
name = "web.visit"
fields = {visitor = "text", page = "text", country = "text", device = "text", seen_at = "timestamptz"}
"""
# What is asked: the largest pages, one page, the last 30 days.
DECLARATIONS = f"""{FIELDS}
[counters.visitors]
table = "visit"
member = ["visitor"]
by = ["page"]
last_seen = "seen_at"
"""


def make(world: World) -> None:
    """Make the empty table."""
    with connected(world.primary.url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA IF NOT EXISTS web")
        cursor.execute(
            f"""CREATE TABLE {TABLE} (id bigserial PRIMARY KEY, visitor text NOT NULL, page text NOT NULL,
                    country text NOT NULL, device text NOT NULL, seen_at timestamptz NOT NULL)"""
        )


def fill(world: World, visits: int) -> None:
    """Insert this many visits of the last DAYS days. The pages are not equally large: page 1 has the most visits."""
    visitors = max(1, visits // VISITS)
    with connected(world.primary.url) as connection, connection.cursor() as cursor:
        for start in range(0, visits, FILL_ROWS):
            # Strides without a common factor with what they are taken modulo: they reach every value, in no order.
            cursor.execute(
                f"""INSERT INTO {TABLE} (visitor, page, country, device, seen_at)
                    SELECT 'v' || lpad((n * 7919 %% %(visitors)s)::text, 8, '0'),
                           'page-' || floor({PAGES} * power((n * 104729 %% 1000003) / 1000003.0, 2))::int,
                           'N' || n * 31 %% {COUNTRIES}, 'device-' || n * 17 %% {DEVICES},
                           now() - (n * 86028121 %% ({DAYS} * 86400)) * interval '1 second'
                    FROM generate_series(%(first)s::bigint, %(last)s) AS n""",
                {"visitors": visitors, "first": start, "last": min(visits, start + FILL_ROWS) - 1},
            )
        cursor.execute(f"VACUUM (ANALYZE) {TABLE}")
        cursor.execute("CHECKPOINT")


def adopt(world: World) -> None:
    """Run `adopt web.visit --apply` as a superuser, for the declared counters."""
    variables = world.stores_of_ingest() | {"AUTH": "off"}
    run(world, "ingest_service", "adopt", TABLE, "--apply", variables=variables)
