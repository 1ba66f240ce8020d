"""Ingest during a restart under load: it answers or closes the connection, and acknowledged rows are stored.

That no request fails is the edge's part, which tries another instance: see tests/edge.
"""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ingest.producing import Producer, message
from tests.ingest.test_gunicorn import Gunicorn
from tests.rolling import Clients, wait_until_replaced, workers_of
from tests.servers import DEADLINE_SECONDS, sql, started_primary, wait_for

HEADERS = {"Content-Type": "application/json"}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Gunicorn]:
    running = Gunicorn(tmp_path, WORKERS="1", PULSE_SECONDS="0")
    wait_for(running.ready, "gunicorn to answer")
    yield running
    running.process.terminate()
    assert running.process.wait(DEADLINE_SECONDS) == 0


def rows(tag: str):
    """Requests that can be told from each other."""
    numbers = itertools.count()
    return lambda: ("POST", "/v1/messages", json.dumps(message(f"{tag}{next(numbers)}")).encode(), HEADERS)


def judge(clients: Clients, producer: Producer) -> None:
    """Nobody got an answer that was an error, and each row that was acknowledged is there, once."""
    assert not [
        failure for failure in clients.failures if "Error" not in failure and "RemoteDisconnected" not in failure
    ]
    acknowledged = [json.loads(said)["id"] for said in clients.answered]
    stored = [row_id for (row_id,) in sql(started_primary(), "SELECT id FROM message ORDER BY id")]
    assert len(set(acknowledged)) == len(acknowledged)
    assert set(acknowledged) <= set(stored)


def test_a_reload_under_load_loses_no_row(producer: Producer, running: Gunicorn) -> None:
    with Clients(running.port, rows("reloaded")) as clients:
        clients.wait_for_answers("some load")
        before = set(workers_of(running.process.pid))
        running.process.send_signal(signal.SIGHUP)
        wait_until_replaced(running.process.pid, before, wait_for)
        clients.wait_for_answers("answers of the new workers")
    judge(clients, producer)


def test_a_service_that_is_told_to_end_answers_what_it_has_begun(producer: Producer, running: Gunicorn) -> None:
    with Clients(running.port, rows("ended")) as clients:
        clients.wait_for_answers("some load")
        running.process.terminate()
        assert running.process.wait(DEADLINE_SECONDS) == 0
    judge(clients, producer)
