"""The table: so many rows and members, written inside Postgres in bites, into all of its indexes."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from loadtest.bench.rows import CITIES
from loadtest.bench.world import World, connected, run_sql

BITE_ROWS = 500_000
SAY_SECONDS = 10.0
# A stride without a common factor with the number of members reaches each of them, and in no order.
STRIDE = 15_485_863
INSERT = """
    INSERT INTO message (state, city, username, message)
    SELECT 'S' || lpad((city %% 50)::text, 2, '0'), 'City ' || lpad(city::text, 4, '0'),
           'user' || lpad((n * %(stride)s %% %(members)s)::text, 8, '0'), 'Good morning from ' || city
    FROM (SELECT n, n * 31 %% %(cities)s AS city FROM generate_series(%(first)s::bigint, %(last)s) AS n) AS numbers
"""


def fill(world: World, rows: int, members: int) -> None:
    """Fill the empty table, and say how far that is."""
    run_sql(world.primary.url, "TRUNCATE message, receipt")
    insert(world, 0, rows, members)
    for statement in ("VACUUM (ANALYZE) message", "CHECKPOINT"):
        run_sql(world.primary.url, statement)


def insert(world: World, first: int, rows: int, members: int) -> None:
    """More rows: the numbers from `first` on. With more members than before, some rows are of new ones."""
    bites = range(first, first + rows, BITE_ROWS)
    began = said = time.monotonic()

    def bite(start: int) -> int:
        last = min(first + rows, start + BITE_ROWS) - 1
        named = {"stride": STRIDE, "members": members, "cities": CITIES, "first": start, "last": last}
        with connected(world.primary.url) as connection, connection.cursor() as cursor:
            cursor.execute(INSERT, named)
        return last + 1 - start

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = 0
        for written in pool.map(bite, bites):
            done += written
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                left = (said - began) * (rows - done) / done
                print(f"  {done:,} of {rows:,} rows, {left:,.0f} s left", flush=True)


def sizes(world: World) -> dict[str, int]:
    """Bytes on disk: of the rows, and of each index, by its columns; all partitions together."""
    found = dict(
        run_sql(
            world.primary.url,
            """SELECT regexp_replace(pg_get_indexdef(indexrelid), '.*[(](.*)[)]', '\\1'),
                      sum(pg_relation_size(indexrelid))::bigint
               FROM pg_index WHERE indrelid IN (SELECT relid FROM pg_partition_tree('message') WHERE isleaf)
               GROUP BY 1 ORDER BY 1""",
        )
    )
    ((table,),) = run_sql(
        world.primary.url,
        "SELECT sum(pg_table_size(relid))::bigint FROM pg_partition_tree('message') WHERE isleaf",
    )
    return {"rows": int(table)} | {f"index on {columns}": int(size) for columns, size in found.items()}
