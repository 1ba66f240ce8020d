"""One whole stack for the tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.local.ordinary_user import own
from compose.local.ports import DEFAULTS
from compose.local.stack import Stack
from shared_models.declarations import COUNTERS
from tests.servers import free_port, make_logins_quick, wait_for
from tests.system.asking import count


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A whole stack of its own; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="rollcall-system-")).resolve()
    own(folder)
    stack = Stack(folder, {variable: free_port() for variable in DEFAULTS})
    with pytest.MonkeyPatch.context() as environment:
        # Also the names under which an edge in front of it is reached.
        environment.setenv("ALLOWED_HOSTS", "localhost,127.0.0.1,.test")
        environment.setenv(
            "WORKERS", "1"
        )  # a second one takes another second to start; tests/ingest and tests/query have two
        try:
            stack.up()
            make_logins_quick(stack.primary)
            yield stack
        finally:
            stack.down()
            shutil.rmtree(folder, ignore_errors=True)


# The processes of a stack, by its folder, when all of it was ready last. Those that are the same still are: to ask them all
# again takes longer than most tests.
PIDS_WHEN_READY: dict[Path, dict[str, int | None]] = {}


@pytest.fixture
def live(stack: Stack) -> Stack:
    """Everything runs, whatever the last test has ended, and every counter is live."""
    pids = {process.name: process.pid for process in stack.processes}
    if pids != PIDS_WHEN_READY.get(stack.folder) or None in pids.values():
        stack.up()
        PIDS_WHEN_READY[stack.folder] = {process.name: process.pid for process in stack.processes}
    declared = [counter.name for counter in COUNTERS]
    wait_for(lambda: all(count(stack, name) is not None for name in declared), "live counters", seconds=60)
    return stack
