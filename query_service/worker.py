"""gunicorn's ASGI worker, which waits for the first request on a connection no longer than for the next ones, and which
leaves nobody unanswered when it stops.

A slow client holds no worker here: one event loop waits for all of them. But each holds a connection, and gunicorn would
let it do so for ever before its first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol  # type: ignore[import-untyped]
from gunicorn.workers import gasgi  # type: ignore[import-untyped]

from shared_models.http import succession
from shared_models.web.problems import Problem, last_answer
from shared_models.web.request_log import note_unread

# For the head of the first request. Those of later ones have to arrive within `keepalive`.
HEAD_SECONDS = 10.0
# For how long a worker that stops waits for requests on the connections that it has.
LEAVE_SECONDS = 2.0
# So many questions that a client has sent at once are answered in a row; then it is the turn of the others.
IN_A_ROW = 32


theirs = SimpleNamespace(
    connection_made=ASGIProtocol.connection_made,
    connection_lost=ASGIProtocol.connection_lost,
    will_close=ASGIProtocol._will_close,
    serve=ASGIProtocol._serve_http_request,
)


# What a connection does otherwise than gunicorn's. These are put on gunicorn's own class: a subclass, even an empty one,
# does without the parser in C, and is a fifth slower.


def connection_made(self: Any, transport: Any) -> None:
    """A client has connected."""
    theirs.connection_made(self, transport)
    # The timer of an idle connection, which gunicorn cancels when a request is there.
    self._keepalive_handle = self.worker.loop.call_later(HEAD_SECONDS, self._keepalive_timeout)
    self.worker.connections.add(self)


def connection_lost(self: Any, exc: Exception | None) -> None:
    """It has gone."""
    theirs.connection_lost(self, exc)
    self.worker.connections.discard(self)


def will_close(self: Any, request: Any, response_requires_close: bool) -> bool:
    """Whether the answer says `Connection: close`."""
    return self.worker.stopping or bool(theirs.will_close(self, request, response_requires_close))


async def serve(self: Any, request: Any, sockname: Any, peername: Any) -> bool:
    """Answer a request; whether the connection stays. A plain standing question needs no more than what is here."""
    shortcut = self.worker.shortcut
    if shortcut is not None and not self._will_close(request, response_requires_close=False):
        found = shortcut.find(request)
        if found is not None:
            self._safe_write(found)
            if self._flow_control.write_paused:  # a client that asks and does not listen
                await self._flow_control.drain()
            elif not self.req_count % IN_A_ROW:
                await asyncio.sleep(0)
            return True
    return bool(await theirs.serve(self, request, sockname, peername))


def send_error_response(self: Any, status: int, message: str, extra_headers: Any = ()) -> None:
    """Answer a request that gunicorn cannot parse, as all others are answered."""
    if self._closed:
        return  # nobody is there: a body that ended early, a client that did not wait
    slug, title = "unreadable-request", "The request cannot be read"
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        slug, title = "internal-error", "Internal error"
    problem = Problem(status, slug, title, message, headers=dict(extra_headers))
    self._safe_write(last_answer(problem))
    note_unread(problem)


def extend_protocol() -> None:
    """Put them there, for this process. Twice is as good as once."""
    ASGIProtocol.connection_made = connection_made
    ASGIProtocol.connection_lost = connection_lost
    ASGIProtocol._will_close = will_close
    ASGIProtocol._serve_http_request = serve
    ASGIProtocol._send_error_response = send_error_response


class Worker(gasgi.ASGIWorker):
    """Each stream is a connection: as many as the system lets us have."""

    def __init__(self, age: int, *rest: Any) -> None:
        super().__init__(age, *rest)
        succession.note_started(age)

    def run(self) -> None:
        succession.note_ready(self.age)
        super().run()

    def init_process(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # unlimited, or not ours to raise
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        extend_protocol()  # gunicorn has no setting for it
        self.told_to_stop = self.stopping = False
        self.connections: set[Any] = set()
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        # Only query's own application has them; others (the benchmark's) run under this worker, too.
        self.shortcut, self.streams = getattr(self.asgi, "shortcut", None), getattr(self.asgi, "streams", None)

    def init_signals(self) -> None:
        super().init_signals()
        self.loop.add_signal_handler(signal.SIGTERM, self.begin_to_stop)

    def begin_to_stop(self) -> None:
        """SIGTERM, which gunicorn may send several times: end, when whoever follows can take over."""
        if not self.told_to_stop:
            self.told_to_stop = True
            self.loop.create_task(self.stop_in_good_order())

    async def stop_in_good_order(self) -> None:
        """End the event streams, and go on answering for a moment before gunicorn does what it does on SIGTERM."""
        deadline = self.loop.time() + succession.SUCCESSION_SECONDS
        while not succession.is_succeeded(self.age) and self.loop.time() < deadline:
            await asyncio.sleep(0.05)
        self.stopping = True
        if self.streams is not None:
            self.streams.end()
        await self.take_leave()

    async def take_leave(self) -> None:
        """Leave nobody unanswered.

        1. The listener is let go of at once, and whom the kernel has connected by then is served: gunicorn would cut them
           off. Whoever connects from now on meets another worker, or is refused, and can go elsewhere.
        2. From here on every answer says that the connection ends with it (`will_close`). gunicorn would end those, too,
           which it has just told that they stay.
        3. A client may be sending its next request just now. Connections on which none has come for a while are closed.
        """
        for server, listener in zip(self.servers, self.sockets, strict=True):
            waiting = listener.sock.dup()
            waiting.setblocking(False)
            server.close()
            while (
                listener.sock.fileno() >= 0
            ):  # uvloop closes it a turn later; until then the kernel goes on to connect
                await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    connection, _ = waiting.accept()
                    connection.setblocking(False)
                    await self.loop.connect_accepted_socket(lambda: ASGIProtocol(self), connection)
            waiting.close()
        deadline = self.loop.time() + LEAVE_SECONDS
        while self.nr_conns and self.loop.time() < deadline:
            await asyncio.sleep(0.05)
        for idle in [each for each in self.connections if each._awaiting_request]:
            idle._keepalive_timeout()  # what its timer does
        self.handle_exit_signal()
