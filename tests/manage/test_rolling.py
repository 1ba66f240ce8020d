"""Manage while it is restarted: nobody notices, and each run that was accepted is there."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

from manage_service.runs import registry
from tests.manage.serving import CONFIGURATION, Gunicorn
from tests.manage.world import World
from tests.rolling import (
    Balancer,
    Clients,
    slow_to_start,
    wait_until_replaced,
    wait_until_the_old_answer_beside_the_new,
    workers_of,
)
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


def judge(clients: Clients, world: World) -> None:
    """No failure, and each run that was accepted is there."""
    assert clients.failures == []
    accepted = {run["id"] for said in clients.answered if "id" in (run := json.loads(said))}
    assert accepted and {run.id for run in registry.still_open(world.redis)} == accepted


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
        judge(clients, world)
    finally:
        running.stop()


def test_on_a_reload_the_old_workers_answer_until_the_new_ones_are_ready(world: World, tmp_path: Path) -> None:
    configuration, go = slow_to_start(CONFIGURATION, tmp_path)
    running = Gunicorn(tmp_path, configuration=configuration)
    try:
        with Clients(running.port, ask()) as clients:
            wait_for(lambda: len(clients.answered) > 20, "some load")
            before = set(workers_of(running.process.pid))
            running.process.send_signal(signal.SIGHUP)
            wait_until_the_old_answer_beside_the_new(clients, running.process.pid, before, wait_for)
            go.touch()
            wait_until_replaced(running.process.pid, before, wait_for)
        judge(clients, world)
    finally:
        assert running.stop() == 0


def test_two_instances_are_restarted_one_after_the_other_and_nobody_notices(world: World, tmp_path: Path) -> None:
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
                asked = len(clients.answered)
                wait_for(lambda asked=asked: len(clients.answered) > asked + 50, "some load")
                assert running[number].stop() == 0
                if number == 0:
                    running[0] = Gunicorn(folders[0], port=running[0].port)
            asked = len(clients.answered)
            wait_for(lambda: len(clients.answered) > asked + 50, "answers of the other one")
        judge(clients, world)
    finally:
        for instance in running:
            instance.stop()
