"""Partitions: retiring one, and what reading many costs beside reading one table."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from loadtest.bench.keeping import wait_until_verified
from loadtest.bench.reconciling import CommandFailed
from loadtest.bench.results import Report, Result
from loadtest.bench.rows import CITIES
from loadtest.bench.world import World, connected, run_sql, wait_until_replayed
from manage_service.replica import snapshots, sql
from shared_models.declarations import COUNTERS, Counter, get_counter
from shared_models.protocol import states

OLD = "message_2025_01"
MONTHS = 36
# How many rows each member of the partition has in it; and how many of the members have rows in other partitions, too.
ROWS_PER_MEMBER = (5, 50)
STAY = 0.5
ROWS = """
    INSERT INTO message (state, city, username, message, create_time)
    SELECT 'S' || lpad((n %% 50)::text, 2, '0'), 'City ' || lpad((n * 31 %% {cities})::text, 4, '0'),
           'user' || lpad((n * 7919 %% %(users)s)::text, 7, '0'), '', %(at)s
    FROM generate_series(1, %(rows)s::bigint) AS n
"""


def retain(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """retain.partition: `retain` of a partition, until its members have left and it is dropped; and SELECT DISTINCT over it."""
    for rows_per_member in ROWS_PER_MEMBER:
        users, took, left = max(1, table_rows // rows_per_member), [], 0
        for _ in range(rounds):
            make_months(world, [OLD])
            with connected(world.primary.url) as connection, connection.cursor() as cursor:
                rows = ROWS.format(cities=CITIES)
                cursor.execute(rows, {"users": users, "rows": table_rows, "at": "2025-01-15T00:00Z"})
                cursor.execute(rows, {"users": int(users * STAY), "rows": int(users * STAY), "at": "now"})
                cursor.execute("VACUUM (ANALYZE) message")
                cursor.execute("CHECKPOINT")
            with world.redis() as redis:
                redis.flushall()
            wait_until_replayed(world)
            keeper = world.keeper()
            wait_until_verified(world)
            before = count(world)
            floor = sum(distinct(world, counter) for counter in COUNTERS)
            took.append((run_retain(world), floor))
            left = before - count(world)
            world.stop(keeper)
        report.add(
            Result(f"retain.partition, {rows_per_member} rows a member", "s", "SELECT DISTINCT, s", took, goal=-3.0,
                   note=f"{table_rows:,} rows; {left:,} members left")
        )  # fmt: skip


def make_months(world: World, names: list[str]) -> None:
    """An empty table with these partitions, and what it has besides; its past is gone."""
    run_sql(world.primary.url, "TRUNCATE message, receipt, rollcall_triggers.departure")
    run_sql(world.primary.url, "DROP TABLE IF EXISTS message_past")
    for name in names:
        year, month = map(int, name.removeprefix("message_").split("_"))
        after = f"{year + month // 12}-{month % 12 + 1:02}"
        bounds = f"FROM ('{year}-{month:02}-01T00:00Z') TO ('{after}-01T00:00Z')"
        run_sql(world.primary.url, f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF message FOR VALUES {bounds}")


def count(world: World) -> int:
    """The members of all counters."""
    with world.redis() as redis:
        return sum(state.count for state in states.read_states(redis, [each.name for each in COUNTERS]).values())


def distinct(world: World, counter: Counter) -> float:
    """The seconds that SELECT DISTINCT takes over the partition."""
    began = time.perf_counter()
    run_sql(
        world.primary.url, f"SELECT count(*) FROM (SELECT DISTINCT {', '.join(counter.fields)} FROM {OLD}) AS found"
    )
    return time.perf_counter() - began


def run_retain(world: World) -> float:
    """The seconds from the first line of the command to its end: the interpreter's start does not count."""
    variables = {**os.environ, **world.stores_of_ingest(), "AUTH": "off"}
    variables.pop("DJANGO_SETTINGS_MODULE", None)
    command = [sys.executable, "-u", "-m", "ingest_service", "retain", "message", "--older-than", "30d"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or OLD not in process.stdout.readline():
            raise CommandFailed("retain did not find the partition")
        began = time.perf_counter()
        process.stdout.read()
        took = time.perf_counter() - began
    if process.returncode:
        raise CommandFailed("retain has failed")
    return took


def plans(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """partitions.read: each read of manage over a table of 36 months, and of the same rows in one."""
    months = [f"message_{2022 + n // 12}_{n % 12 + 1:02}" for n in range(MONTHS)]
    users, found = max(1, table_rows // 5), dict[str, list[tuple[float, float]]]()
    for _ in range(rounds):
        taken: list[dict[str, float]] = []
        for spread in (MONTHS, 1):
            make_months(world, months)
            with connected(world.primary.url) as connection, connection.cursor() as cursor:
                for month in months[:spread]:
                    at = f"{month.removeprefix('message_').replace('_', '-')}-15T00:00Z"
                    parameters = {"users": users, "rows": table_rows // spread, "at": at}
                    cursor.execute(ROWS.format(cities=CITIES), parameters)
                if spread == 1:
                    run_sql(world.primary.url, f"DROP TABLE {', '.join(months[1:])}")
                wait_until_replayed(world)  # or it holds back vacuum
                cursor.execute("VACUUM (ANALYZE) message")
                cursor.execute("CHECKPOINT")
            wait_until_replayed(world)
            taken.append(read_all(world))
        for name, value in taken[0].items():
            found.setdefault(name, []).append((value, taken[1][name]))
    for name, each in found.items():
        report.add(Result(f"partitions.read: {name}", "ms", "one partition, ms", each, note=f"{table_rows:,} rows"))


def read_all(world: World) -> dict[str, float]:
    """The milliseconds of each read."""
    replica = snapshots.Replica(world.replica.url)
    users, cities = get_counter("users"), get_counter("cities")
    found: dict[str, float] = {}

    def take(name: str, read: Callable[[snapshots.Snapshot], object], counter: Counter, per: int = 0) -> None:
        times = []
        for _ in range(5):
            with replica.snapshot(counter) as snapshot:
                began = time.perf_counter()
                read_now = read(snapshot)
                took = time.perf_counter() - began
                # A chunk of jumps is smaller where there are more partitions.
                times.append(took * per / len(read_now) if per and isinstance(read_now, list) else took)
        found[name] = 1000 * sorted(times)[2]

    with replica.snapshot(users) as snapshot:
        some = snapshot.read_members(users, None, jumping=False)[:1_000]
        horizon = snapshot.horizon
    take(f"a chunk of {sql.CHUNK_ROWS:,} rows, scanned", lambda s: s.read_members(users, None, jumping=False), users)
    take("1,000 members, by jumps", lambda s: s.read_members(cities, None, jumping=True), cities, per=1_000)
    take(f"which of {len(some):,} members have no row", lambda s: s.without_row(users, some), users)
    take("whether there is something new", lambda s: s.has_recent(users, horizon, None), users)
    take("the fingerprint", lambda s: s.fingerprint_as(sql.described_by(users)), users)
    replica.close()
    return found


CASES = {"retain.partition": retain, "partitions.read": plans}
