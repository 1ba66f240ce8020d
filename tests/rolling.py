"""A strict client, and a load balancer, for services that are restarted: they accept no failed request.

The client keeps its connections, as clients do, and obeys `Connection: close`. One thing it may do over: a request on a
connection that has been idle for a second or more, if that is found closed. (A server may close an idle connection at any
moment; RFC 9112, section 9.3.1.) A client under load never comes to that; everything else is a failure.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.servers import wait_for

# Method, path, body, headers of the next request.
Ask = Callable[[], tuple[str, str, bytes | None, dict[str, str]]]
IDLE_SECONDS = 1.0
# Between two requests of a client: it need not take the processor from what it waits for.
PAUSE_SECONDS = 0.005


class Clients:
    """So many clients, each on connections of its own, until told to stop. `failures` says what went wrong, if anything."""

    def __init__(self, port: int, ask: Ask, *, clients: int = 6, requests_a_connection: int = 25) -> None:
        self.port, self.ask, self.requests_a_connection = port, ask, requests_a_connection
        self.answered: list[bytes] = []
        self.failures: list[str] = []
        self.told_to_close = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for_answers(self, what: str) -> None:
        """Wait until 50 more requests have been answered."""
        enough = len(self.answered) + 50
        wait_for(lambda: len(self.answered) > enough, what)

    def _run(self) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            with contextlib.closing(connection):
                self._use(connection)

    def _use(self, connection: http.client.HTTPConnection) -> None:
        """Some requests on one connection: new ones are opened all the time, too."""
        last = 0.0
        for _ in range(self.requests_a_connection):
            if self._stop.is_set():
                return
            method, path, body, headers = self.ask()
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                if not last or time.monotonic() - last < IDLE_SECONDS:
                    self.failures.append(f"{method} {path}: {error!r}")
                return
            last = time.monotonic()
            self._stop.wait(PAUSE_SECONDS)
            if answer.status >= 400:
                self.failures.append(f"{method} {path}: {answer.status} {said[:200]!r}")
            self.answered.append(said)
            if answer.will_close:
                self.told_to_close += 1
                return


class Balancer:
    """Passes each connection to one of the instances, in turn; to the next one where one refuses it."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self._turns = itertools.count()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Balancer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for each in (self._listener, *list(self._open)):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.closing(client):
            instance = self._connect()
            if instance is None:
                return
            with contextlib.closing(instance):
                ends = {client, instance}
                self._open |= ends
                back = threading.Thread(target=_pass_on, args=(instance, client), daemon=True)
                back.start()
                _pass_on(client, instance)
                back.join()
                self._open -= ends

    def _connect(self) -> socket.socket | None:
        first = next(self._turns) % len(self.ports)
        for port in self.ports[first:] + self.ports[:first]:
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(("127.0.0.1", port), timeout=20)
        return None


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def workers_of(pid: int) -> Iterator[int]:
    """The process ids of a gunicorn's workers."""
    yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def wait_until_replaced(pid: int, before: set[int], wait_for: Any) -> None:
    """Until none of these workers is left, and others have taken over."""
    wait_for(lambda: (now := set(workers_of(pid))) and not now & before, "the old workers to end")
