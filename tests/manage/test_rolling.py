"""Manage while it is restarted: nobody notices, and each run that was accepted is there."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

from manage_service import runs
from tests.manage.serving import Gunicorn
from tests.manage.world import World
from tests.rolling import Clients, wait_until_replaced, workers_of
from tests.servers import wait_for

RUN = json.dumps({"counters": ["users"], "mode": "check"}).encode()
# What writes to Redis (now and then: all runs have to be kept), what reads it and the replica, what reads it alone.
ASKED = [
    ("POST", "/v1/runs", RUN, {"Content-Type": "application/json"}),
    *[("GET", "/v1/status", None, {}), ("GET", "/v1/runs?limit=5", None, {})] * 25,
]


def ask():  # type: ignore[no-untyped-def]
    """The next of these, for each client in turn."""
    numbers = itertools.count()
    return lambda: ASKED[next(numbers) % len(ASKED)]


def test_a_reload_under_load_fails_no_request(world: World, tmp_path: Path) -> None:
    running = Gunicorn(tmp_path)
    try:
        with Clients(running.port, ask()) as clients:
            wait_for(lambda: len(clients.answered) > 50, "some load")
            before = set(workers_of(running.process.pid))
            running.process.send_signal(signal.SIGHUP)
            wait_until_replaced(running.process.pid, before, wait_for)
            asked = len(clients.answered)
            wait_for(lambda: len(clients.answered) > asked + 50, "answers of the new worker")
        assert clients.told_to_close, "some clients were in the middle of a connection"
        assert clients.failures == []
        accepted = {run["id"] for said in clients.answered if "id" in (run := json.loads(said))}
        assert accepted and {run.id for run in runs.still_open(world.redis)} == accepted
    finally:
        running.stop()
