"""Manage: reconcile, build, catch up, next to their floors; and what they cost other clients and Redis."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import Any, cast

from compose.local.ordinary_user import CHECKOUT
from loadtest.bench import rows
from loadtest.bench.memory import watched
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import World, connected, run_sql, wait_until_replayed
from shared_models.declarations import COUNTERS
from shared_models.protocol import keys, steps

MISSED_ROWS = 100_000
CATCH_UP_SECONDS = 2.0
PEAK_MB = 120.0
REDIS_COMMAND_MS = 5.0
# In a repair one member in this many is missing, and there are as many extra ones.
DRIFT = 1_000
FLOOR_KEY = "bench:floor"
USERS, CITIES = "SELECT DISTINCT username FROM message", "SELECT DISTINCT state, city FROM message"


class CommandFailed(Exception):
    """A command of manage failed; the message is its output."""


@dataclass(frozen=True, slots=True)
class Done:
    """A process that has ended: its output, and its peak memory."""

    output: str
    peak_mb: float


def run(world: World, module: str, *words: str, variables: Mapping[str, str] | None = None) -> Done:
    """`python -m module …` with manage's variables, or these, to its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=CHECKOUT,
        env=os.environ | (variables or world.stores_of_manage()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Not by its own ru_maxrss: that includes the memory of this process, which forked it.
    with watched(process.pid) as peak:
        output, said = process.communicate()
    if process.returncode != 0:
        raise CommandFailed(f"{module} {' '.join(words)}: {output}{said}")
    return Done(output, peak.mb)


def reconcile(world: World, *names: str) -> tuple[float, Done, dict[str, Any]]:
    """A repair of these counters: its seconds, its process, its run."""
    wait_until_replayed(world)
    done = run(world, "manage_service", "reconcile", *names, "--json")
    document = json.loads(done.output)
    began, ended = (datetime.fromisoformat(document[name]) for name in ("started_at", "finished_at"))
    return (ended - began).total_seconds(), done, document


def floor(world: World, statement: str) -> tuple[float, Done]:
    """The floor: its seconds, its process. Its set is removed."""
    done = run(world, "loadtest.bench.peers.floor", world.replica.url, world.valkey.url, FLOOR_KEY, statement)
    with world.redis() as redis:
        redis.unlink(FLOOR_KEY)
    return float(done.output), done


def make_live(world: World) -> None:
    """Build and verify every counter, from an empty Redis."""
    with world.redis() as redis:
        redis.flushdb()
    reconcile(world)


def make_drift(world: World) -> int:
    """Remove some users from the set, and add as many without a row; returns how many of each."""
    members = keys.of_counter("users").members
    with world.redis() as redis:
        some = cast("list[bytes]", redis.srandmember(members, max(1, redis.scard(members) // DRIFT)))
        redis.srem(members, *some)
        redis.sadd(members, *(b"nobody-" + member for member in some))
    return len(some)


@dataclass(slots=True)
class Others:
    """How long a count took for another client: of this Redis, and of a second, idle one."""

    busy_ms: list[float] = field(default_factory=list)
    idle_ms: list[float] = field(default_factory=list)


@contextmanager
def others(world: World, found: Others) -> Iterator[None]:
    """Another client asks both for a count every millisecond for as long as the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest.bench.prober", world.valkey.url, world.bystander.url],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        output, _ = process.communicate()  # closes its standard input, which ends it
        busy, idle = json.loads(output)
        found.busy_ms += busy
        found.idle_ms += idle


def p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]


def slowest_ms(world: World) -> float:
    """Redis' slowest command since the log was reset; commands faster than 0.1 ms are not in it."""
    with world.redis() as redis:
        entries = redis.slowlog_get(128)
        return max((entry["duration"] / 1000 for entry in entries), default=0.1)


def reset_slowlog(world: World) -> None:
    with world.redis() as redis:
        redis.config_set("slowlog-log-slower-than", 100)
        redis.config_set("slowlog-max-len", 100_000)
        redis.slowlog_reset()


def users(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """reconcile.users: a full, verified repair."""
    members = rows.fill(world, table_rows)
    make_live(world)
    reset_slowlog(world)
    meanwhile = Others()
    peaks: list[float] = []

    def repair() -> float:
        drift = make_drift(world)
        with others(world, meanwhile):
            seconds, done, document = reconcile(world, "users")
        found = document["drift"]["users"]
        if (found["missing"], found["extra"]) != (drift, drift):
            raise CommandFailed(f"the repair of {drift} missing and {drift} extra members found {found}")
        peaks.append(done.peak_mb)
        return seconds

    # The probes of `others` and the floor's SADDs are in the log too: none of them names more than 1,000 members.
    found = by_turns(rounds, {"repair": repair, "floor": lambda: floor(world, USERS)[0]})
    slowest = slowest_ms(world)
    note = f"{table_rows:,} rows, {members:,} members, {max(1, members // DRIFT):,} missing and as many extra"
    report.add(
        Result("reconcile.users.time", "s", "SELECT DISTINCT and SADD, s", paired(found, "repair", "floor"), goal=-3.0,
               peak_mb=max(peaks), note=note),
        Result("reconcile.users.memory", "MB", "limit, MB", [(max(peaks), PEAK_MB)], goal=-1.0, note=note),
        Result("reconcile.users.slowlog", "ms", "limit, ms", [(slowest, REDIS_COMMAND_MS)], goal=-1.0,
               note="the slowest command of Redis meanwhile"),
        Result("reconcile.users.others", "ms", "of a second, idle Redis, ms",
               [(p99(meanwhile.busy_ms), p99(meanwhile.idle_ms))], goal=-2.0,
               note="p99 of a SCARD every millisecond, meanwhile; the processors are as busy for both"),
    )  # fmt: skip


def cities(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """reconcile.cities: few members in many rows."""
    rows.fill(world, table_rows)
    make_live(world)

    def count_distinct() -> float:
        began = time.perf_counter()
        run_sql(world.replica.url, "SELECT count(DISTINCT (state, city)) FROM message")
        return time.perf_counter() - began

    found = by_turns(rounds, {"repair": lambda: reconcile(world, "cities")[0], "count": count_distinct})
    report.add(
        Result("reconcile.cities.time", "s", "COUNT(DISTINCT), s", paired(found, "repair", "count"), goal=-0.2,
               note=f"{table_rows:,} rows, {rows.CITIES:,} members; the goal is for 5,000,000 rows")
    )  # fmt: skip


def build(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """build: a cold counter, until it is live."""
    members = rows.fill(world, table_rows)

    def cold_build() -> float:
        with world.redis() as redis:
            redis.flushdb()
        done = run(world, "loadtest.bench.builds", "users")
        return float(done.output)

    found = by_turns(rounds, {"build": cold_build, "floor": lambda: floor(world, USERS)[0]})
    report.add(
        Result("build.users", "s", "SELECT DISTINCT and SADD, s", paired(found, "build", "floor"), goal=-1.5,
               note=f"{table_rows:,} rows, {members:,} members")
    )  # fmt: skip


def catch_up(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """catchup: rows that were stored and not counted, until both counters include them."""
    rows.fill(world, table_rows)
    make_live(world)
    took: list[tuple[float, float]] = []
    for turn in range(rounds):
        ((xact,),) = run_sql(world.primary.url, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        with connected(world.primary.url) as connection, connection.cursor() as cursor:
            for number in range(MISSED_ROWS // rows.BATCH_ROWS):
                lines = rows.as_copy(rows.batch(1000 + turn * 100 + number, users=1_000_000))
                cursor.copy_expert("COPY message (state, city, username, message) FROM STDIN", BytesIO(lines))
        wait_until_replayed(world)
        seconds = float(run(world, "loadtest.bench.passes").output)
        least = sum(floor(world, f"{statement} WHERE xact >= {xact}")[0] for statement in (USERS, CITIES))
        took.append((seconds, least))
    report.add(
        Result("catchup.rows", "s", "SELECT DISTINCT of them and SADD, s", took,
               note=f"{MISSED_ROWS:,} missed rows, both counters"),
        Result("catchup.limit", "s", "limit, s", [(seconds, CATCH_UP_SECONDS) for seconds, _ in took], goal=-1.0),
    )  # fmt: skip


def memory(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """memory: all keys of a counter compared with a plain set of the same members."""
    rows.fill(world, table_rows)
    make_live(world)
    with world.redis() as redis:
        for counter in COUNTERS:
            at = keys.of_counter(counter.name)
            count = redis.scard(at.members)
            redis.unlink("bench:bare")
            for chunk in steps.chunks(list(redis.sscan_iter(at.members, count=1000))):
                redis.sadd("bench:bare", *chunk)
            ours = sum(redis.memory_usage(key, samples=0) or 0 for key in (at.members, at.suspects, at.state, at.fill))
            bare = redis.memory_usage("bench:bare", samples=0) or 0
            redis.unlink("bench:bare")
            report.add(
                Result(f"memory.{counter.name}", "bytes a member", "bare set, bytes a member",
                       [(ours / count, bare / count)], goal=-1.05, note=f"{count:,} members")
            )  # fmt: skip


CASES = {
    "reconcile.users": users,
    "reconcile.cities": cities,
    "build.users": build,
    "catchup.rows": catch_up,
    "memory.set": memory,
}
