"""A keeper that a test ticks, and the keeper as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from manage_service.keeper.loop import Keeper, Timing
from tests.manage.world import World
from tests.servers import wait_for


@contextmanager
def keeper_at_work(
    *, catch_up_seconds: float = 0.0, reconcile_seconds: float = 3600.0, wait_seconds: float = 20.0
) -> Iterator[Keeper]:
    """A keeper that does nothing until the test ticks it."""
    keeper = Keeper(Timing(catch_up_seconds, reconcile_seconds, wait_seconds))
    try:
        yield keeper
    finally:
        keeper.close()


def tick_until(keeper: Keeper, condition: Callable[[], object], what: str = "the keeper to get there") -> None:
    """Tick, at least once, until the condition holds."""

    def ticked() -> object:
        keeper.tick()
        return condition()

    wait_for(ticked, what)


@contextmanager
def keeper_process(world: World, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m manage_service keeper`, as it is deployed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "manage_service", "keeper"],
        env={**os.environ, "REDIS_URL": world.valkey.url, "CATCH_UP_SECONDS": "0.05", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
