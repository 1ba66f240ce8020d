"""/v1/stream: the counts as server-sent events, to any number of listeners.

One task looks at the board for all of them, every STREAM_SECONDS, and wakes them when the counts have changed. An
event is always the whole state at the moment when it is sent: a listener that is too slow for the changes misses some,
and nothing piles up for it.

    event: counts    data: what /v1/counts says (every counter, also the cold ones)
    event: stale     data: the same, as last read: Redis cannot be read at the moment
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import randint
from time import monotonic, perf_counter
from typing import Any

import msgspec

from query_service import metrics, refusals
from query_service.answers import Condition
from query_service.board import Board
from shared_models.protocol.moments import to_microseconds
from shared_models.web.prometheus import requests

PATH = "/v1/stream"
HEARTBEAT = b":\n\n"
# How soon a browser connects again, in milliseconds, when a stream has ended.
RETRY = b"retry: 1000\n\n"
# … and when all streams of a worker end at once: each at another moment, so that thousands do not come together.
RETRY_FROM, RETRY_TO = 200, 3_000
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # nginx would hold the events back
        (b"x-content-type-options", b"nosniff"),
    ],
}


class Listener:
    """One open stream."""

    __slots__ = ("has", "is_gone", "woken")

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.is_gone = False
        self.has: Any = None  # what it has been sent last


class Streams:
    """The open streams of one worker."""

    def __init__(self, board: Board, *, seconds: float, heartbeat_seconds: float, limit: int) -> None:
        self._board = board
        self.seconds, self.heartbeat_seconds, self.limit = seconds, heartbeat_seconds, limit
        self.listeners: set[Listener] = set()
        self._ended = False
        self._watch: asyncio.Task[None] | None = None
        # What the latest event says, and its bytes: made once for all who are sent it.
        self._said: Any = None
        self._event = b""

    def end(self) -> None:
        """End all streams, and those yet to come at once: their browsers connect again, to another worker."""
        self._ended = True
        for listener in self.listeners:
            listener.woken.set()

    async def serve(self, receive: Any, send: Any) -> int:
        """One stream, from its request to its end; the status that it was answered."""
        begun = perf_counter()
        if len(self.listeners) >= self.limit:
            refusal = refusals.too_many_streams(self.limit)
            await _refuse(send, refusal)
            requests(PATH, refusal.status).observe(perf_counter() - begun)
            return refusal.status
        listener = Listener()
        self.listeners.add(listener)
        metrics.STREAMS.inc()
        waiting_for_the_end = asyncio.create_task(_note_the_end(listener, receive))
        try:
            # A server may tell by OSError, too, that the client is gone.
            with suppress(OSError):
                await self._send_events(listener, send, begun)
        finally:
            waiting_for_the_end.cancel()
            self.listeners.discard(listener)
            metrics.STREAMS.dec()
        return 200

    async def _send(self, send: Any, body: bytes) -> None:
        """Send a piece of a stream. Raises OSError (TimeoutError) where the client takes nothing: its place is for others."""
        async with asyncio.timeout(2 * self.heartbeat_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _send_events(self, listener: Listener, send: Any, begun: float) -> None:
        await send(START)
        await self._send(send, RETRY)
        await self._board.read_anew()
        requests(PATH, 200).observe(
            perf_counter() - begun
        )  # until it has something to say; how long it lasts is no time
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_the_board())
        while not (listener.is_gone or self._ended):
            listener.woken.clear()
            said, event = self._latest()
            # Returns when the client has taken what was sent before: the pace is the client's.
            body = HEARTBEAT if said == listener.has else event
            listener.has = said
            await self._send(send, body)
            if not (listener.is_gone or self._ended):
                await listener.woken.wait()
        if self._ended:
            retry = b"retry: %d\n\n" % randint(RETRY_FROM, RETRY_TO)  # noqa: S311  (no secret)
            await self._send(send, retry)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch_the_board(self) -> None:
        """While anybody listens: keep the board awake, and wake the listeners for a change or a heartbeat."""
        woken_for, woken_at = self._said, monotonic()
        while self.listeners:
            self._board.ask()
            said, _ = self._latest()
            if said != woken_for or monotonic() - woken_at >= self.heartbeat_seconds:
                woken_for, woken_at = said, monotonic()
                for listener in self.listeners:
                    listener.woken.set()
            await asyncio.sleep(self.seconds)

    def _latest(self) -> tuple[Any, bytes]:
        """What there is to say now, for comparison, and the event that says it.

        That only the time of the reading has moved is nothing to say.
        """
        reading, condition = self._board.reading, self._board.condition
        said = (condition, None if reading is None else reading.states)
        if said != self._said:
            name = b"counts" if condition is Condition.FRESH else b"stale"
            number = b"" if reading is None else b"id: %d\n" % to_microseconds(reading.as_of)
            data = msgspec.json.encode(self._board.describe())
            self._said, self._event = said, b"%sevent: %s\ndata: %s\n\n" % (number, name, data)
        return self._said, self._event


async def _note_the_end(listener: Listener, receive: Any) -> None:
    """Wait until the client is gone, so that its place is free at once."""
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.is_gone = True
    listener.woken.set()


async def _refuse(send: Any, problem: Any) -> None:
    headers = {"content-type": "application/problem+json", "cache-control": "no-store", **problem.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": problem.body()})
