"""The ASGI application, driven from a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import unquote

import pytest
from django.core.asgi import get_asgi_application

from query_service import asgi, stores
from query_service.counts import Counts
from query_service.memberships import Memberships
from query_service.streams import Streams
from query_service.trips import Trips
from shared_models.web.application import Limits
from shared_models.web.asgi import Message

T = TypeVar("T")


@dataclass
class Reply:
    """What the application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Event:
    """One server-sent event, or a comment."""

    name: str = ""
    id: str = ""
    data: Any = None
    retry: str = ""
    is_comment: bool = False


@dataclass
class OpenStream:
    """A stream that a test listens to."""

    task: asyncio.Task[None]
    sent: asyncio.Queue[Message]
    gone: asyncio.Event
    may_send: asyncio.Event  # cleared: the client takes nothing, and `send` waits, as a server's does
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0

    async def next(self, seconds: float = 5.0) -> Event | None:
        """The next event; None at the end of the stream."""
        while True:
            async with asyncio.timeout(seconds):
                message = await self.sent.get()
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                continue
            if not message.get("more_body"):
                return None
            return parse_event(message["body"].decode())

    async def next_counts(self) -> Any:
        """The data of the next event that has some."""
        while (event := await self.next()) is not None:
            if event.data is not None:
                return event.data
        raise AssertionError("the stream has ended")

    async def hang_up(self) -> None:
        """The client goes away."""
        self.gone.set()
        await self.task


def parse_event(text: str) -> Event:
    event = Event()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line.startswith(":"):
            event.is_comment = True
        elif name == "event":
            event.name = value
        elif name == "data":
            event.data = json.loads(value)
        elif name in ("id", "retry"):
            setattr(event, name, value)
    return event


class Query:
    """The service in an event loop of its own, which runs while a test asks it something."""

    def __init__(self, url: str, *, limits: Limits | None = None, **changed: float) -> None:
        options = {"refresh_seconds": 0.02, "idle_seconds": 30.0, "stale_seconds": 30.0, "stream_seconds": 0.02}
        options |= {"heartbeat_seconds": 15.0, "streams": 100, "streams_per_client": 0, "max_members": 1_000}
        options |= {"member_bytes": 4 << 20, "algebra_members": 100_000, "badges": 0} | changed
        self._runner = asyncio.Runner()
        nodes = stores.connect_nodes(url)
        self.counts = Counts(
            Trips(nodes),
            refresh_seconds=options["refresh_seconds"],
            idle_seconds=options["idle_seconds"],
            stale_seconds=options["stale_seconds"],
        )
        self.streams = Streams(
            self.counts,
            seconds=options["stream_seconds"],
            heartbeat_seconds=options["heartbeat_seconds"],
            limit=int(options["streams"]),
            limit_per_client=int(options["streams_per_client"]),
        )
        self.application = asgi.Query(
            get_asgi_application(),
            limits or Limits(tokens=None),
            self.counts,
            Memberships(nodes),
            self.streams,
            max_members=int(options["max_members"]),
            member_bytes=int(options["member_bytes"]),
            algebra_members=int(options["algebra_members"]),
            badges=bool(options["badges"]),
        )

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(scenario)

    def close(self) -> None:
        self.run(self.application.stop())
        self._runner.close()

    def get(self, path: str, **headers: str) -> Reply:
        """GET; headers by their names in Python: if_none_match."""
        return self.run(self.request("GET", path, headers=headers))

    def read(self, path: str) -> Any:
        """The document at a path, read from Redis for this request."""
        reply = self.get(path, cache_control="no-cache")
        assert reply.status == 200, reply.body
        return reply.json

    def post(self, path: str, document: Any) -> Reply:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.run(self.request("POST", path, body=body))

    async def request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Reply:
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        await self.application(make_scope(method, path, headers or {}, body), receive, send)
        start, *bodies = sent
        return Reply(
            start["status"],
            {name.decode().lower(): value.decode() for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in bodies),
        )

    async def listen(self, query: str = "", headers: dict[str, str] | None = None) -> OpenStream:
        """Open /v1/stream."""
        sent: asyncio.Queue[Message] = asyncio.Queue()
        gone, may_send = asyncio.Event(), asyncio.Event()
        may_send.set()
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await may_send.wait()
            sent.put_nowait(message)

        served = self.application(make_scope("GET", f"/v1/stream{query}", headers or {}, b""), receive, send)
        return OpenStream(asyncio.create_task(served), sent, gone, may_send)


def make_scope(method: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    route, _, query = path.partition("?")
    named = {"host": "localhost", "content_length": str(len(body)), **headers}
    named = {name: value for name, value in named.items() if value or name != "content_length"}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(route),
        "raw_path": route.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in named.items()
            if value or name != "content_length"
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8003),
    }


async def eventually(condition: Any, what: str, seconds: float = 10.0) -> Any:
    """The first true answer of `condition`, while the loop goes on; the test fails where there is none in time."""
    deadline = monotonic() + seconds
    while not (answer := condition()):
        if monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(0.005)
    return answer
