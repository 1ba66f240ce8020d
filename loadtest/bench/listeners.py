"""Many event streams at once: `python -m loadtest.bench.listeners --streams 1000 --redis URL http://…`.

Prints a line when all are open, then makes changes, and prints the most milliseconds that passed between a
change and its event on any of the streams.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from typing import Any
from urllib.parse import urlsplit

from redis import Redis

from shared_models.protocol import steps

CHANGES = 20
# Between two changes: longer than a stream may wait.
PAUSE_SECONDS = 0.4
COUNT = re.compile(rb'"users":\{"count":(\d+)')


class Stream(asyncio.Protocol):
    """One stream; knows the last count that it got, and when."""

    def __init__(self, host: str) -> None:
        self.host, self.count, self.heard_at, self.tail = host, -1, 0.0, b""

    def connection_made(self, transport: Any) -> None:
        transport.write(f"GET /v1/stream HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        seen = COUNT.findall(self.tail + data)
        self.tail = (self.tail + data)[-1000:]
        if seen and int(seen[-1]) != self.count:
            self.count, self.heard_at = int(seen[-1]), time.perf_counter()


async def run(url: str, streams: int, redis_url: str) -> None:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    opened: list[Stream] = []
    for _ in range(streams):
        _, stream = await loop.create_connection(lambda: Stream(parts.netloc), str(parts.hostname), parts.port or 80)
        opened.append(stream)
    while any(stream.count < 0 for stream in opened):
        await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    print("open", flush=True)
    latest = 0.0
    with Redis.from_url(redis_url) as redis:
        for number in range(CHANGES):
            count = opened[0].count + 1
            steps.record(redis, {"users": [f"listener-{time.time_ns()}-{number}".encode()]})
            changed_at = time.perf_counter()
            await asyncio.sleep(PAUSE_SECONDS)
            late = [stream for stream in opened if stream.count != count]
            if late:
                raise SystemExit(f"{len(late)} streams did not get a change within {PAUSE_SECONDS} s")
            latest = max(latest, *(stream.heard_at - changed_at for stream in opened))
    print(latest * 1000, flush=True)
    await asyncio.sleep(60)  # until killed: ending a thousand streams gracefully is not measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--redis", required=True)
    options = parser.parse_args()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options.url, options.streams, options.redis))


if __name__ == "__main__":
    main()
