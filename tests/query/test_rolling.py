"""Query while it is restarted: nobody notices, and event streams come back."""

from __future__ import annotations

import http.client
import itertools
import signal
import threading
from pathlib import Path

from compose.local.servers import Valkey
from tests.query.rolls_in_redis import Rolls
from tests.query.test_service import CONFIGURATION, Running
from tests.rolling import (
    Balancer,
    Clients,
    slow_to_start,
    wait_until_replaced,
    wait_until_the_old_answer_beside_the_new,
    workers_of,
)
from tests.servers import wait_for

# Standing answers, with a read of their own and without, and what Django answers.
ASKED = itertools.cycle(
    [
        ("GET", "/v1/counts", None, {}),
        ("GET", "/v1/counts/users", None, {"Cache-Control": "no-cache"}),
        ("GET", "/v1/counts/users/member?username=user0", None, {}),
    ]
)
_lock = threading.Lock()


def ask():  # type: ignore[no-untyped-def]
    with _lock:
        return next(ASKED)


def test_a_reload_under_load_fails_no_request_and_streams_come_back(
    valkey: Valkey, rolls: Rolls, tmp_path: Path
) -> None:
    rolls.make_all_live(users=2, cities=3)
    running = Running(valkey.url, tmp_path, WORKERS="1")
    stream = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    try:
        stream.request("GET", "/v1/stream")
        events = stream.getresponse()
        with Clients(running.port, ask) as clients:
            wait_for(lambda: len(clients.answered) > 100, "some load")
            before = set(workers_of(running.process.pid))
            running.process.send_signal(signal.SIGHUP)
            # To its end: the last thing that it says is when to come back.
            said = events.read().decode()
            assert said.rstrip().rpartition("\n\n")[2].startswith("retry: ")
            stream.close()
            stream.request("GET", "/v1/stream")
            again = stream.getresponse()
            assert (again.status, again.readline()) == (200, b"retry: 1000\n")
            wait_until_replaced(running.process.pid, before, wait_for)
            asked = len(clients.answered)
            wait_for(lambda: len(clients.answered) > asked + 100, "answers of the new workers")
        assert clients.failures == []
        assert clients.told_to_close, "some clients were in the middle of a connection"
    finally:
        stream.close()
        running.stop()


def test_on_a_reload_the_old_workers_answer_until_the_new_ones_are_ready(
    valkey: Valkey, rolls: Rolls, tmp_path: Path
) -> None:
    rolls.make_all_live(users=2, cities=3)
    slow, go = slow_to_start(CONFIGURATION, tmp_path)
    running = Running(valkey.url, tmp_path, configuration=slow, WORKERS="1")
    try:
        with Clients(running.port, ask) as clients:
            wait_for(lambda: len(clients.answered) > 20, "some load")
            before = set(workers_of(running.process.pid))
            running.process.send_signal(signal.SIGHUP)
            wait_until_the_old_answer_beside_the_new(clients, running.process.pid, before, wait_for)
            go.touch()
            wait_until_replaced(running.process.pid, before, wait_for)
        assert clients.failures == []
    finally:
        assert running.stop() == 0


def test_two_instances_are_restarted_one_after_the_other_and_nobody_notices(
    valkey: Valkey, rolls: Rolls, tmp_path: Path
) -> None:
    rolls.make_all_live(users=2, cities=3)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    running = [Running(valkey.url, folder, WORKERS="1") for folder in folders]
    try:
        with Balancer([instance.port for instance in running]) as balancer, Clients(balancer.port, ask) as clients:
            for number in range(2):
                asked = len(clients.answered)
                wait_for(lambda asked=asked: len(clients.answered) > asked + 100, "some load")
                assert running[number].stop() == 0
                if number == 0:
                    running[0] = Running(valkey.url, folders[0], port=running[0].port, WORKERS="1")
            asked = len(clients.answered)
            wait_for(lambda: len(clients.answered) > asked + 100, "answers of the other one")
        assert clients.failures == []
    finally:
        for instance in running:
            instance.stop()
