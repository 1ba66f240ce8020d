"""A replica that is stopped, not gone: its kernel still acknowledges every byte, and it applies no time limit of its own."""

from __future__ import annotations

import os
import signal
import time

import psycopg2
import pytest

from manage_service.replica import snapshots
from shared_models import deadlines


def test_a_replica_that_is_stopped_is_given_up_after_the_deadline_and_used_again_when_it_goes_on(world, monkeypatch):
    monkeypatch.setattr(snapshots, "ANSWER_SECONDS", 0.3)
    with world.replica.snapshot() as snapshot:
        pid = snapshot._connection.info.backend_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(psycopg2.OperationalError), world.replica.snapshot():
            pass
        assert time.monotonic() - began < 5
    finally:
        os.kill(pid, signal.SIGCONT)
    with world.replica.snapshot() as snapshot:
        assert snapshot.horizon


def test_a_deadline_that_was_met_is_forgotten(world):
    with world.replica.snapshot() as snapshot:
        assert snapshot.horizon
    assert not deadlines.watch._watched, "nobody is waited for, so nobody can be cut off"
