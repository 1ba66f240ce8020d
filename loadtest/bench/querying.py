"""Query: standing answers compared with a minimal ASGI application, with webdis, with SQL; and a thousand event streams."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil

from compose.local.ports import free_port
from loadtest.bench import load, rows
from loadtest.bench.memory import resident_mb, watched
from loadtest.bench.reconciling import make_live
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import ORIGIN, Peer, World, run_sql
from shared_models.protocol import keys

CONNECTIONS = 32
SECONDS = 3.0
STREAMS = 1_000
# As many as query has workers.
SQL_CONNECTIONS = 2
STREAM_KB, CHANGE_MS = 40.0, 200.0
WITHOUT_WEBDIS = (
    "webdis, a web server in front of Redis in C, is not installed (Debian, Ubuntu: apt-get install webdis)"
)


def counts(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """query.counts: with the defaults, and with tokens, CORS and a log line for each request."""
    rows.fill(world, table_rows)
    make_live(world)
    if not load.has_wrk():
        report.skip(load.WITHOUT_WRK)
    hello = world.peer("hello", "hello:application", like="query_service")
    path = "/v1/counts/users"
    # The "hello" gets the same request headers: a server parses them in any case.
    asked = {**world.guarded_query.authorization(), "Origin": ORIGIN}
    targets = {
        "query": load.Target(f"{world.query.url}{path}"),
        "hello": load.Target(hello.url),
        "guarded": load.Target(f"{world.guarded_query.url}{path}", asked),
        "hello with headers": load.Target(hello.url, asked),
    }
    with webdis(world, report) as url, watched(world.query.pid) as peak:
        if url:
            targets["webdis"] = load.Target(f"{url}/SCARD/{keys.of_counter('users').members}")
        found, note = load.rates(targets, rounds=rounds, connections=CONNECTIONS, seconds=SECONDS)
    report.add(
        Result(
            "query.counts.hello",
            "requests/s",
            "minimal ASGI hello, requests/s",
            paired(found, "query", "hello"),
            goal=0.9,
            peak_mb=peak.mb,
            note=note,
        ),
        Result(
            "query.counts.guarded",
            "requests/s",
            "minimal ASGI hello, requests/s",
            paired(found, "guarded", "hello with headers"),
            goal=0.8,
            note=f"with a token, CORS, and a log line for each request; {note}",
        ),
    )
    if "webdis" in found:
        report.add(
            Result(
                "query.counts.webdis",
                "requests/s",
                "webdis SCARD, requests/s",
                paired(found, "query", "webdis"),
                goal=0.75,
                note=note,
            )
        )
    world.stop(world.guarded_query)
    beside_sql(world, report, rounds, table_rows, hello)
    world.stop(hello)


def member(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """query.member: whether one user is counted, with a token; each answer needs a read of Redis."""
    rows.fill(world, table_rows)
    make_live(world)
    if not load.has_wrk():
        report.skip(load.WITHOUT_WRK)
    hello = world.peer("hello", "hello:application", like="query_service")
    name, headers = "user0000001", world.guarded_query.authorization()
    targets = {
        "query": load.Target(f"{world.guarded_query.url}/v1/counts/users/member?username={name}", headers),
        "hello": load.Target(hello.url, headers),
    }
    with webdis(world, report) as url, watched(world.guarded_query.pid) as peak:
        if url:
            targets["webdis"] = load.Target(f"{url}/SISMEMBER/{keys.of_counter('users').members}/{name}")
        found, note = load.rates(targets, rounds=rounds, connections=CONNECTIONS, seconds=SECONDS)
    report.add(
        Result(
            "query.member.hello",
            "requests/s",
            "minimal ASGI hello, requests/s",
            paired(found, "query", "hello"),
            goal=0.35,
            peak_mb=peak.mb,
            note=f"with a token, CORS, and a log line for each request; {note}",
        )
    )
    if "webdis" in found:
        report.add(
            Result(
                "query.member.webdis",
                "requests/s",
                "webdis SISMEMBER, requests/s",
                paired(found, "query", "webdis"),
                note=note,
            )
        )
    world.stop(hello)


def beside_sql(world: World, report: Report, rounds: int, table_rows: int, hello: Peer) -> None:
    """The same counts from the table: one after the other over one connection, and as many as possible at once."""
    at = f"at {table_rows:,} rows"
    goal = 10_000 if table_rows >= 5_000_000 else 0
    columns = {"users": "username", "cities": "(state, city)"}
    hello_per_second = 1000 / latency_ms(hello.url)
    for name, listed in columns.items():
        url = f"{world.query.url}/v1/counts/{name}"
        asked = by_turns(
            rounds,
            {
                "sql": lambda listed=listed: 1 / count_distinct_seconds(world, listed),  # type: ignore[misc]
                "query": lambda url=url: 1000 / latency_ms(url),  # type: ignore[misc]
            },
        )
        against = f"COUNT(DISTINCT {listed}) on the primary, times/s"
        report.add(
            Result(
                f"query.counts.sql.{name} {at}",
                "times/s",
                against,
                paired(asked, "query", "sql"),
                goal=goal,
                note=f"one after the other, over one connection; a minimal hello: {hello_per_second:,.0f} times/s",
            )
        )
        at_once = by_turns(
            rounds,
            {
                "sql": lambda listed=listed: counts_distinct_per_second(world, listed),  # type: ignore[misc]
                "query": lambda url=url: (
                    load.as_fast_as_possible(  # type: ignore[misc]
                        load.Target(url), connections=CONNECTIONS, seconds=SECONDS
                    ).per_second
                ),
            },
        )
        report.add(
            Result(
                f"query.counts.sql.{name}.rate {at}",
                "times/s",
                against,
                paired(at_once, "query", "sql"),
                goal=goal,
                note=f"both with both processors: {CONNECTIONS} connections of HTTP, {SQL_CONNECTIONS} of SQL",
            )
        )


def latency_ms(url: str) -> float:
    """The median time of a request, one after the other."""
    return load.as_fast_as_possible(load.Target(url), connections=1, seconds=1).p50_ms


def counts_distinct_per_second(world: World, columns: str) -> float:
    """How many of them the primary gives, when several ask at once."""
    began = time.perf_counter()
    with ThreadPoolExecutor(SQL_CONNECTIONS) as askers:
        asked = [askers.submit(count_distinct_seconds, world, columns) for _ in range(SQL_CONNECTIONS)]
        for each in asked:
            each.result()
    return SQL_CONNECTIONS / (time.perf_counter() - began)


def count_distinct_seconds(world: World, columns: str) -> float:
    """The count from the table, as people write the SQL."""
    began = time.perf_counter()
    run_sql(world.primary.url, f"SELECT count(DISTINCT {columns}) FROM message")
    return time.perf_counter() - began


@contextmanager
def webdis(world: World, report: Report) -> Iterator[str | None]:
    """The address of a webdis with as many threads as query has workers; None if it is not installed."""
    program = shutil.which("webdis")
    if program is None:
        report.skip(WITHOUT_WEBDIS)
        yield None
        return
    port = free_port()
    config = world.folder / "webdis.json"
    config.write_text(
        json.dumps(
            {
                "redis_host": "127.0.0.1",
                "redis_port": world.valkey.port,
                "http_host": "127.0.0.1",
                "http_port": port,
                "threads": 2,
                "pool_size": 20,
                "daemonize": False,
                "verbosity": 0,
                "logfile": str(world.folder / "webdis.log"),
            }
        )
    )
    process = subprocess.Popen([program, str(config)], start_new_session=True)
    try:
        time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def streams(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """query.streams: a worker with many open streams; how late the last of them gets a change."""
    rows.fill(world, 1_000)
    make_live(world)
    service = world.service("streams", "query_service.asgi", {"REDIS_URL": world.valkey.url, "WORKERS": "1"})
    process = psutil.Process(service.pid)
    late_ms, each_kb = [], []
    for _ in range(rounds):
        before = resident_mb(process)
        words = ["--streams", str(STREAMS), "--redis", world.valkey.url, service.url]
        listening = subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.listeners", *words], stdout=subprocess.PIPE, text=True
        )
        assert listening.stdout is not None
        try:
            listening.stdout.readline()  # all are open
            each_kb.append((resident_mb(process) - before) * 1024 / STREAMS)
            late_ms.append(float(listening.stdout.readline()))
        finally:
            listening.kill()
            listening.wait()
            listening.stdout.close()
    report.add(
        Result(
            "query.streams.change",
            "ms",
            "limit, ms",
            [(late, CHANGE_MS) for late in late_ms],
            goal=-1.0,
            note=f"{STREAMS:,} streams in one worker, the latest of all of them over 20 changes",
        ),
        Result(
            "query.streams.memory",
            "kB each",
            "limit, kB",
            [(max(each_kb), STREAM_KB)],
            goal=-1.0,
            peak_mb=resident_mb(process),
            note="the worker's additional memory after opening them for the first time",
        ),
    )
    world.stop(service)


def growth_ms(world: World) -> float:
    """For the growth table: the latency, after a second of warming up."""
    return statistics.median(latency_ms(f"{world.query.url}/v1/counts/users") for _ in range(2))


CASES = {"query.counts": counts, "query.member": member, "query.streams": streams}
