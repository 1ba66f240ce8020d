"""What is measured of one table: sizes on disk and in Redis, and how long the keeper's work and the questions take."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count

from loadtest.bench.querying import growth_ms
from loadtest.bench.reconciling import CommandFailed, make_drift, reconcile, run
from loadtest.bench.world import World, run_sql, wait_until_replayed
from loadtest.scale import table
from shared_models.declarations import get_counter
from shared_models.protocol import states

SHARDS = 16
# Of new rows, and of these the share of new members.
NEW_ROWS, NEW_MEMBERS = 100, 10
ROUNDS = 3  # of what takes a few seconds
SHORT_SECONDS = 5.0
CATCH_UP = "catch up with 1 % more rows"
DISTINCT = "SELECT count(DISTINCT username) FROM message"


@dataclass(slots=True)
class Measured:
    """One table. Seconds are the fastest of ROUNDS, if one round is short: other work on the machine only makes them longer."""

    rows: int
    members: int
    disk_bytes: dict[str, int] = field(default_factory=dict)
    redis_bytes: dict[int, int] = field(default_factory=dict)  # by the number of shards
    seconds: dict[str, float] = field(default_factory=dict)
    count_ms: float = 0.0

    def time(self, name: str, work: Callable[[], float]) -> None:
        """Note the seconds of this work."""
        say(name)
        took = [work()]
        while len(took) < ROUNDS and took[0] < SHORT_SECONDS:
            took.append(work())
        self.seconds[name] = min(took)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def declarations_of(shards: int) -> str:
    """The declarations of the package: users alone, in so many parts."""
    text = (files("shared_models") / "rollcall.toml").read_text()
    text = re.sub(r"(?s)\[counters\.cities\].*?(?=\n\[)", "", text)
    return re.sub(r"(?m)^(member = .*)$", rf"\1\nshards = {shards}", text) if shards > 1 else text


def measure(world: World, rows: int, members: int) -> Measured:
    """Fill the table, and measure all."""
    found = Measured(rows, members)
    say(f"{rows:,} rows, {members:,} members …")
    table.fill(world, rows, members)
    found.disk_bytes = table.sizes(world)
    wait_until_replayed(world)
    for shards in (SHARDS, 1):  # the last one stays
        world.declare(declarations_of(shards))
        found.time(f"build, {shards} {'shards' if shards > 1 else 'shard'}", lambda: build(world))
        found.redis_bytes[shards] = dataset_bytes(world)
        empty(world)
        found.redis_bytes[shards] -= dataset_bytes(world)
    build(world)
    reconcile(world, "users")  # the first one also settles what a build leaves open
    found.time("reconcile without drift", lambda: reconcile(world, "users")[0])
    found.time("reconcile with drift", lambda: repair(world))
    found.time("COUNT(DISTINCT)", lambda: count_distinct(world)[0])
    say("a count")
    found.count_ms = growth_ms(world)
    more = max(1, rows // NEW_ROWS)
    place = count(rows, more)
    found.time(CATCH_UP, lambda: catch_up(world, place, more, members + more // NEW_MEMBERS))
    return found


def empty(world: World) -> None:
    with world.redis() as redis:
        redis.flushdb()


def dataset_bytes(world: World) -> int:
    """What Redis holds, without its own buffers."""
    with world.redis() as redis:
        return int(redis.info("memory")["used_memory_dataset"])


def build(world: World) -> float:
    """The seconds of a cold build."""
    empty(world)
    return float(run(world, "loadtest.bench.builds", "users").output)


def repair(world: World) -> float:
    """The seconds of a reconcile that finds one member in a thousand missing, and as many extra."""
    drift = make_drift(world)
    seconds, _, document = reconcile(world, "users")
    said = document["drift"]["users"]
    if (said["missing"], said["extra"]) != (drift, drift):
        raise CommandFailed(f"the repair of {drift} missing and {drift} extra members found {said}")
    return seconds


def count_distinct(world: World) -> tuple[float, int]:
    """Seconds, and the count."""
    began = time.perf_counter()
    ((found,),) = run_sql(world.replica.url, DISTINCT)
    return time.perf_counter() - began, int(found)


def catch_up(world: World, rows: Iterator[int], more: int, members: int) -> float:
    """The seconds until so many more rows are counted; then the count has to be exact."""
    first = next(rows)
    table.insert(world, first, more, members)
    wait_until_replayed(world)
    seconds = float(run(world, "loadtest.bench.passes").output)
    with world.redis() as redis:
        counted = states.read_state(redis, get_counter("users").name).count
    _, exact = count_distinct(world)
    if counted != exact:
        raise CommandFailed(f"{counted:,} members are counted; {DISTINCT} says {exact:,}")
    return seconds
