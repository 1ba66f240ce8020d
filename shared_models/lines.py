"""Log lines that are written a moment later, many at a time.

A write releases the interpreter lock, and other threads of a busy worker take it. So writing a line at once costs a
request more than all other logging. Here a request adds its line to a list, and one thread writes the list, twenty
times a second. Accepted: a killed process loses the lines of its last twentieth of a second.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TextIO

WRITE_SECONDS = 0.05


class DelayedLines:
    """A file as a logger needs it: `write` and `flush`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: deque[str] = deque()
        self._is_running = False  # whether the thread runs; a fork has none
        os.register_at_fork(after_in_child=self._forget_the_thread)
        atexit.register(self.write_out)

    def write(self, text: str) -> int:
        """Queue the line; the thread writes it soon."""
        self._lines.append(text)
        if not self._is_running:
            self._is_running = True
            threading.Thread(target=self._run, name="log lines", daemon=True).start()
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread flushes."""

    def write_out(self) -> None:
        """Write the queued lines."""
        taken = []
        with suppress(IndexError):  # the list is empty, also if two threads write at once
            while True:
                taken.append(self._lines.popleft())
        if taken:
            self._file.write("".join(taken))
            self._file.flush()

    def _forget_the_thread(self) -> None:
        self._is_running = False

    def _run(self) -> None:
        while True:
            time.sleep(WRITE_SECONDS)
            self.write_out()
