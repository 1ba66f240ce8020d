"""Questions about groups and last days: answered over HTTP, next to SQL on the primary and next to other engines."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from compose.local.ordinary_user import CHECKOUT
from compose.local.services import Web
from loadtest.bench import load, visits
from loadtest.bench.keeping import wait_until_verified
from loadtest.bench.peers import engines
from loadtest.bench.reconciling import CommandFailed
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import World, connected, run_sql

FRESH = {"Cache-Control": "no-cache"}
SERVED_MS, TIMES_POSTGRES = 0.3, 10_000
LEAVE_SECONDS = 300.0
CONNECTIONS = 32
SECONDS = 3.0
# The same, in SQL. The index of the groups serves the first two, and (seen_at, visitor) the third.
SQL = {
    "top": "SELECT page, count(DISTINCT visitor) AS n FROM web.visit GROUP BY page ORDER BY n DESC LIMIT 10",
    "group": f"SELECT count(DISTINCT visitor) FROM web.visit WHERE page = '{engines.PAGE}'",
    "window": "SELECT count(DISTINCT visitor) FROM web.visit WHERE seen_at >= timezone('UTC', '{since}'::timestamp)",
}
ASKED = {"top": "?by=page&top=10", "group": f"?by=page&group={engines.PAGE}", "window": "?window=30d"}
WITHOUT_ENGINE = "{}: pip install --target FOLDER duckdb chdb datasketches, then BENCH_ENGINES=FOLDER"
WITHOUT_HLL = (
    "postgresql-hll: this Postgres does not have the extension hll (Debian's postgresql-15-hll is for version 15)"
)


def groups(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """groups.*: the ten largest of 10,000 groups, one group, and the last 30 days."""
    visits.make(world)
    visits.fill(world, table_rows)
    world.declare(visits.DECLARATIONS)
    visits.adopt(world)
    run_sql(world.primary.url, "CREATE INDEX ON web.visit (seen_at, visitor)")
    run_sql(world.primary.url, "VACUUM (ANALYZE) web.visit")
    _ = world.replica
    keeper = world.keeper()
    wait_until_verified(world)
    world.stop(keeper)
    query = world.service("grouped", "query_service.asgi", {"REDIS_URL": world.valkey.url, **world.declarations})
    hello = world.peer("hello", "hello:application", like="query_service")
    ((since,),) = run_sql(world.primary.url, "SELECT (timezone('UTC', now())::date - 29)::text")
    statements = {name: statement.format(since=since) for name, statement in SQL.items()}
    urls = {name: f"{query.url}/v1/counts/visitors{asked}" for name, asked in ASKED.items()}
    exact = {name: engines.number_of(run_sql(world.primary.url, statement)) for name, statement in statements.items()}
    if {name: counted(url) for name, url in urls.items()} != exact:
        raise CommandFailed(f"the answers are not those of SQL: {exact}")

    latency: dict[str, float] = {}
    for name, url in urls.items():
        found = by_turns(
            rounds,
            {
                "sql": partial(seconds_of, world, statements[name]),
                "fresh": partial(latency_ms, load.Target(url, FRESH)),
                "kept": partial(latency_ms, load.Target(url)),
                "hello": partial(latency_ms, load.Target(hello.url)),
                "own": partial(processor_ms, query, load.Target(url, FRESH)),
                "hello's own": partial(processor_ms, hello, load.Target(hello.url)),
            },
        )
        latency[name] = statistics.median(found["fresh"])
        report.add(
            Result(f"groups.{name}", "ms", "limit, ms", [(ms, SERVED_MS) for ms in found["fresh"]], goal=-1.0,
                   note=f"each read from Redis; one that is 0.05 s old at most: {statistics.median(found['kept']):.2f} ms"),
            Result(f"groups.{name}.hello", "ms", "a minimal hello, ms", paired(found, "fresh", "hello")),
            Result(f"groups.{name}.processor", "ms", "of a minimal hello, ms", paired(found, "own", "hello's own"),
                   note="processor time of the web server's workers for an answer: other work on the machine matters less"),
            Result(f"groups.{name}.sql at {table_rows:,} rows", "times/s", "GROUP BY, COUNT(DISTINCT) on the primary, times/s",
                   [(1000 / ms, 1 / seconds) for ms, seconds in zip(found["fresh"], found["sql"], strict=True)],
                   goal=TIMES_POSTGRES if table_rows >= 5_000_000 else 0, note="one after the other, over one connection"),
        )  # fmt: skip
    at_once, note = load.rates(
        {name: load.Target(url) for name, url in urls.items()} | {"hello": load.Target(hello.url)},
        rounds=rounds, connections=CONNECTIONS, seconds=SECONDS,
    )  # fmt: skip
    for name in urls:
        report.add(
            Result(
                f"groups.{name}.rate",
                "requests/s",
                "minimal ASGI hello, requests/s",
                paired(at_once, name, "hello"),
                note=note,
            )
        )

    path = world.folder / "visits.csv"
    with connected(world.primary.url) as connection, connection.cursor() as cursor, path.open("w") as file:
        cursor.copy_expert(
            "COPY (SELECT id, visitor, page, (timezone('UTC', seen_at))::date FROM web.visit) TO STDOUT (FORMAT csv)",
            file,
        )
    others: dict[str, dict[str, list[float]]] = {}
    for engine in engines.ENGINES:
        answered = ask_engine(engine, path, since)
        if answered is None:
            report.skip(WITHOUT_ENGINE.format(engine))
        else:
            others[engine] = answered
    if not run_sql(world.primary.url, "SELECT FROM pg_available_extensions WHERE name = 'hll'"):
        report.skip(WITHOUT_HLL)

    run_sql(world.primary.url, "DELETE FROM web.visit WHERE id % 10 = 0")
    after = {name: engines.number_of(run_sql(world.primary.url, statement)) for name, statement in statements.items()}
    world.start(keeper)
    began = time.monotonic()
    while {name: counted(url) for name, url in urls.items()} != after:
        if time.monotonic() - began > LEAVE_SECONDS:
            raise CommandFailed("the answers do not follow the deletes")
        time.sleep(0.1)
    report.add(
        Result("groups.deleted", "s", "limit, s", [(time.monotonic() - began, LEAVE_SECONDS)], goal=-1.0,
               note="a tenth of the rows was deleted while no keeper ran: from its start until each answer is SQL's")
    )  # fmt: skip
    for engine, answered in others.items():
        for name, (ms, before, then) in answered.items():
            report.add(
                Result(f"groups.{name}: {engine}", "ms", "Rollcall over HTTP, ms", [(ms, latency[name])],
                       note=f"error {off(before, exact[name])}, after a tenth of the rows was deleted {off(then, after[name])}")
            )  # fmt: skip


def off(found: float, exact: float) -> str:
    """The error of an answer."""
    return "none" if found == exact else f"{found / exact - 1:+.1%}"


def counted(url: str) -> float:
    """The count that an answer has; of the largest groups that of the first one. -1 if there is none now."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=FRESH), timeout=30) as answer:  # noqa: S310
            document: Any = json.load(answer)
    except urllib.error.HTTPError:
        return -1.0
    return float(document["top"][0]["count"] if "top" in document else document["count"])


def latency_ms(target: load.Target) -> float:
    """The median time of a request, one after the other."""
    return load.as_fast_as_possible(target, connections=1, seconds=1).p50_ms


def processor_ms(service: Web, target: load.Target) -> float:
    """The processor time that the workers of a service take for a request, one after the other."""
    workers = psutil.Process(service.pid).children()
    before = sum(sum(each.cpu_times()[:2]) for each in workers)
    answered = load.as_fast_as_possible(target, connections=1, seconds=SECONDS).per_second * SECONDS
    return (sum(sum(each.cpu_times()[:2]) for each in workers) - before) * 1000 / answered


def seconds_of(world: World, statement: str) -> float:
    """How long the primary takes."""
    began = time.perf_counter()
    run_sql(world.primary.url, statement)
    return time.perf_counter() - began


def ask_engine(engine: str, path: Path, since: str) -> dict[str, list[float]] | None:
    """What it answers; None if it is not there."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench.peers.engines", engine, str(path), since],
        cwd=CHECKOUT, env=os.environ, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == engines.NOT_THERE:
        return None
    if done.returncode:
        raise CommandFailed(f"{engine}: {done.stdout}{done.stderr}")
    answered: dict[str, list[float]] = json.loads(done.stdout)
    return answered


CASES: dict[str, Callable[[World, Report, int, int], None]] = {"groups.asked": groups}
