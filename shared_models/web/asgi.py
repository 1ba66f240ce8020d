"""A request and an answer, as the applications of all services see them, and ASGI's own types."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

from shared_models.web.problems import MEDIA_TYPE, Problem
from shared_models.web.request_log import NO_ROUTE

Scope: TypeAlias = dict[str, Any]
Message: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGI: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

JSON = "application/json"
# With it no browser treats JSON as a page, whatever the JSON contains.
NOSNIFF = (b"x-content-type-options", b"nosniff")


class ClientGone(Exception):
    """The client has closed the connection, and does not read an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, ready to be sent."""

    status: int
    headers: Headers
    body: bytes = b""


def answer(status: int, body: bytes, content_type: str = JSON, more: dict[str, str] | None = None) -> Answer:
    """An answer with JSON, and more headers by their names."""
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body)), NOSNIFF]
    if more:
        headers += [(name.lower().encode(), value.encode()) for name, value in more.items()]
    return Answer(status, headers, body)


def refusal(problem: Problem) -> Answer:
    """The answer for a problem."""
    return answer(problem.status, problem.body(), MEDIA_TYPE, {"Cache-Control": "no-store", **problem.headers})


class Request:
    """One request. `route` is its name in log and metrics, such as "/v1/counts/{counter}": clients can invent paths."""

    id = ""  # for the log; the client may choose it
    owner = ""  # the name of its token
    route = NO_ROUTE
    is_standing = False  # the answer was ready before the request
    more_headers: Sequence[tuple[bytes, bytes]] = ()  # of the answer, whatever makes it
    held_bytes = 0  # of its body, in memory
    status = 0  # of the answer that has been begun

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun = perf_counter()
        self.scope, self.receive, self._send = scope, receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        # Names are in lower case. Of a header that is sent twice the last one counts.
        self.headers: dict[bytes, bytes] = dict(scope["headers"])

    def header(self, name: bytes) -> str:
        """A header as text; "" if it is missing."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def query(self) -> str:
        """The query string, as it was sent."""
        return str(self.scope["query_string"], "latin-1")

    async def send(self, message: Message) -> None:
        """ASGI's send, which adds the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self.more_headers]}
        try:
            await self._send(message)
        except RuntimeError as error:
            raise_unless_gone(error)
            raise ClientGone from None


def raise_unless_gone(error: RuntimeError) -> None:
    """Raise the server's error, unless it says that the client has closed the connection. uvicorn ignores that only for the
    last request of a connection. For one that the client has sent others after, uvloop raises it, in these words."""
    if "is closed" not in str(error):
        raise error
