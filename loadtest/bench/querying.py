"""Query: standing answers beside a bare ASGI application, beside webdis, beside SQL; and a thousand event streams."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil

from compose.local.services import Web
from loadtest.bench import load, rows
from loadtest.bench.memory import resident_mb, watched
from loadtest.bench.reconciling import make_live
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import Peer, World, free_port, run_sql
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
    """query.counts."""
    rows.fill(world, table_rows)
    make_live(world)
    if not load.has_wrk():
        report.skip(load.WITHOUT_WRK)
    hello = world.peer("hello", "hello:application", like="query_service")
    urls = {"query": f"{world.query.url}/v1/counts/users", "hello": hello.url}
    with webdis(world, report) as url:
        if url:
            urls["webdis"] = f"{url}/SCARD/{keys.of_counter('users').members}"
        limited = False

        def measure(url: str) -> float:
            nonlocal limited
            measured = load.as_fast_as_possible(url, connections=CONNECTIONS, seconds=SECONDS)
            limited = limited or measured.limited_by_client
            return measured.per_second

        for each in urls.values():
            load.as_fast_as_possible(each, connections=CONNECTIONS, seconds=1)
        with watched(world.query.pid) as peak:
            found = by_turns(rounds, {name: lambda url=url: measure(url) for name, url in urls.items()})  # type: ignore[misc]
    note = f"{CONNECTIONS} connections" + ("; limited by the client" if limited else "")
    report.add(
        Result(
            "query.counts.hello",
            "requests/s",
            "bare ASGI hello, requests/s",
            paired(found, "query", "hello"),
            goal=0.8,
            peak_mb=peak.mb,
            note=note,
        )
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
    beside_sql(world, report, rounds, table_rows, hello)
    world.stop(hello)


def beside_sql(world: World, report: Report, rounds: int, table_rows: int, hello: Peer) -> None:
    """The same counts asked of the table: one after the other over one connection, and as many as come out at once."""
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
                note=f"one after the other, over one connection; a bare hello: {hello_per_second:,.0f} times/s",
            )
        )
        at_once = by_turns(
            rounds,
            {
                "sql": lambda listed=listed: counts_distinct_per_second(world, listed),  # type: ignore[misc]
                "query": lambda url=url: (
                    load.as_fast_as_possible(  # type: ignore[misc]
                        url, connections=CONNECTIONS, seconds=SECONDS
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
    return load.as_fast_as_possible(url, connections=1, seconds=1).p50_ms


def counts_distinct_per_second(world: World, columns: str) -> float:
    """How many of them the primary gives, when several ask at once."""
    began = time.perf_counter()
    with ThreadPoolExecutor(SQL_CONNECTIONS) as askers:
        asked = [askers.submit(count_distinct_seconds, world, columns) for _ in range(SQL_CONNECTIONS)]
        for each in asked:
            each.result()
    return SQL_CONNECTIONS / (time.perf_counter() - began)


def count_distinct_seconds(world: World, columns: str) -> float:
    """The count that the table gives, the way that people write it."""
    began = time.perf_counter()
    run_sql(world.primary.url, f"SELECT count(DISTINCT {columns}) FROM message")
    return time.perf_counter() - began


@contextmanager
def webdis(world: World, report: Report) -> Iterator[str | None]:
    """The address of a webdis with as many threads as query has workers; None where there is none."""
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
    """query.streams: a worker with many open streams; how late the last of them hears of a change."""
    rows.fill(world, 1_000)
    make_live(world)
    variables: Callable[[], dict[str, str]] = lambda: {"REDIS_URL": world.valkey.url, "WORKERS": "1"}  # noqa: E731
    service = world.start(
        Web(world.folder / "streams", free_port(), variables, application="query_service.asgi", dies_with_parent=True)
    )
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
            note="what opening them for the first time adds to the worker",
        ),
    )
    world.stop(service)


def growth_ms(world: World) -> float:
    """For the growth table: the latency, after a second of warming up."""
    return statistics.median(latency_ms(f"{world.query.url}/v1/counts/users") for _ in range(2))


CASES = {"query.counts": counts, "query.streams": streams}
