"""Logs: followed by people, and kept small by a process of the stack, `python -m compose.local.logs FOLDER`.

A log that has grown large becomes `NAME.log.1` and begins again. Its writer keeps the file open and appends to it. So
the log is copied and then emptied. A line that is written between the two, within microseconds, is lost; no process
waits for the copy.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

LOG_BYTES = 10_000_000  # a larger log begins again
ROTATION_SECONDS = 2.0  # between two looks at their sizes
POLL_SECONDS = 0.2
FIRST_BYTES = 2_000  # of what was written before, so much is shown of each log


def aside(log: Path) -> Path:
    """Where the part of a log lies that was put aside."""
    return log.with_name(f"{log.name}.1")


def rotate(log: Path) -> None:
    """Put the log aside if it has grown large. Its writer may go on."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        new = log.with_name(f"{log.name}.new")
        shutil.copyfile(log, new)
        new.replace(aside(log))
        log.open("wb").close()


class Follower:
    """One log: what is written to it, also after it was emptied, or removed and begun again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._half = b""  # a line whose end has not been written yet
        end = path.stat().st_size if path.exists() else 0
        self._offset = max(0, end - FIRST_BYTES)
        if self._offset:
            self._half = self._read(path).partition(b"\n")[2]  # without the rest of a line

    def lines(self) -> Iterator[str]:
        """The whole lines that have been written since the last call."""
        if not self.path.exists():
            self._offset = 0
            return
        if self.path.stat().st_size < self._offset:
            # Put aside: the log was larger than what is in it now, and its end lies there.
            self._half += self._read(aside(self.path))
            self._offset = 0
        *whole, self._half = (self._half + self._read(self.path)).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                found = file.read()
        except FileNotFoundError:
            return b""
        self._offset += len(found)
        return found


def follow(logs: Mapping[str, Path]) -> Iterator[str]:
    """The last lines of each log, and then what is written, for ever."""
    width = max(map(len, logs))
    followers = {name: Follower(path) for name, path in logs.items()}
    while True:
        for name, follower in followers.items():
            for line in follower.lines():
                yield f"{name:<{width}} | {line}"
        time.sleep(POLL_SECONDS)


def main(folder: Path) -> None:
    """Keep the logs in this folder small, until this process is told to end."""
    print(f"A log of more than {LOG_BYTES / 1e6:.0f} MB is put aside as NAME.log.1 and begins again.", flush=True)
    while True:
        for log in folder.glob("*.log"):
            rotate(log)
        time.sleep(ROTATION_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
