"""`next_shards`: what recording costs while a counter is kept with two numbers of shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from loadtest.bench import rows
from loadtest.bench.grouping import BATCHES, MESSAGE, redis_us
from loadtest.bench.ingesting import Batches
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import World

PRESENT = MESSAGE + "shards = 4\n"
BOTH = PRESENT + "next_shards = 16\n"
SIDES = {"present": PRESENT, "both": BOTH}


def recording(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """recording.next_shards: processor time of Redis for a member, with batches of 10,000 rows and nothing else."""
    batches = [{(row["state"], row["city"], row["username"]) for row in rows.batch(seed)} for seed in range(BATCHES)]
    for what in ("new", "known"):
        sides = {name: partial(redis_us, world, text, batches, known=what == "known") for name, text in SIDES.items()}
        found = by_turns(rounds, sides)
        report.add(
            Result(f"recording.next_shards.{what}", "µs a row", "4 shards, µs a row", paired(found, "both", "present"),
                   note="4 shards and the next 16; processor time of Redis alone")
        )  # fmt: skip


def ingest(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """ingest.next_shards: batches of 10,000 rows through ingest."""
    rows.fill(world, 0)
    sides: dict[str, Callable[[], float]] = {}
    for name, text in SIDES.items():
        world.declare(text)
        sides[name] = Batches(world, world.ingest_for(name)).through_ingest
        sides[name]()  # connections, caches; from here on the members are known
    found = {name: [1e6 / rate for rate in rates] for name, rates in by_turns(2 * rounds, sides).items()}
    report.add(
        Result("ingest.next_shards", "µs a row", "4 shards, µs a row", paired(found, "both", "present"),
               note="batches of 10,000 rows over HTTP, acknowledged and counted; 4 shards and the next 16")
    )  # fmt: skip
    rows.fill(world, 0)


CASES: Mapping[str, Callable[[World, Report, int, int], None]] = {
    "recording.next_shards": recording,
    "ingest.next_shards": ingest,
}
