"""What processes have used of the processors. Other work on the machine makes a case slower, and hardly changes this."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil

from compose.local.processes import Process


def busy_seconds(processes: Iterable[Process]) -> float:
    """Of these processes and their children, also of children that have ended."""
    total = 0.0
    for pid in filter(None, (process.pid for process in processes)):
        parent = psutil.Process(pid)
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total
