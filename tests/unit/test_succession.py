"""Which workers are ready: what a worker that is told to end asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared_models.http import succession
from shared_models.web import gunicorn_hooks


@pytest.fixture(autouse=True)
def nobody_yet() -> Iterator[None]:
    yield
    for age in range(20):
        succession.note_ready(age)
    succession.note_started(0)
    succession.note_ready(0)


def start(*ages: int) -> None:
    for age in ages:
        succession.note_started(age)


def test_a_worker_is_succeeded_when_all_that_came_after_it_are_ready() -> None:
    start(1, 2)
    assert succession.is_succeeded(2)
    assert not succession.is_succeeded(1)
    succession.note_ready(1)
    succession.note_ready(2)
    assert succession.is_succeeded(1), "the whole instance ends: nobody is to come"
    start(3, 4)  # a reload
    assert not succession.is_succeeded(1) and not succession.is_succeeded(2)
    succession.note_ready(4)
    assert not succession.is_succeeded(1)
    succession.note_ready(3)
    assert succession.is_succeeded(1) and succession.is_succeeded(2)


def test_what_a_child_notes_its_parent_sees() -> None:
    start(1, 2)
    child = os.fork()
    if child == 0:
        succession.note_ready(2)
        os._exit(0)
    os.waitpid(child, 0)
    assert succession.is_succeeded(1)


def test_nobody_waits_for_a_worker_that_died_before_it_was_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    start(1, 2)
    gunicorn_hooks.child_exit(None, SimpleNamespace(pid=1, age=2))
    assert succession.is_succeeded(1)


def test_a_number_that_is_given_again_after_thousands_of_workers_begins_anew() -> None:
    start(1)
    succession.note_ready(1)
    start(1 + succession.SLOTS)
    assert not succession.is_succeeded(succession.SLOTS)
