"""An application's table: adopting it, and how soon the counts follow the application's inserts and deletes."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from compose.local.ordinary_user import CHECKOUT
from compose.local.services import Keeper
from loadtest.bench import orders
from loadtest.bench.reconciling import CommandFailed, floor, p99
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import World, connected, run_sql, wait_until_replayed
from shared_models.protocol import keys, states

DISTINCT = (
    "SELECT DISTINCT customer_email FROM shop.orders WHERE customer_email IS NOT NULL",
    "SELECT DISTINCT country, sku FROM shop.orders",
)
# The indexes of the counters, and instead of the one on xact an index that reads the whole table and holds no row either.
INDEXES = ("(customer_email)", "(country, sku)", "(id) WHERE id < 0")
LIVE_SECONDS = 3600.0

DELETES_A_SECOND = 1_000
INSERTS_A_SECOND = 200
WRITERS = 16
SECONDS = 10  # that a round writes for
LEFT_SECONDS = 3.0
FRESH_SECONDS = 0.5
# After this time a member counts as never added, or never removed.
PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.01
PGOUTPUT_KEY = "bench:pgoutput"


def table(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """adopt.table: from the command until both of its counters are live."""
    orders.make(world)
    orders.fill(world, table_rows)
    world.declare(orders.DECLARATIONS)
    _ = world.replica
    wait_until_replayed(world)
    parts: list[tuple[float, float]] = []

    def adopt() -> float:
        began = time.perf_counter()
        orders.adopt(world)
        adopted = time.perf_counter()
        keeper = world.keeper()
        wait_until_live(world)
        ended = time.perf_counter()
        parts.append((adopted - began, ended - adopted))
        world.stop(keeper)
        orders.adopt(world, "--undo")
        with world.redis() as redis:
            redis.flushdb()
        return ended - began

    def least() -> float:
        began = time.perf_counter()
        with connected(world.primary.url) as connection, connection.cursor() as cursor:
            for number, columns in enumerate(INDEXES):
                cursor.execute(f"CREATE INDEX CONCURRENTLY floor_{number} ON shop.orders {columns}")
        seconds = time.perf_counter() - began
        wait_until_replayed(world)
        seconds += sum(floor(world, statement)[0] for statement in DISTINCT)
        for number in range(len(INDEXES)):
            run_sql(world.primary.url, f"DROP INDEX shop.floor_{number}")
        return seconds

    found = by_turns(rounds, {"adopt": adopt, "least": least})
    command, built = (sorted(part)[len(parts) // 2] for part in zip(*parts, strict=True))
    report.add(
        Result("adopt.table", "s", "CREATE INDEX CONCURRENTLY for each, SELECT DISTINCT and SADD for each, s",
               paired(found, "adopt", "least"), goal=-1.5,
               note=f"{table_rows:,} rows, 2 counters; the command {command:.1f} s, then a keeper from its start {built:.1f} s")
    )  # fmt: skip


def wait_until_live(world: World) -> None:
    """Wait until both counters are served."""
    deadline = time.monotonic() + LIVE_SECONDS
    with world.redis() as redis:
        while any(states.read_state(redis, name).cold for name in orders.COUNTERS):
            if time.monotonic() > deadline:
                raise CommandFailed(f"the counters of {orders.TABLE} are not live")
            time.sleep(0.02)


@dataclass(slots=True)
class Watch:
    """Written members, and the seconds until each was in a set of Redis, or had left it.

    `expect` notes the moment when a commit was acknowledged. A thread checks all expected members, every LOOK_SECONDS: a
    change may have happened up to that long ago.
    """

    world: World
    key: str
    present: bool
    took: list[float] = field(default_factory=list)
    _expected: dict[bytes, float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def expect(self, member: bytes) -> None:
        """Note that it was committed now."""
        self._expected[member] = time.perf_counter()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Check for as long as the block runs, and then until the last one was seen."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
        if self._expected:
            raise CommandFailed(f"{len(self._expected)} members of {self.key} did not follow their rows")

    def _look(self) -> None:
        deadline = math.inf
        with self.world.redis() as redis:
            while (self._expected or not self._over.is_set()) and time.monotonic() < deadline:
                if self._over.is_set():
                    deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
                asked = list(self._expected)
                there = redis.smismember(self.key, asked) if asked else []
                now = time.perf_counter()
                for member, is_there in zip(asked, there, strict=True):
                    if bool(is_there) == self.present:
                        self.took.append(now - self._expected.pop(member))
                time.sleep(LOOK_SECONDS)


def write(world: World, statement: str, each: Callable[[int], None], writes: int, a_second: int) -> float:
    """So many statements, each a commit with its number, at this rate by WRITERS sessions; returns the reached rate."""
    numbers = itertools.count()
    began = time.perf_counter()

    def application() -> None:
        with connected(world.primary.url) as connection, connection.cursor() as cursor:
            while (number := next(numbers)) < writes:
                time.sleep(max(0.0, began + number / a_second - time.perf_counter()))
                cursor.execute(statement, {"number": number})
                each(number)

    threads = [threading.Thread(target=application) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return writes / (time.perf_counter() - began)


def live_world(world: World, table_rows: int) -> Keeper:
    """Fill and adopt the table, start a keeper, wait until both counters are live and verified. Returns the keeper."""
    orders.make(world)
    orders.fill(world, table_rows)
    world.declare(orders.DECLARATIONS)
    orders.adopt(world)
    _ = world.replica
    keeper = world.keeper()
    wait_until_live(world)
    # After a build departures wait for the first reconcile, which begins at once, and sets left_through.
    with world.redis() as redis:
        while any(states.read_state(redis, name).left_through is None for name in orders.COUNTERS):
            time.sleep(0.02)
    return keeper


def percentiles(took: list[float]) -> tuple[float, float, float]:
    """The median, p99, and the longest."""
    return sorted(took)[len(took) // 2], p99(took), max(took)


def departures(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """departures.rate: an application deletes single rows; until their customers have left the count."""
    live_world(world, table_rows)
    key = keys.of_counter("customers").members
    writes = DELETES_A_SECOND * SECONDS
    all_of: list[tuple[float, float, float]] = []
    rates: list[float] = []
    for turn in range(rounds):
        run_sql(world.primary.url,
                f"""INSERT INTO shop.orders ({orders.COLUMNS})
                    SELECT 'gone' || n || '.{turn}', 'N0', 'sku-0', '' FROM generate_series(0, %s) AS n""", writes - 1)  # fmt: skip
        ((newest,),) = run_sql(world.primary.url, "SELECT max(id) FROM shop.orders")
        come = Watch(world, key, present=True)
        for number in range(writes):
            come.expect(f"gone{number}.{turn}".encode())
        with come.looking():
            pass
        watch = Watch(world, key, present=False)
        with watch.looking():
            rates.append(
                write(
                    world,
                    f"DELETE FROM shop.orders WHERE id = {newest - writes + 1} + %(number)s",
                    lambda number, watch=watch, turn=turn: watch.expect(f"gone{number}.{turn}".encode()),  # type: ignore[misc]
                    writes,
                    DELETES_A_SECOND,
                )
            )
        all_of.append(percentiles(watch.took))
    middle, last, longest = zip(*all_of, strict=True)
    note = f"{writes:,} deletes of a row each by {WRITERS} sessions, in {table_rows:,} rows; the longest {max(longest):.2f} s"
    report.add(
        Result("departures.rate.p50", "s", "limit, s", [(value, LEFT_SECONDS) for value in middle], note=note),
        Result("departures.rate.p99", "s", "limit, s", [(value, LEFT_SECONDS) for value in last], goal=-1.0),
        Result("departures.rate.deletes", "/s", "wanted, /s", [(rate, DELETES_A_SECOND) for rate in rates]),
    )


def freshness(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """freshness.others: single inserts of an application, until their customers are counted. For comparison, pgoutput."""
    world.primary_settings["wal_level"] = "logical"
    keeper = psutil.Process(live_world(world, table_rows).pid)
    key = keys.of_counter("customers").members
    writes = INSERTS_A_SECOND * SECONDS
    statement = f"INSERT INTO shop.orders ({orders.COLUMNS}) VALUES (%(number)s || %(turn)s, 'N0', 'sku-0', '')"
    ours: list[tuple[float, float, float]] = []
    theirs: list[tuple[float, float, float]] = []
    run_sql(world.primary.url, "CREATE PUBLICATION bench FOR TABLE shop.orders (id, customer_email)")
    began, busy_seconds = time.perf_counter(), sum(keeper.cpu_times()[:2])
    with consumer(world):
        for turn in range(rounds):
            watches = Watch(world, key, present=True), Watch(world, PGOUTPUT_KEY, present=True)

            def expect(number: int, turn: int = turn, watches: tuple[Watch, Watch] = watches) -> None:
                for watch in watches:
                    watch.expect(f"{number}.{turn}".encode())

            with watches[0].looking(), watches[1].looking():
                write(world, statement.replace("%(turn)s", f"'.{turn}'"), expect, writes, INSERTS_A_SECOND)
            ours.append(percentiles(watches[0].took))
            theirs.append(percentiles(watches[1].took))
    busy = (sum(keeper.cpu_times()[:2]) - busy_seconds) / (time.perf_counter() - began)
    note = f"{writes:,} inserts of a row each, {INSERTS_A_SECOND} a second; the keeper took {busy:.0%} of a processor"
    for number, name in enumerate(("p50", "p99", "max")):
        pairs = [(mine[number], other[number]) for mine, other in zip(ours, theirs, strict=True)]
        report.add(Result(f"freshness.others.{name}", "s", "a pgoutput consumer that runs SADD, s", pairs, note=note))
    report.add(
        Result("freshness.others.limit", "s", "limit, s", [(each[1], FRESH_SECONDS) for each in ours], goal=-1.0,
               note="the same p99")
    )  # fmt: skip


@contextmanager
def consumer(world: World) -> Iterator[None]:
    """The peer runs for as long as the block runs."""
    words = [world.primary.url, world.valkey.url, PGOUTPUT_KEY, "bench"]
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest.bench.peers.pgoutput", *words], cwd=CHECKOUT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise CommandFailed("the pgoutput consumer has ended")
        yield
    finally:
        process.terminate()
        process.communicate()


CASES = {"adopt.table": table, "departures.rate": departures, "freshness.others": freshness}
