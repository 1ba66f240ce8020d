"""Manage during a restart: accepted runs are kept, and requests in progress are answered."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import pytest

from manage_service.runs import registry
from tests.manage.serving import Gunicorn
from tests.manage.world import World
from tests.rolling import (
    Balancer,
    Clients,
    wait_until_replaced,
    workers_of,
)
from tests.servers import wait_for

RUN = json.dumps({"counters": ["users"], "mode": "check"}).encode()
# What writes to Redis (now and then: all runs have to be kept), what reads it and the replica, what reads it alone.
ASKED = [
    ("POST", "/v1/runs", RUN, {"Content-Type": "application/json"}),
    *[("GET", "/v1/status", None, {}), ("GET", "/v1/runs?limit=5", None, {})] * 25,
]


def ask():
    """The next of these, for each client in turn."""
    numbers = itertools.count()
    return lambda: ASKED[next(numbers) % len(ASKED)]


# What a server may do at any moment to a connection that is kept (RFC 9112, section 9.3.1); a client, or the edge, asks again.
CLOSED = ("RemoteDisconnected", "ConnectionResetError", "BrokenPipeError")


def judge(clients: Clients, world: World) -> None:
    """Nobody was answered with an error, or by a part of an answer, or found nobody; each run that was accepted is there."""
    assert [said for said in clients.failures if not any(closed in said for closed in CLOSED)] == []
    accepted = {run["id"] for said in clients.answered if "id" in (run := json.loads(said))}
    assert accepted and accepted <= {run.id for run in registry.still_open(world.redis)}


def test_a_reload_under_load_loses_no_run_and_cuts_no_answer_short(world: World, tmp_path: Path) -> None:
    running = Gunicorn(tmp_path)
    try:
        with Clients(running.port, ask()) as clients:
            clients.wait_for_answers("some load")
            before = set(workers_of(running.process.pid))
            running.process.send_signal(signal.SIGHUP)
            wait_until_replaced(running.process.pid, before, wait_for)
            clients.wait_for_answers("answers of the new worker")
        judge(clients, world)
    finally:
        assert running.stop() == 0


@pytest.mark.long
def test_two_instances_are_restarted_one_after_the_other_and_one_always_answers(world: World, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    running = [Gunicorn(folder) for folder in folders]
    try:
        with (
            Balancer([instance.port for instance in running]) as balancer,
            Clients(balancer.port, ask()) as clients,
        ):
            for number in range(2):
                clients.wait_for_answers("some load")
                assert running[number].stop() == 0
                if number == 0:
                    running[0] = Gunicorn(folders[0], port=running[0].port)
            clients.wait_for_answers("answers of the other one")
        judge(clients, world)
    finally:
        for instance in running:
            instance.stop()
