"""Deadlines for waiting for Postgres.

The server applies statement_timeout, and its kernel tcp_user_timeout. A stopped server (a frozen machine, a
paused container) applies neither, and psycopg2 waits in libpq for ever. So one thread of each process watches the
connections that somebody waits for. It shuts down the socket of a connection that takes too long. libpq then sees the
end of the stream, and psycopg2 raises OperationalError, as for any lost connection.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

# How late a deadline may take effect.
LOOK_SECONDS = 0.25


class Connection(Protocol):
    """A connection of psycopg2, which query does not have."""

    def fileno(self) -> int: ...


class Watch:
    """The connections that this process waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[object, tuple[float, socket.socket]] = {}
        self._process = 0  # the process whose thread runs; a fork has none

    @contextmanager
    def cut_after(self, connection: Connection, seconds: float) -> Iterator[None]:
        """Within this block, waiting for this psycopg2 connection ends after so long. 0 means no limit."""
        if not seconds:
            yield
            return
        # A descriptor of our own: libpq may have closed its own, and another socket may have its number.
        own = socket.socket(fileno=os.dup(connection.fileno()))
        mark = object()
        with self._lock:
            self._watched[mark] = time.monotonic() + seconds, own
            if self._process != os.getpid():
                self._process = os.getpid()
                threading.Thread(target=self._run, name="deadlines", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(mark, None)
                own.close()

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:
                for deadline, own in self._watched.values():
                    if now >= deadline:
                        with suppress(OSError):  # shut down already
                            own.shutdown(socket.SHUT_RDWR)


watch = Watch()
cut_after = watch.cut_after
