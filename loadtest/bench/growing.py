"""Growth: the same four figures at more and more rows."""

from __future__ import annotations

from loadtest.bench import rows
from loadtest.bench.ingesting import rate_of_batches
from loadtest.bench.querying import growth_ms
from loadtest.bench.reconciling import make_live, reconcile
from loadtest.bench.results import Report, Result
from loadtest.bench.world import World
from shared_models.declarations import COUNTERS
from shared_models.protocol import keys

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)


def growth(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """growth: each figure next to the one at the smallest size. One round, because only the shape matters."""
    first: dict[str, float] = {}
    for size in [size for size in SIZES if size <= table_rows] or [table_rows]:
        rows.fill(world, size)
        make_live(world)
        with world.redis() as redis:
            at = [keys.of_counter(counter.name).members for counter in COUNTERS]
            memory_mb = sum(redis.memory_usage(key, samples=0) or 0 for key in at) / 2**20
        found = {
            "query, ms": growth_ms(world),
            "reconcile users, s": reconcile(world, "users")[0],
            "reconcile cities, s": reconcile(world, "cities")[0],
            "Redis, MB": memory_mb,
            "ingest, rows/s": rate_of_batches(world),  # the last: it adds rows
        }
        for name, value in found.items():
            what, _, unit = name.partition(", ")
            smallest = first.setdefault(name, value)
            report.add(Result(f"growth.{what} at {size:,} rows", unit, f"at the smallest, {unit}", [(value, smallest)]))


CASES = {"growth.table": growth}
