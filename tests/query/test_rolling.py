"""Query during a restart: event streams reconnect."""

from __future__ import annotations

import http.client
import signal
from pathlib import Path

from compose.local.servers import Valkey
from tests.query.rolls_in_redis import Rolls
from tests.query.running import Running
from tests.rolling import (
    wait_until_replaced,
    workers_of,
)
from tests.servers import wait_for


def test_on_a_reload_streams_end_and_come_back(valkey: Valkey, rolls: Rolls, tmp_path: Path) -> None:
    """A reload of one instance is the server's own: it may cut connections off. Behind the edge nobody notices: see
    tests/edge/test_edge.py."""
    rolls.make_all_live(users=2, cities=3)
    running = Running(valkey.url, tmp_path, WORKERS="1")
    stream = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    try:
        stream.request("GET", "/v1/stream")
        events = stream.getresponse()
        before = set(workers_of(running.process.pid))
        running.process.send_signal(signal.SIGHUP)
        # To its end: the last thing that it says is when to come back.
        said = events.read().decode()
        assert said.rstrip().rpartition("\n\n")[2].startswith("retry: ")
        stream.close()
        wait_until_replaced(running.process.pid, before, wait_for)
        stream.request("GET", "/v1/stream")
        again = stream.getresponse()
        assert (again.status, again.readline()) == (200, b"retry: 1000\n")
    finally:
        stream.close()
        running.stop()
