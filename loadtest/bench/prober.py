"""A client that asks for a count every millisecond: how long Redis takes for others while a case works on it.

`python -m loadtest.bench.prober URL …` asks each server in turn until its standard input is closed, and prints the
milliseconds of each answer, a JSON list for each URL. It is a process of its own, without a client library, so that it
measures only the server and the machine.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from urllib.parse import urlsplit

from shared_models.protocol import keys

QUESTION = f"SCARD {keys.of_counter('cities').members}\r\n".encode()
EVERY_SECONDS = 0.001


def connect(url: str) -> socket.socket:
    """A connection that is allowed to ask."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port or 6379), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.password:
        connection.sendall(f"AUTH {parts.username or 'default'} {parts.password}\r\n".encode())
        connection.recv(4096)
    return connection


def main() -> None:
    servers = [connect(url) for url in sys.argv[1:]]
    took: list[list[float]] = [[] for _ in servers]
    end = selectors.DefaultSelector()
    end.register(sys.stdin, selectors.EVENT_READ)
    while not end.select(EVERY_SECONDS):
        for server, found in zip(servers, took, strict=True):
            began = time.perf_counter()
            server.sendall(QUESTION)
            server.recv(4096)
            found.append((time.perf_counter() - began) * 1000)
    print(json.dumps(took))


if __name__ == "__main__":
    main()
