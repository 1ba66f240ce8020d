"""Clients that send or read as slowly as they like cost a connection each, and keep nobody from being answered."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.manage.serving import Gunicorn
from tests.manage.world import World
from tests.rolling import workers_of
from tests.servers import wait_for

LARGE = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
# More than manage ever had threads.
MANY = 100
SLOW = {
    "half a head": b"GET /v1/status HTTP/1.1\r\nHost: local",
    "half a body": b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
    "half a chunk": b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{",
    "nothing read of a large file": f"GET {LARGE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 8,
    "nothing read of many answers": b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100,
    "a WebSocket": b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The service as it is run."""
    folder: Path = tmp_path_factory.mktemp("slow")
    running = Gunicorn(folder)
    workers = wait_for(lambda: set(workers_of(running.process.pid)), "a worker")
    yield running.port
    survived = set(workers_of(running.process.pid)) == workers
    status = running.stop()
    assert survived, running.log.read_text()[-5000:]
    assert status == 0, running.log.read_text()[-5000:]


@pytest.mark.parametrize("kind", SLOW)
def test_others_are_answered_meanwhile(world: World, port: int, kind: str) -> None:
    with ExitStack() as stack:
        for _ in range(MANY):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.settimeout(10)
            slow.connect(("127.0.0.1", port))
            slow.sendall(SLOW[kind])
        for path in ("/livez", "/readyz", "/v1/status", "/v1/runs", "/metrics", LARGE):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, len(answer.read()) > 0) == (200, True), path
            connection.close()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/v1/runs", b'{"mode": "check"}')
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["status"]) == (202, "queued")
        connection.close()
