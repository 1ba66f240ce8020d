"""What gunicorn serves: the standing answers and the streams, and Django behind them for everything else.

A standing question costs a dictionary lookup and a look at three headers here, where Django would take a millisecond.
What this front does not know (a board that is bare, another host, another method, query parameters) goes to Django, whose
views give the same answers more slowly.
"""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "query_service.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application
from redis.asyncio import Redis

from query_service import metrics, stores, streams
from query_service.board import Board
from query_service.door import Door, Headers, with_headers
from query_service.scope import hand_over
from query_service.shortcut import Shortcut
from query_service.streams import Streams
from shared_models.web.hosts import is_allowed
from shared_models.web.request_log import TOKEN, id_of, write_line


class Application:
    """The ASGI application of one worker."""

    def __init__(
        self, board: Board, open_streams: Streams, members: Redis, django: Any, *, access_log: bool = False
    ) -> None:
        self.board, self.streams, self.members, self.django = board, open_streams, members, django
        self.access_log = access_log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if scope["method"] in ("GET", "HEAD") and await self._answer(scope, receive, send):
                return
            scope = hand_over(scope, self.board, self.members)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        await self.django(scope, receive, send)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> bool:
        """Answer a standing question or open a stream; False where this is neither."""
        path = scope["path"]
        if scope["query_string"].strip(b"&"):
            return False  # they are no part of a standing question: Django refuses them by name
        answer = self.board.answers.get(path)
        is_stream = path == streams.PATH and scope["method"] == "GET"
        if answer is None and not is_stream:
            return False

        begun = perf_counter()
        host = cache_control = if_none_match = request_id = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"cache-control":
                cache_control = value
            elif name == b"if-none-match":
                if_none_match = value
            elif name == b"x-request-id":
                request_id = value
        if not is_allowed(host):
            return False
        echoed = [(b"x-request-id", id_of(request_id.decode("latin-1")).encode())] if request_id else []
        if is_stream:
            status = await self.streams.serve(receive, with_headers(send, echoed) if echoed else send)
            if self.access_log:
                self.write_line(scope, path, status, begun, echoed)
            return True

        if cache_control and b"no-cache" in cache_control.lower():
            await self.board.read_anew()
            answer = self.board.answers.get(path)
        if answer is None:
            return False
        self.board.ask()
        status, headers, body = answer.pick(if_none_match, scope["method"] == "HEAD")
        await send(
            {"type": "http.response.start", "status": status, "headers": headers + echoed if echoed else headers}
        )
        await send({"type": "http.response.body", "body": body})
        metrics.note_standing_answer(answer.route, status, begun)
        if self.access_log:
            self.write_line(scope, answer.route, status, begun, echoed)
        return True

    def write_line(self, scope: Any, route: str, status: int, begun: float, echoed: Headers) -> None:
        """What Django's middleware writes of the other requests. `echoed`: the id that the client has sent, if so."""
        known = {"token": scope.get(TOKEN), "request_id": echoed[0][1].decode() if echoed else None}
        more = {name: value for name, value in known.items() if value}
        write_line(scope["method"], route, status, perf_counter() - begun, **more)

    async def _live(self, receive: Any, send: Any) -> None:
        """The lifespan protocol: nothing to do at the start."""
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """End the streams, and let go of the connections."""
        self.streams.end()
        await self.board.close()
        await self.members.aclose()


def make_application() -> Door:
    """Everything that a worker serves, by its settings. Nothing is connected before the first request."""
    board = Board(
        stores.connect_for_board(),
        refresh_seconds=settings.REFRESH_SECONDS,
        idle_seconds=settings.IDLE_SECONDS,
        stale_seconds=settings.STALE_SECONDS,
    )
    open_streams = Streams(
        board,
        seconds=settings.STREAM_SECONDS,
        heartbeat_seconds=settings.HEARTBEAT_SECONDS,
        limit=settings.MAX_STREAMS,
    )
    application = Application(
        board, open_streams, stores.connect_for_members(), get_asgi_application(), access_log=settings.ACCESS_LOG
    )
    return Door(
        application,
        tokens=settings.TOKENS,
        metrics_public=settings.METRICS_PUBLIC,
        origins=settings.CORS_ORIGINS,
        body_bytes=settings.MAX_BODY_BYTES,
        streams_per_client=settings.MAX_STREAMS_PER_CLIENT,
        shortcut=None if settings.ACCESS_LOG else Shortcut(board),
    )


application = make_application()
