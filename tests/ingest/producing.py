"""The helpers of ingest's tests: send requests, and look up rows and members."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

from redis import Redis

from ingest_service.api.application import Ingest
from shared_models.protocol import keys, states
from tests.servers import DEADLINE_SECONDS, sql, started_primary

NDJSON = "application/x-ndjson"
T = TypeVar("T")


def message(username: str = "ann", state: str = "NY", city: str = "New York", message: str = "hello") -> dict[str, str]:
    """A valid message."""
    return {"state": state, "city": city, "username": username, "message": message}


def ndjson(*rows: Any) -> bytes:
    """The rows, a line each, as a client that writes UTF-8 would send them."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@dataclass(frozen=True)
class Response:
    """An answer of the application."""

    status_code: int
    headers: Mapping[str, str]  # names in lower case
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)

    def __getitem__(self, name: str) -> str:
        return self.headers[name.lower()]

    def has_header(self, name: str) -> bool:
        return name.lower() in self.headers


@cache
def running_loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process's application, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="application", daemon=True).start()
    return loop


@dataclass
class Producer:
    """Sends requests to an application, which runs in this process, from whatever thread."""

    redis: Redis
    application: Ingest

    def ask(
        self,
        method: str,
        path: str,
        pieces: Sequence[bytes] = (),
        headers: Mapping[str, str] | None = None,
        *,
        stays_silent: bool = False,
    ) -> Response:
        """One request, as the server would hand it over; its body comes in these pieces, and does not end for who
        `stays_silent`."""
        named = {"Host": "localhost", "Content-Length": str(sum(map(len, pieces)))} | dict(headers or {})
        end = [] if stays_silent else [b""]
        asking = self._ask(method, path, [*pieces, *end], len(end), named)
        return asyncio.run_coroutine_threadsafe(asking, running_loop()).result(DEADLINE_SECONDS * 2)

    async def _ask(
        self, method: str, path: str, pieces: Sequence[bytes], ends: int, headers: Mapping[str, str]
    ) -> Response:
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
            "scheme": "http",
            "http_version": "1.1",
            "server": ("localhost", 8001),
        }
        coming = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if ends:
            coming[-1]["more_body"] = False
        said: list[Any] = []

        async def receive() -> Any:
            if coming:
                return coming.pop(0)
            await asyncio.Event().wait()  # the client stays
            raise AssertionError

        async def send(message: Any) -> None:
            said.append(message)

        await self.application(scope, receive, send)
        head, *rest = said
        answered = {name.decode().lower(): value.decode("latin-1") for name, value in head["headers"]}
        return Response(head["status"], answered, b"".join(each.get("body", b"") for each in rest))

    def get(self, path: str, **headers: str) -> Response:
        """GET; `headers` with _ for -."""
        return self.ask("GET", path, (), {name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, body: bytes | Any, content_type: str = "application/json", **headers: str) -> Response:
        """POST; `headers` with _ for -. What is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": content_type} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, (data,), named)

    def send(self, row: Any, **headers: str) -> Response:
        """One message."""
        return self.post("/v1/messages", row, **headers)

    def send_batch(self, *rows: Any, query: str = "", **headers: str) -> Response:
        """Many, as NDJSON."""
        return self.post(f"/v1/messages/batch{query}", ndjson(*rows), NDJSON, **headers)

    def in_committer(self, call: Callable[[], T]) -> T:
        """Call something in the thread that stores single rows, and has its connection."""
        return self.application.rows.committer.thread.submit(call).result(DEADLINE_SECONDS)

    def rows(self) -> list[tuple[str, ...]]:
        """What the table holds, in the order of insertion."""
        return sql(started_primary(), "SELECT state, city, username, message FROM message ORDER BY id")

    def usernames(self) -> list[str]:
        """The same, one field."""
        return [row[2] for row in self.rows()]

    def members(self, counter: str) -> set[bytes]:
        """What the counter's set holds."""
        return cast("set[bytes]", self.redis.smembers(keys.of_counter(counter).members))

    def state(self, counter: str) -> states.State:
        """What Redis knows of the counter."""
        return states.read_state(self.redis, counter)
