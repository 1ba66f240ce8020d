"""A load generator in Python: `python -m loadtest.bench.client [--post] [--rate=…] [--header=…] URL`. Prints one JSON document.

Without a rate each connection sends its next request when it has its answer. With a rate, requests are due at equal
intervals. A request without a free connection waits, and its latency counts from when it was due. So a slow server
does not reduce the load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

# Share of a core. Above it the client is the limit.
BUSY = 0.9


class Connection(asyncio.Protocol):
    """One keep-alive connection, and at most one request on it."""

    def __init__(self, load: Generator) -> None:
        self.load = load
        self.buffer = b""
        self.due = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.load.free(self)

    def ask(self, due: float) -> None:
        """Send the next request, which was due then."""
        self.due = due
        self.transport.write(self.load.request())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, blank, body = self.buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self.buffer = body[length:]
        self.load.answered(head[9:10] == b"2", self.due)
        self.load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.load.failed += not self.load.over


class Generator:
    """The run: the free connections, the due requests, the measured times."""

    def __init__(self, url: str, *, rate: float, posting: bool, headers: Sequence[str]) -> None:
        parts = urlsplit(url)
        self.rate, self.posting = rate, posting
        self.head = (
            f"{'POST' if posting else 'GET'} {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            + ("Content-Type: application/json\r\n" if posting else "")
            + "".join(f"{header}\r\n" for header in headers)
        ).encode()
        self.draw = random.Random(1)
        self.took: list[float] = []
        self.failed, self.over = 0, False
        self.idle: deque[Connection] = deque()
        self.waiting: deque[float] = deque()

    def request(self) -> bytes:
        """The bytes of the next request."""
        if not self.posting:
            return self.head + b"\r\n"
        city, user = self.draw.randrange(50), self.draw.randrange(100_000)
        body = b'{"state":"NY","city":"city%02d","username":"user%06d","message":"Good morning from here!"}' % (
            city,
            user,
        )
        return self.head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def answered(self, good: bool, due: float) -> None:
        self.took.append(time.perf_counter() - due)
        self.failed += not good

    def free(self, connection: Connection) -> None:
        """This connection can take a request."""
        if self.over:
            return
        if not self.rate:
            connection.ask(time.perf_counter())
        elif self.waiting:
            connection.ask(self.waiting.popleft())
        else:
            self.idle.append(connection)

    async def tick(self) -> None:
        """Make requests due at the rate."""
        began, sent = time.perf_counter(), 0
        while not self.over:
            now = time.perf_counter()
            while (due := began + sent / self.rate) <= now:
                sent += 1
                if self.idle:
                    self.idle.popleft().ask(due)
                else:
                    self.waiting.append(due)
            await asyncio.sleep(0.0005)


async def run(
    url: str, *, connections: int, seconds: float, rate: float, posting: bool, headers: Sequence[str]
) -> dict[str, float | bool | int]:
    """The figures of `load.Load`, and how many answers were bad."""
    load = Generator(url, rate=rate, posting=posting, headers=headers)
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Connection(load), str(parts.hostname), parts.port or 80)
        for _ in range(connections)
    ]
    ticking = asyncio.create_task(load.tick()) if rate else None
    load.took.clear()
    began, busy = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    load.over = True
    elapsed, busy = time.perf_counter() - began, time.process_time() - busy
    if ticking:
        await ticking
    for transport, _ in made:
        transport.abort()
    took = sorted(load.took)
    if not took:
        raise SystemExit(f"{url} has not answered within {seconds} s")
    return {
        "per_second": len(load.took) / elapsed,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[int(len(took) * 0.99)] * 1000,
        "limited_by_client": busy / elapsed > BUSY,
        "failed": load.failed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--post", action="store_true")
    parser.add_argument("--header", action="append", default=[], help='"Name: value", of each request')
    options = parser.parse_args()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(
            run(
                options.url,
                connections=options.connections,
                seconds=options.seconds,
                rate=options.rate,
                posting=options.post,
                headers=options.header,
            )
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
