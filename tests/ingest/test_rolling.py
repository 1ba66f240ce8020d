"""Ingest while it is restarted: nobody notices. Every acknowledged row is stored, no request fails, no connection is cut."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

from tests.ingest.producing import Producer, message
from tests.ingest.test_gunicorn import Gunicorn
from tests.rolling import Balancer, Clients, wait_until_replaced, workers_of
from tests.servers import DEADLINE_SECONDS, sql, started_primary, wait_for

VARIABLES = {"WORKERS": "1", "THREADS": "4", "PULSE_SECONDS": "0"}
HEADERS = {"Content-Type": "application/json"}


def rows(tag: str):  # type: ignore[no-untyped-def]
    """Requests that can be told from each other."""
    numbers = itertools.count()
    return lambda: ("POST", "/v1/messages", json.dumps(message(f"{tag}{next(numbers)}")).encode(), HEADERS)


def judge(clients: Clients, producer: Producer) -> None:
    """No failure, and each row that was acknowledged is there, once."""
    assert clients.failures == []
    acknowledged = [json.loads(said)["id"] for said in clients.answered]
    assert sorted(acknowledged) == [
        row_id for (row_id,) in sql(started_primary(), "SELECT id FROM message ORDER BY id")
    ]


def test_a_reload_under_load_fails_no_request(producer: Producer, tmp_path: Path) -> None:
    running = Gunicorn(tmp_path, **VARIABLES)
    wait_for(running.ready, "gunicorn to answer")
    try:
        with Clients(running.port, rows("reloaded")) as clients:
            wait_for(lambda: len(clients.answered) > 50, "some load")
            before = set(workers_of(running.process.pid))
            running.process.send_signal(signal.SIGHUP)
            wait_until_replaced(running.process.pid, before, wait_for)
            asked = len(clients.answered)
            wait_for(lambda: len(clients.answered) > asked + 50, "answers of the new workers")
        assert clients.told_to_close, "some clients were in the middle of a connection"
        judge(clients, producer)
    finally:
        running.process.terminate()
        running.process.wait(DEADLINE_SECONDS)


def test_two_instances_are_restarted_one_after_the_other_and_nobody_notices(producer: Producer, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    running = [Gunicorn(folder, **VARIABLES) for folder in folders]
    try:
        for instance in running:
            wait_for(instance.ready, "gunicorn to answer")
        with (
            Balancer([instance.port for instance in running]) as balancer,
            Clients(balancer.port, rows("rolled")) as clients,
        ):
            for number in range(2):
                asked = len(clients.answered)
                wait_for(lambda asked=asked: len(clients.answered) > asked + 50, "some load")
                running[number].process.terminate()
                assert running[number].process.wait(DEADLINE_SECONDS) == 0
                if number == 0:
                    running[0] = Gunicorn(folders[0], PORT=str(running[0].port), **VARIABLES)
                    running[0].port = balancer.ports[0]
                    wait_for(running[0].ready, "gunicorn to answer again")
            asked = len(clients.answered)
            wait_for(lambda: len(clients.answered) > asked + 50, "answers of the other one")
        judge(clients, producer)
    finally:
        for instance in running:
            instance.process.kill() if instance.process.poll() is None else None
            instance.process.wait(DEADLINE_SECONDS)
