"""What is measured of one table: sizes on disk and in Redis, and how long the keeper's work and the questions take."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count

from loadtest.bench.processors import busy_seconds
from loadtest.bench.querying import growth_ms
from loadtest.bench.reconciling import CommandFailed, make_drift, reconcile, run
from loadtest.bench.world import World, run_sql, wait_until_replayed
from loadtest.scale import table
from shared_models.declarations import get_counter
from shared_models.protocol import states, steps

SHARDS = 16
# One row in so many is added for the catch-up, and at least this many: fewer would measure only the start. One in ten is of a
# new member.
NEW_SHARE, NEW_LEAST, NEW_MEMBERS = 100, 200_000, 10
ROUNDS = 3  # of what takes a few seconds
SHORT_SECONDS = 5.0
CATCH_UP = "catch up with new rows"
# By then Postgres knows what a session that has ended took.
REAPED_SECONDS = 0.3
QUESTION = "COUNT(DISTINCT)"
DISTINCT = "SELECT count(DISTINCT username) FROM message"


@dataclass(slots=True)
class Measured:
    """One table. Times are the shortest of ROUNDS, if one round is short."""

    world: World
    rows: int
    members: int
    disk_bytes: dict[str, int] = field(default_factory=dict)
    redis_bytes: dict[int, int] = field(default_factory=dict)  # by the number of shards
    seconds: dict[str, float] = field(default_factory=dict)
    # … and what they took of the processors: manage, the replica and Redis. They work by turns, so this is about what they
    # need on a machine that does nothing else.
    processor_seconds: dict[str, float] = field(default_factory=dict)
    count_ms: float = 0.0
    new_rows: int = 0

    def time(self, name: str, work: Callable[[], float], prepare: Callable[[], object] = lambda: None) -> None:
        """Note the seconds of this work, which runs in a process of its own or in the replica. `prepare` is not measured."""
        say(name)
        took, busy = list[float](), list[float]()
        while not took or (len(took) < ROUNDS and took[0] < SHORT_SECONDS):
            prepare()
            before = self.busy()
            took.append(work())
            busy.append(self.busy() - before)
        self.seconds[name], self.processor_seconds[name] = min(took), min(busy)

    def busy(self) -> float:
        """Of the processors, until now; also by this process' own children that have ended."""
        time.sleep(REAPED_SECONDS)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        servers = busy_seconds([self.world.replica, self.world.valkey])
        return servers + children.ru_utime + children.ru_stime


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def declarations_of(shards: int) -> str:
    """The declarations of the package: users alone, in so many parts."""
    text = (files("shared_models") / "rollcall.toml").read_text()
    text = re.sub(r"(?s)\[counters\.cities\].*?(?=\n\[)", "", text)
    return re.sub(r"(?m)^(member = .*)$", rf"\1\nshards = {shards}", text) if shards > 1 else text


def measure(world: World, rows: int, members: int) -> Measured:
    """Fill the table, and measure all."""
    found = Measured(world, rows, members)
    say(f"{rows:,} rows, {members:,} members …")
    table.fill(world, rows, members)
    found.disk_bytes = table.sizes(world)
    wait_until_replayed(world)
    with world.redis() as redis:
        steps.load_scripts(redis)
    without = dataset_bytes(world)
    for shards in (SHARDS, 1):  # the last one stays
        world.declare(declarations_of(shards))
        found.time(f"build, {shards} {'shards' if shards > 1 else 'shard'}", lambda: build(world))
        found.redis_bytes[shards] = dataset_bytes(world) - without
    found.time("reconcile without drift", lambda: reconcile(world, "users")[0])
    found.time("reconcile with drift", lambda: reconcile(world, "users")[0], lambda: make_drift(world))
    found.time(QUESTION, lambda: count_distinct(world)[0])
    say("a count")
    found.count_ms = growth_ms(world)
    more = found.new_rows = max(rows // NEW_SHARE, NEW_LEAST)
    place = count(rows, more)

    def add_rows() -> None:
        table.insert(world, next(place), more, members + more // NEW_MEMBERS)
        wait_until_replayed(world)

    found.time(CATCH_UP, lambda: float(run(world, "loadtest.bench.passes").output), add_rows)
    check_count(world)
    idle = starting_seconds(found)
    for name in found.processor_seconds.keys() - {QUESTION}:
        found.processor_seconds[name] = max(0.0, found.processor_seconds[name] - idle)
    return found


def starting_seconds(found: Measured) -> float:
    """What a command of manage takes of the processors before it begins to work."""
    before = found.busy()
    for _ in range(ROUNDS):
        run(found.world, "loadtest.bench.passes")  # nothing is new
    return (found.busy() - before) / ROUNDS


def dataset_bytes(world: World) -> int:
    """What Redis holds, without its own buffers."""
    with world.redis() as redis:
        return int(redis.info("memory")["used_memory_dataset"])


def build(world: World) -> float:
    """The seconds of a cold build."""
    with world.redis() as redis:
        redis.flushdb()
    return float(run(world, "loadtest.bench.builds", "users").output)


def count_distinct(world: World) -> tuple[float, int]:
    """Seconds, and the count."""
    began = time.perf_counter()
    ((found,),) = run_sql(world.replica.url, DISTINCT)
    return time.perf_counter() - began, int(found)


def check_count(world: World) -> None:
    """Raises CommandFailed if the count is not that of the table."""
    with world.redis() as redis:
        counted = states.read_state(redis, get_counter("users").name).count
    _, exact = count_distinct(world)
    if counted != exact:
        raise CommandFailed(f"{counted:,} members are counted; {DISTINCT} says {exact:,}")
