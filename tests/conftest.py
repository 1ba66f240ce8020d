"""The servers for every test. And one rule: a process runs the tests of only one service."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

pytest_plugins = ["tests.servers"]

# A shell starts what runs in the background with Ctrl-C ignored, and whoever is started from there inherits that: the
# processes that tests interrupt, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SERVICES = {"admin", "adopt", "ingest", "manage", "query"}
_seen: set[str] = set()


def pytest_plugin_registered(plugin: object) -> None:
    """Stop where the conftest of a second service comes in: its tests would run with the first one's settings."""
    path = Path(getattr(plugin, "__file__", None) or "")
    if path.name == "conftest.py" and path.parent.name in SERVICES:
        _seen.add(path.parent.name)
    if len(_seen) > 1:
        raise pytest.UsageError(
            f"settings are per process, and these tests are of {' and '.join(sorted(_seen))}: "
            "run `make test`, or pytest on one folder of tests/"
        )
