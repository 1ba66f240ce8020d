"""gunicorn's threaded worker, made safe against clients that are slow, on purpose or not.

gunicorn's own gives each connection to a thread at once, which then waits for the request, byte by byte, for ever: as many
slow clients as there are threads, and nobody else is answered. Here the worker's one event loop waits for all
connections, and a thread gets a request that is all there (`arriving`). It reads nothing from the client; it waits for it
only to take its answer, and not for long. What a thread has answered is closed by the loop, too: gunicorn would wait for
the client's goodbye in it, and all with it.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import selectors
import signal
import socket
import time
from concurrent.futures import Future
from functools import partial
from typing import Any

from gunicorn import http  # type: ignore[import-untyped]
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker  # type: ignore[import-untyped]

from shared_models.http import succession
from shared_models.http.arriving import Arriving, Refused
from shared_models.http.handed import Held, PatientSocket
from shared_models.web.problems import Problem, last_answer
from shared_models.web.request_log import note_unread, unreadable

# From the last byte of an answer until the client has closed the connection, too. RFC 9112, section 9.6: closing
# while it is still sending may cost it the answer.
LINGER_SECONDS = 2.0
# One look at the sockets takes this much of each.
READ_BYTES = 1 << 16
# What all requests of a worker may hold, in memory and on the disk, from their first byte until they are answered. Above
# that the largest of those that are still arriving is refused. The disk has to have more room than this for each worker.
HELD_BYTES = 384 << 20
# How often deadlines are looked at.
LOOK_SECONDS = 0.5


class Worker(ThreadWorker):
    """Otherwise gunicorn's. On SIGTERM it answers whoever is connected, and lets go of the listener at once."""

    def __init__(self, age: int, *rest: Any) -> None:
        super().__init__(age, *rest)
        succession.note_started(age)
        self.leave_by = 0.0  # since it was told to end: when it does, at the latest

    def init_process(self) -> None:
        # Connections are many and mostly idle: as many as the system lets us have.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # unlimited, or not ours to raise
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.is_ssl = self.cfg.is_ssl  # gunicorn works it out each time
        self.let_go_at = 0.0  # while it stops: when connections on which nothing was asked are closed
        # By connection, oldest first.
        self.arriving: dict[TConn, Arriving] = {}
        self.answering: dict[TConn, int] = {}  # how much is held of a request that has a thread, or waits for one
        self.lingering: dict[TConn, float] = {}
        self.look_at = 0.0
        super().init_process()

    def run(self) -> None:
        succession.note_ready(self.age)
        super().run()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: end, when whoever follows can take over. gunicorn may say so several times."""
        self.leave_by = self.leave_by or time.monotonic() + succession.SUCCESSION_SECONDS
        if succession.is_succeeded(self.age):
            super().handle_exit(sig, frame)

    def accept(self, listener: Any) -> None:
        """Take a new connection."""
        self.accept_one(listener)

    def accept_one(self, listener: Any) -> bool:
        """Take a new connection; whether there was one. Where there is no room for it, the one that has been arriving longest
        goes."""
        try:
            raw, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.make_room()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return False
        self.nr_conns += 1
        if self.nr_conns >= self.worker_connections:
            self.make_room()
        connection = TConn(self.cfg, PatientSocket(raw.detach()), address, listener.getsockname())
        if self.is_ssl:
            self.enqueue_req(connection)  # bytes of TLS: gunicorn's threads have to read them
        else:
            self.begin(connection)
        return True

    def on_client_socket_readable(self, conn: TConn, client: Any) -> None:
        """A kept connection has something to say."""
        if client.fileno() < 0:
            return  # let go of, to make room, since this turn of the loop began
        if self.is_ssl:
            super().on_client_socket_readable(conn, client)
            return
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self.begin(conn)

    def begin(self, connection: TConn, rest: bytes = b"") -> None:
        """Wait for a request on this connection; `rest` has been read already."""
        arriving = Arriving(time.monotonic(), self.cfg.keepalive)
        self.arriving[connection] = arriving
        self.poller.register(connection.sock, selectors.EVENT_READ, partial(self.on_readable, connection))
        self.take(connection, arriving, rest) if rest else self.on_readable(connection, connection.sock)

    def on_readable(self, connection: TConn, client: Any) -> None:
        """Some of a request is there."""
        if client.fileno() < 0:
            return  # let go of since this turn of the loop began
        try:
            data = connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        arriving = self.arriving[connection]
        if data:
            self.take(connection, arriving, data)
        elif arriving.has_head:
            # The client has said all that it will say, and may wait for an answer; a thread does not wait for the rest.
            self.hand_over(connection, arriving)
        else:
            self.drop(connection)

    def take(self, connection: TConn, arriving: Arriving, data: bytes) -> None:
        """Add to what has arrived; a request that is all there goes to a thread."""
        try:
            whole = arriving.add(data)
        except Refused as refused:
            self.refuse(connection, refused)
            return
        if arriving.size > READ_BYTES and self.held_bytes() > HELD_BYTES:
            largest = max(self.arriving, key=lambda each: self.arriving[each].size)
            self.refuse(largest, arriving.no_room())
            if largest is connection:
                return
        if arriving.must_be_told_to_continue():
            with contextlib.suppress(OSError):
                connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if whole:
            self.hand_over(connection, arriving)

    def held_bytes(self) -> int:
        """What all requests hold that are not answered yet."""
        return sum(each.size for each in self.arriving.values()) + sum(self.answering.values())

    def hand_over(self, connection: TConn, arriving: Arriving) -> None:
        """Give a request to a thread."""
        del self.arriving[connection]
        self.answering[connection] = arriving.size
        self.poller.unregister(connection.sock)
        if connection.parser is None:
            connection.parser = http.get_parser(self.cfg, connection.sock, connection.client)
            connection.parser.unreader = Held(connection.sock)
        connection.parser.unreader.file = arriving.as_file()
        connection.data_ready = True
        self.enqueue_req(connection)

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """A thread is done with a request: wait for the next one, or close."""
        if self.is_ssl:
            super().finish_request(conn, fs)
            return
        del self.answering[conn]
        stays = not fs.cancelled() and fs.exception() is None and bool(fs.result())
        if not stays:
            conn.parser.unreader.forget()
            self.linger(conn)
        elif rest := conn.parser.unreader.take_rest():
            conn.sock.setblocking(False)
            self.begin(conn, rest)
        else:
            super().finish_request(conn, fs)

    def linger(self, connection: TConn) -> None:
        """Say goodbye, and wait for the client's without making anybody else wait."""
        try:
            connection.sock.setblocking(False)
            connection.sock.shutdown(socket.SHUT_WR)
            self.lingering[connection] = time.monotonic() + LINGER_SECONDS
            self.poller.register(connection.sock, selectors.EVENT_READ, partial(self.on_goodbye, connection))
        except (OSError, ValueError):  # gone already
            self.lingering.pop(connection, None)
            self.close(connection)

    def on_goodbye(self, connection: TConn, client: Any) -> None:
        """Throw away what a client still sends; close when it does."""
        with contextlib.suppress(BlockingIOError):
            try:
                if connection.sock.recv(READ_BYTES):
                    return
            except BlockingIOError:
                raise
            except OSError:
                pass
            self.end_lingering(connection)

    def end_lingering(self, connection: TConn) -> None:
        del self.lingering[connection]
        self.poller.unregister(connection.sock)
        self.close(connection)

    def refuse(self, connection: TConn, problem: Problem) -> None:
        """Answer a request that no thread shall see. The answer fits into the socket's buffer, or is lost."""
        self.arriving.pop(connection).close()
        self.poller.unregister(connection.sock)
        with contextlib.suppress(OSError):
            connection.sock.send(last_answer(problem))
        note_unread(problem)
        self.linger(connection)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that gunicorn cannot parse. gunicorn would do so in HTML, and log what was asked and by whom."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        problem = unreadable(exc)
        with contextlib.suppress(OSError):
            client.sendall(last_answer(problem))
        note_unread(problem)

    def drop(self, connection: TConn) -> None:
        """Forget a request that has not arrived."""
        self.arriving.pop(connection).close()
        self.poller.unregister(connection.sock)
        self.close(connection)

    def close(self, connection: TConn) -> None:
        self.nr_conns -= 1
        connection.close()

    def make_room(self) -> None:
        """Let go of the connection that has been arriving longest, or else of the one that has been idle longest."""
        if self.arriving:
            self.drop(next(iter(self.arriving)))
        elif self.keepalived_conns:
            self.keepalived_conns[0].timeout = 0.0
            super().murder_keepalived()

    def set_accept_enabled(self, enabled: bool) -> None:
        """gunicorn stops accepting when it begins to stop. What has been connected until then is answered, too.

        The listener is let go of at once, and not at the end, as gunicorn does: the kernel would go on to connect clients
        that nobody answers. Whoever connects from now on meets another worker, or is refused, and can go elsewhere.
        """
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive and not self.let_go_at:
            self.let_go_at = time.monotonic() + STOP_KEEPALIVE_LINGER
            for listener in self.sockets:
                while self.nr_conns < self.worker_connections and self.accept_one(listener):
                    pass
                listener.close()

    def murder_keepalived(self, force: bool = False) -> None:
        """Called at every turn of the loop: end what has waited for too long.

        While the worker stops, gunicorn leaves idle connections open for STOP_KEEPALIVE_LINGER: a client may be sending its
        next request just now. It is answered, and told to close the connection.
        """
        super().murder_keepalived(force)
        now = time.monotonic()
        if self.leave_by and self.alive and (succession.is_succeeded(self.age) or now >= self.leave_by):
            super().handle_exit(signal.SIGTERM, None)
        if not force and self.alive and now < self.look_at:
            return
        self.look_at = now + LOOK_SECONDS
        for connection, arriving in list(self.arriving.items()):
            if force or (self.let_go_at and not arriving.size and now >= self.let_go_at):
                self.drop(connection)
            elif now >= arriving.deadline():
                if arriving.size:
                    self.refuse(connection, arriving.timed_out())
                else:
                    self.drop(connection)
        for connection, deadline in list(self.lingering.items()):
            if force or now >= deadline:
                self.end_lingering(connection)
