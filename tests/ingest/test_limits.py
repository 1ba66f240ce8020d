"""No request waits longer than its limit, at whatever moment the primary stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
from django.db.backends.postgresql.base import DatabaseWrapper

from tests.ingest.producing import Producer, message
from tests.servers import started_primary, wait_for


@pytest.fixture
def stop_primary() -> Iterator[Callable[[], None]]:
    """Stop every process of the primary, as a machine that freezes does; all go on when the test is over."""
    postmaster = psutil.Process(started_primary().pid)
    stopped: list[psutil.Process] = []

    def stop() -> None:
        stopped.extend([postmaster, *postmaster.children()])
        for process in stopped:
            process.suspend()

    yield stop
    for process in stopped:
        with suppress(psutil.NoSuchProcess):  # a backend that was cut off, and has ended since the test let it go on
            process.resume()


def test_a_primary_that_stops_right_after_letting_us_in_is_given_up(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, stop_primary: Callable[[], None]
) -> None:
    monkeypatch.setattr("django.conf.settings.DATABASE_ANSWER_SECONDS", 0.5)
    connect = DatabaseWrapper.connect

    def connect_and_stop(self: DatabaseWrapper) -> None:
        connect(self)
        stop_primary()

    monkeypatch.setattr(DatabaseWrapper, "connect", connect_and_stop)
    began = time.monotonic()
    assert producer.send(message("ann")).status_code == 503
    assert time.monotonic() - began < 5


def test_readiness_does_not_wait_for_a_primary_that_is_stopped(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, stop_primary: Callable[[], None]
) -> None:
    monkeypatch.setattr("ingest_service.api.health.ANSWER_SECONDS", 0.5)
    assert producer.get("/readyz").status_code == 200
    stop_primary()
    began = time.monotonic()
    response = producer.get("/readyz")
    assert response.status_code == 503 and "cannot be reached" in response.json()["detail"]
    assert time.monotonic() - began < 5


def test_while_a_primary_is_stopped_one_request_waits_and_the_next_hears_at_once_and_then_it_is_used_again(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, stop_primary: Callable[[], None]
) -> None:
    monkeypatch.setattr("django.conf.settings.DATABASE_ANSWER_SECONDS", 3.0)
    assert producer.send(message("before")).status_code == 201
    stop_primary()
    began = time.monotonic()
    assert producer.send(message("ann")).status_code == 503
    waited = time.monotonic() - began
    assert 2.5 < waited < 6.0, "it waited once, and not again over another connection"
    assert producer.send(message("ann")).status_code == 503
    assert time.monotonic() - began - waited < 2.5, "it did not wait"
    for process in (postmaster := psutil.Process(started_primary().pid), *postmaster.children()):
        process.resume()
    wait_for(lambda: producer.send(message("ann")).status_code == 201, "ingest to write again")
