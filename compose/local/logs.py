"""Follows logs, and keeps them small: a process of the stack runs `python -m compose.local.logs FOLDER`.

A large log becomes `NAME.log.1` and begins again. Its writer keeps the file open and appends to it. So
the log is copied and then truncated. A line that is written between the two, within microseconds, is lost; no process
waits for the copy.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

LOG_BYTES = 10_000_000  # a larger log begins again
ROTATION_SECONDS = 2.0  # between two checks of their sizes
POLL_SECONDS = 0.2
FIRST_BYTES = 2_000  # how much of the earlier text is shown of each log


def aside(log: Path) -> Path:
    """The path of the rotated part of a log."""
    return log.with_name(f"{log.name}.1")


def rotate(log: Path) -> None:
    """Rotate the log if it is large. Its writer may keep writing."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        new = log.with_name(f"{log.name}.new")
        shutil.copyfile(log, new)
        new.replace(aside(log))
        log.open("wb").close()


class Follower:
    """Follows one log, also after it was truncated, or removed and made again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._half = b""  # a line whose end has not been written yet
        end = path.stat().st_size if path.exists() else 0
        self._offset = max(0, end - FIRST_BYTES)
        if self._offset:
            self._half = self._read(path).partition(b"\n")[2]  # without the rest of a line

    def lines(self) -> Iterator[str]:
        """The complete lines since the last call."""
        if not self.path.exists():
            self._offset = 0
            return
        if self.path.stat().st_size < self._offset:
            # Rotated: the log is smaller than before, and the rest of its old text is in the rotated part.
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
    """Print the last lines of each log, and then new lines, for ever."""
    width = max(map(len, logs))
    followers = {name: Follower(path) for name, path in logs.items()}
    while True:
        for name, follower in followers.items():
            for line in follower.lines():
                yield f"{name:<{width}} | {line}"
        time.sleep(POLL_SECONDS)


def main(folder: Path) -> None:
    """Keep the logs in this folder small, until this process is told to end."""
    print(f"A log of more than {LOG_BYTES / 1e6:.0f} MB becomes NAME.log.1, and a new log begins.", flush=True)
    while True:
        for log in folder.glob("*.log"):
            rotate(log)
        time.sleep(ROTATION_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
