"""The door in front of all that query answers, whoever answers it: the board, a stream, or Django.

It asks for a token where there are any, lets pages of other origins in where a setting says so, and keeps a client from
taking more than its share: bytes of a body, open streams.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter as Tally
from collections.abc import Sequence
from typing import Any

import structlog

from query_service import refusals, streams
from query_service.shortcut import Shortcut
from shared_models.http.arriving import ARRIVE_SECONDS, SLOWEST_BYTES_PER_SECOND, Arriving
from shared_models.web.problems import MEDIA_TYPE, Problem
from shared_models.web.prometheus import requests
from shared_models.web.request_log import HEADER, NO_ROUTE, TOKEN, id_of, note
from shared_models.web.tokens import Tokens, needs_token, unauthorized

Headers = list[tuple[bytes, bytes]]

PREFLIGHT_HEADERS: Headers = [
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    (b"access-control-allow-headers", b"authorization, cache-control, content-type, if-none-match, x-request-id"),
    (b"access-control-max-age", b"3600"),
]
EXPOSED = (b"access-control-expose-headers", b"etag, retry-after, rollcall-state, x-request-id")


class Door:
    """An ASGI application around another one. `metrics_public`: /metrics needs no token."""

    def __init__(
        self,
        application: Any,
        *,
        tokens: Tokens | None,
        metrics_public: bool,
        origins: Sequence[str],
        body_bytes: int,
        streams_per_client: int,
        shortcut: Shortcut | None = None,
    ) -> None:
        self.application = application
        # It passes by this door: where there is nothing to ask for.
        self.shortcut = None if tokens is not None or origins else shortcut
        self.tokens, self.metrics_public = tokens, metrics_public
        self.origins = {origin.encode() for origin in origins}
        self.body_bytes, self.streams_per_client = body_bytes, streams_per_client
        # How many streams each client has open; nobody who has none.
        self.open_streams: Tally[str] = Tally()

    @property
    def streams(self) -> Any:
        """The open streams of the worker, which end with it."""
        return self.application.streams

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        if self.origins:
            origin = header(scope, b"origin")
            send = with_headers(send, self.cross_origin(origin))
            if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
                # Before the token: browsers ask without one whether they may send it.
                begun = time.perf_counter()
                await answer(send, 204, PREFLIGHT_HEADERS)
                requests(NO_ROUTE, 204).observe(time.perf_counter() - begun)
                return
        client = ""
        if self.tokens is not None and needs_token(scope["path"], metrics_public=self.metrics_public):
            authorization = header(scope, b"authorization")
            client = self.tokens.find(authorization) or ""
            if not client:
                await refuse(scope, send, unauthorized(presented=bool(authorization)))
                return
            scope[TOKEN] = client
        if scope["path"] == streams.PATH and scope["method"] == "GET":
            if self.streams_per_client:
                await self._stream(client or str((scope.get("client") or [""])[0]), scope, receive, send)
            else:
                await self.application(scope, receive, send)
        elif not has_body(scope):
            await self.application(scope, receive, send)
        elif not await self._is_too_large(scope, send):
            body = Body(receive, self.body_bytes)
            await self.application(scope, body.receive, send)
            if body.refusal:
                await refuse(scope, send, body.refusal)

    def cross_origin(self, origin: bytes) -> Headers:
        """What tells a browser, and the caches on the way, whether a page of this origin may read the answer."""
        if b"*" in self.origins:
            return [(b"access-control-allow-origin", b"*"), EXPOSED]
        if origin in self.origins:
            return [(b"vary", b"origin"), (b"access-control-allow-origin", origin), EXPOSED]
        return [(b"vary", b"origin")]

    async def _stream(self, client: str, scope: Any, receive: Any, send: Any) -> None:
        if self.open_streams[client] >= self.streams_per_client:
            await refuse(scope, send, refusals.too_many_streams_of_client(self.streams_per_client))
            return
        self.open_streams[client] += 1
        try:
            await self.application(scope, receive, send)
        finally:
            self.open_streams[client] -= 1
            if not self.open_streams[client]:
                del self.open_streams[client]

    async def _is_too_large(self, scope: Any, send: Any) -> bool:
        """Refuse a body by its declared length, before any of it is read."""
        declared = header(scope, b"content-length")
        if not declared.isdigit() or int(declared[:20]) <= self.body_bytes:
            return False
        await refuse(scope, send, refusals.body_too_large(self.body_bytes))
        return True


class Body:
    """A body on its way in, which is given up when it takes too long, or grows too long without having said so.

    Django writes it to the disk before it looks at it: it has to end here. Django is told that the client is gone, and
    answers nothing; `refusal` says what the client is told.
    """

    def __init__(self, receive: Any, limit_bytes: int) -> None:
        self._receive, self._limit_bytes = receive, limit_bytes
        self._began, self._read, self._whole = asyncio.get_running_loop().time(), 0, False
        self.refusal: Problem | None = None

    async def receive(self) -> Any:
        """The next piece of it; behind the last one, that the client has gone."""
        deadline = None if self._whole else self._began + ARRIVE_SECONDS + self._read / SLOWEST_BYTES_PER_SECOND
        try:
            async with asyncio.timeout_at(deadline):
                message = await self._receive()
        except TimeoutError:
            return self._give_up(Arriving.timed_out())
        self._read += len(message.get("body", b""))
        if self._read > self._limit_bytes:
            return self._give_up(refusals.body_too_large(self._limit_bytes))
        self._whole = not message.get("more_body")
        return message

    def _give_up(self, refusal: Problem) -> Any:
        self.refusal = refusal
        return {"type": "http.disconnect"}


def has_body(scope: Any) -> bool:
    """Whether the head announces a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def header(scope: Any, name: bytes) -> bytes:
    """The first header of this name; b"" where there is none."""
    return next((value for known, value in scope["headers"] if known == name), b"")


def with_headers(send: Any, headers: Headers) -> Any:
    """`send`, which adds headers to the answer, also to one that was made before anybody asked."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return sending


async def refuse(scope: Any, send: Any, problem: Problem) -> None:
    """Answer a problem from outside of Django, and note it."""
    begun = time.perf_counter()
    request_id = id_of(header(scope, b"x-request-id").decode("latin-1"))
    headers = {"content-type": MEDIA_TYPE, "cache-control": "no-store", "x-content-type-options": "nosniff"}
    headers |= {name.lower(): value for name, value in {**problem.headers, HEADER: request_id}.items()}
    await answer(send, problem.status, [(n.encode(), v.encode()) for n, v in headers.items()], problem.body())
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        note(scope["method"], NO_ROUTE, problem.status, time.perf_counter() - begun)


async def answer(send: Any, status: int, headers: Headers, body: bytes = b"") -> None:
    """A whole answer."""
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})
