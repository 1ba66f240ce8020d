"""/v1/stream: the counts as server-sent events, to any number of listeners.

An event is the answer of /v1/counts at the moment when it is sent. Query sends one when the answer changes: a count, a
state, a verification, a drift. `complete_through` changes every second; the heartbeat sends it. One task checks for
all listeners, every STREAM_SECONDS. A listener that is too slow misses some changes, and no queue grows for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from contextlib import suppress
from random import randint
from time import monotonic
from typing import TypeAlias

import msgspec

from query_service import metrics, problems
from query_service.answers import substance
from query_service.counts import Counts
from shared_models.protocol.moments import to_microseconds
from shared_models.web import request_log
from shared_models.web.asgi import Receive, Request

PATH = "/v1/stream"
HEARTBEAT = b":\n\n"
# How soon a browser connects again, in milliseconds, when a stream has ended.
RETRY = b"retry: 1000\n\n"
# … and when all streams of a worker end at once: each after another delay, so that thousands do not come together.
RETRY_FROM, RETRY_TO = 200, 3_000
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # nginx would buffer the events
        (b"x-content-type-options", b"nosniff"),
    ],
}

# The counters that a listener wants.
Choice: TypeAlias = tuple[str, ...]


class Listener:
    """One open stream."""

    __slots__ = ("choice", "has", "is_gone", "woken")

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.woken = asyncio.Event()
        self.is_gone = False
        self.has: Event | None = None  # what was sent to it last


class Event(msgspec.Struct, frozen=True, eq=False):
    """The latest event for a choice of counters: its `substance`, the whole answer, and its bytes."""

    substance: object
    whole: object
    text: bytes


class Streams:
    """The open streams of one worker. `limit_per_client`: 0 means that a client has no limit of its own."""

    def __init__(
        self, counts: Counts, *, seconds: float, heartbeat_seconds: float, limit: int, limit_per_client: int = 0
    ) -> None:
        self._counts = counts
        self.seconds, self.heartbeat_seconds = seconds, heartbeat_seconds
        self.limit, self.limit_per_client = limit, limit_per_client
        self.listeners: set[Listener] = set()
        # How many each client has open; only clients that have one.
        self.of_clients: Tally[str] = Tally()
        self._ended = False
        self._watch: asyncio.Task[None] | None = None
        # The latest event by choice, made once for all its listeners.
        self._latest: dict[Choice, Event] = {}

    def end(self) -> None:
        """End all streams, and new ones at once: their browsers connect again, to another worker."""
        self._ended = True
        for listener in self.listeners:
            listener.woken.set()

    async def serve(self, request: Request, choice: Choice) -> None:
        """One stream, from its request to its end. Raises Problem 429 or 503 if there is no place for it."""
        client = request.owner or str((request.scope.get("client") or [""])[0])
        if len(self.listeners) >= self.limit:
            raise problems.too_many_streams(self.limit)
        if self.limit_per_client and self.of_clients[client] >= self.limit_per_client:
            raise problems.too_many_streams_of_client(self.limit_per_client)
        listener = Listener(choice)
        self.listeners.add(listener)
        self.of_clients[client] += 1
        metrics.STREAMS.inc()
        waiting_for_the_end = asyncio.create_task(_note_the_end(listener, request.receive))
        try:
            # A server may also raise OSError when the client has gone.
            with suppress(OSError):
                await self._send_events(listener, request)
        finally:
            waiting_for_the_end.cancel()
            self.listeners.discard(listener)
            self.of_clients -= Tally([client])
            metrics.STREAMS.dec()

    async def _send(self, request: Request, body: bytes) -> None:
        """Send a piece of a stream. Raises OSError (TimeoutError) if the client reads nothing: others need its place."""
        async with asyncio.timeout(2 * self.heartbeat_seconds):
            await request.send({"type": "http.response.body", "body": body, "more_body": True})

    async def _send_events(self, listener: Listener, request: Request) -> None:
        await request.send(START)
        await self._send(request, RETRY)
        await self._counts.read_anew()
        request_log.note(request)  # here: how long a stream lasts is not the time of an answer
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_the_counts())
        while not (listener.is_gone or self._ended):
            listener.woken.clear()
            event = self._event_of(listener.choice)
            # Returns when the client has read the earlier events: the client sets the pace.
            unchanged = listener.has is not None and listener.has.whole == event.whole
            body = HEARTBEAT if unchanged else event.text
            listener.has = event
            await self._send(request, body)
            if not (listener.is_gone or self._ended):
                await listener.woken.wait()
        if self._ended:
            retry = b"retry: %d\n\n" % randint(RETRY_FROM, RETRY_TO)  # noqa: S311  (no secret)
            await self._send(request, retry)
        await request.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch_the_counts(self) -> None:
        """While there are listeners: keep reading the counts, and wake listeners for a change or a heartbeat."""
        woken_for: dict[Choice, object] = {}
        beat_at = monotonic()
        while self.listeners:
            self._counts.ask()
            is_beat = monotonic() - beat_at >= self.heartbeat_seconds
            if is_beat:
                beat_at = monotonic()
            choices = {listener.choice for listener in self.listeners}
            self._latest = {choice: event for choice, event in self._latest.items() if choice in choices}
            substances = {choice: self._event_of(choice).substance for choice in choices}
            for listener in self.listeners:
                if is_beat or substances[listener.choice] != woken_for.get(
                    listener.choice, substances[listener.choice]
                ):
                    listener.woken.set()
            woken_for = substances
            await asyncio.sleep(self.seconds)

    def _event_of(self, choice: Choice) -> Event:
        """The present event of each choice."""
        counters = self._counts.describe(choice)["counters"]
        known = self._latest.get(choice)
        if known is not None and known.whole == counters:
            return known
        reading = self._counts.reading
        number = b"" if reading is None else b"id: %d\n" % to_microseconds(reading.as_of)
        data = msgspec.json.encode({"counters": counters, "as_of": None if reading is None else reading.as_of})
        event = Event(
            {name: substance(counter) for name, counter in counters.items()},
            counters,
            b"%sdata: %s\n\n" % (number, data),
        )
        self._latest[choice] = event
        return event


async def _note_the_end(listener: Listener, receive: Receive) -> None:
    """Wait until the client is gone, so that its place is free at once."""
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.is_gone = True
    listener.woken.set()
