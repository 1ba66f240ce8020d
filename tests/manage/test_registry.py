"""The registry of runs: asking twice gives one run, and their number is limited."""

from __future__ import annotations

import threading

import pytest

from manage_service.runs import registry
from manage_service.runs.registry import Mode, Status, TooManyRuns
from shared_models.protocol import keys


def test_asking_for_what_is_queued_already_gives_the_same_run(world):
    first = world.ask("users", "cities")
    assert world.ask("cities", "users").id == first.id
    assert world.ask("users").id != first.id and world.ask("users", "cities", mode=Mode.CHECK).id != first.id
    next(world.steps(first))  # it has begun: it may have passed what is asked for now
    assert world.ask("users", "cities").id != first.id


def test_many_who_ask_at_once_get_one_run(world):
    asked, barrier = [], threading.Barrier(8)

    def ask():
        barrier.wait()
        asked.append(world.ask("users").id)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 8 and len(set(asked)) == 1 and world.redis.llen(keys.RUNS_OPEN) == 1


def test_open_runs_are_bounded(world, monkeypatch):
    monkeypatch.setattr(registry, "MOST_OPEN", 3)
    begun = [world.ask("users") for _ in range(1)]
    for _ in range(2):
        next(world.steps(begun[-1]))
        begun.append(world.ask("users"))
    next(world.steps(begun[-1]))
    with pytest.raises(TooManyRuns, match="3 runs are queued or running already"):
        world.ask("users")
    registry.request_cancel(world.redis, begun[-1].id)
    for run in begun:
        run.end(Status.CANCELLED)
        registry.save(world.redis, run)
    assert world.ask("users").status is Status.QUEUED
