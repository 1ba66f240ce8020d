"""Ingest: batches next to Postgres' own COPY, single messages next to a simple handler."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import psycopg2

from compose.local.services import Web
from loadtest.bench import load, rows
from loadtest.bench.memory import watched
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import World, wait_until_replayed

PRODUCERS = 2
BATCHES = 6  # that each producer sends in a round
COPY_SQL = "COPY message (state, city, username, message) FROM STDIN"
# How many there are, and how many times as fast ingest has to be.
CONNECTIONS = {32: 5.0, 256: 10.0}
# Of each worker of the naive handler: its two workers answer 32 requests at a time.
THREADS = 16
SECONDS = 3.0


class Batches:
    """The same batches for both sides: made once, sent again and again."""

    def __init__(self, world: World, ingest: Web | None = None) -> None:
        made = [rows.batch(seed) for seed in range(PRODUCERS * BATCHES)]
        self.bodies = [rows.as_ndjson(messages) for messages in made]
        self.lines = [rows.as_copy(messages) for messages in made]
        self.ingest = ingest or world.ingest
        self.database = world.primary.url

    def through_ingest(self) -> float:
        """Rows a second, acknowledged and counted."""
        return self._over_http(self.ingest.port, self.bodies, counted=True)

    def through_pipe(self, port: int) -> float:
        """Rows a second, committed by the peer of that name."""
        return self._over_http(port, self.lines, counted=False)

    def _over_http(self, port: int, bodies: list[bytes], *, counted: bool) -> float:
        headers = {"Content-Type": "application/x-ndjson", **self.ingest.authorization()}

        @contextmanager
        def producer() -> Iterator[Callable[[int], None]]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

            def send(number: int) -> None:
                connection.request("POST", "/v1/messages/batch", bodies[number], headers)
                answer = json.loads(connection.getresponse().read())
                if answer.get("accepted") != rows.BATCH_ROWS or answer["counted"] != counted:
                    raise load.LoadFailed(f"a batch was answered with {answer}")

            yield send
            connection.close()

        return self._rate(producer)

    def by_copy(self) -> float:
        """Rows a second, committed."""

        @contextmanager
        def producer() -> Iterator[Callable[[int], None]]:
            connection = psycopg2.connect(self.database)
            connection.autocommit = True

            def send(number: int) -> None:
                with connection.cursor() as cursor:
                    cursor.copy_expert(COPY_SQL, BytesIO(self.lines[number]), 1 << 18)

            yield send
            connection.close()

        return self._rate(producer)

    def _rate(self, producer: Any) -> float:
        """Send all batches, with this many producers at once, each over a connection of its own."""
        failures: list[BaseException] = []
        began: list[float] = []
        barrier = threading.Barrier(PRODUCERS, action=lambda: began.append(time.perf_counter()))

        def run(first: int) -> None:
            try:
                with producer() as send:
                    barrier.wait()
                    for number in range(first, PRODUCERS * BATCHES, PRODUCERS):
                        send(number)
            except Exception as error:  # noqa: BLE001  (raised again by the one who waits)
                failures.append(error)
                barrier.abort()

        threads = [threading.Thread(target=run, args=(first,)) for first in range(PRODUCERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return PRODUCERS * BATCHES * rows.BATCH_ROWS / (time.perf_counter() - began[0])


def batches(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """ingest.batch: compared with COPY, with COPY behind HTTP, and a large table with an empty one."""
    sides = Batches(world)
    pipe = world.peer("pipe", "pipe:application", like="ingest_service")
    beside = {"ingest": sides.through_ingest, "copy": sides.by_copy, "pipe": lambda: sides.through_pipe(pipe.port)}
    rows.fill(world, 0)
    for each in beside.values():  # connections, caches
        each()
    rows.fill(world, 0)
    with watched(world.ingest.pid) as peak:
        empty = by_turns(rounds, beside)
    world.stop(pipe)
    report.add(
        Result(
            "ingest.batch", "rows/s", "raw COPY, rows/s", paired(empty, "ingest", "copy"), goal=0.85, peak_mb=peak.mb
        ),
        Result(
            "ingest.batch.pipe",
            "rows/s",
            "raw COPY, rows/s",
            paired(empty, "pipe", "copy"),
            note="HTTP alone: the same server passes COPY's own text on, without reading or counting it",
        ),
    )
    rows.fill(world, table_rows)
    large = by_turns(rounds, {"ingest": sides.through_ingest, "copy": sides.by_copy})
    report.add(
        Result(
            f"ingest.batch.at {table_rows:,} rows",
            "rows/s",
            "into an empty table, rows/s",
            list(zip(large["ingest"], empty["ingest"], strict=True)),
            goal=0.8,
            note=f"raw COPY into the same: {sorted(large['copy'])[rounds // 2]:,.0f} rows/s",
        )
    )
    rows.fill(world, 0)


def singles(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """ingest.single: compared with save() and a pipeline for each request, with a few and with many connections."""
    # gunicorn's own threaded worker: under ASGI, Django opens a connection to Postgres for each request of such a handler.
    plain = world.peer(
        "plain", "plain:application", like="ingest_service", words=["--worker-class=gthread", f"--threads={THREADS}"]
    )
    ingest = load.Target(f"{world.ingest.url}/v1/messages", world.ingest.authorization(), posting=True)
    naive = load.Target(f"{plain.url}/naive", ingest.headers, posting=True)
    if not load.has_wrk():
        report.skip(load.WITHOUT_WRK)
    for connections, goal in CONNECTIONS.items():
        with watched(world.ingest.pid) as peak:
            found, note = load.rates(
                {"ingest": ingest, "naive": naive}, rounds=rounds, connections=connections, seconds=SECONDS
            )
        report.add(
            Result(
                f"ingest.single.{connections}",
                "requests/s",
                "save() and a pipeline each, requests/s",
                paired(found, "ingest", "naive"),
                goal=goal,
                peak_mb=peak.mb,
                note=note,
            )
        )
        rate = sorted(found["naive"])[rounds // 2] / 2
        p99 = by_turns(
            rounds,
            {
                name: partial(p99_ms_at, target, rate=rate, connections=connections)
                for name, target in (("ingest", ingest), ("naive", naive))
            },
        )
        report.add(
            Result(
                f"ingest.single.{connections}.p99",
                "ms",
                "save() and a pipeline each, ms",
                paired(p99, "ingest", "naive"),
                goal=-1.0,
                note=f"{connections} connections, at {rate:,.0f} requests/s, half of what the naive handler can do",
            )
        )
    world.stop(plain)
    wait_until_replayed(world)


def p99_ms_at(target: load.Target, *, rate: float, connections: int) -> float:
    """The p99 of the answers at this rate of requests."""
    return load.at_rate(target, rate=rate, connections=connections, seconds=SECONDS).p99_ms


def rate_of_batches(world: World) -> float:
    """For the growth table."""
    sides = Batches(world)
    sides.through_ingest()
    return sides.through_ingest()


CASES = {"ingest.batch": batches, "ingest.single": singles}
