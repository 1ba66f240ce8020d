"""Processes of the local stack that wait for each other, without the programs of the stack."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.local.ordinary_user import own
from compose.local.processes import Process


class Store(Process):
    """Looks ready as long as it runs."""

    def command(self) -> list[str]:
        return ["sleep", "60"]

    def why_not_ready(self) -> None:
        return None


class Service(Process):
    """Ready once the store is another process than at first, which the first look at it tells to end."""

    needed: Store
    first = 0

    def command(self) -> list[str]:
        return ["sleep", "60"]

    def why_not_ready(self) -> str | None:
        store = self.needed.running()
        if store is not None and store.pid == self.first:
            store.send_signal(signal.SIGTERM)
        return "no store" if store is None or store.pid == self.first else None


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rollcall-processes-") as made:
        own(Path(made))
        yield Path(made)


def test_a_store_that_ends_while_a_service_waits_for_it_is_started_again(folder: Path) -> None:
    store, service = (
        Store(folder / "store", None, dies_with_parent=True),
        Service(folder / "service", None, dies_with_parent=True),
    )
    service.start_seconds = 5.0
    try:
        store.start()
        service.needed, service.first = store, store.pid or 0
        store.begin()  # finds it running, as the next `up` does
        service.begin()
        service.wait_until_ready([store])
        assert store.pid not in (None, service.first)
    finally:
        for process in (service, store):
            process.stop()
