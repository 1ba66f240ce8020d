"""The peak memory of processes, sampled while a case runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psutil

SAMPLE_SECONDS = 0.05


class Peak:
    """The highest sum of their resident memory, in MB; pages that they share count for each."""

    mb = 0.0


@contextlib.contextmanager
def watched(*pids: int | None) -> Iterator[Peak]:
    """Sample these processes and their children, for as long as the block runs."""
    peak, stop = Peak(), threading.Event()
    roots = [psutil.Process(pid) for pid in pids if pid is not None]

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak.mb = max(peak.mb, resident_mb(*roots))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def resident_mb(*roots: psutil.Process) -> float:
    """What they hold now."""
    total = 0
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
    return total / 2**20
