"""Follow logs: each line with the name of the process that has written it. Nothing is started for that, so nothing stays."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

POLL_SECONDS = 0.2
FIRST_BYTES = 2_000  # of what was written before, so much is shown of each log


class Follower:
    """One log: what is written to it, also where it is put aside or removed, and begun anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BufferedReader | None = None
        self._half = b""  # a line whose end has not been written yet
        self._open()
        if self._file is not None:
            end = self._file.seek(0, 2)
            self._file.seek(max(0, end - FIRST_BYTES))
            if end > FIRST_BYTES:
                self._file.readline()  # the rest of a line

    def _open(self) -> None:
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            self._file = None

    def lines(self) -> Iterator[str]:
        """The whole lines that have been written since the last call."""
        # Looked for before the old file is read: whoever puts it aside has ended what wrote to it.
        replaced = self._is_replaced()
        yield from self._read()
        if replaced:
            if self._file is not None:
                self._file.close()
            if self._half:
                yield self._half.decode(errors="replace")
                self._half = b""
            self._open()
            yield from self._read()

    def _read(self) -> Iterator[str]:
        if self._file is not None:
            *whole, self._half = (self._half + self._file.read()).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)

    def _is_replaced(self) -> bool:
        if self._file is None:
            return True
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False  # removed; the next one has not been begun


def follow(logs: Mapping[str, Path]) -> Iterator[str]:
    """The last lines of each log, and then what is written, for ever."""
    width = max(map(len, logs))
    followers = {name: Follower(path) for name, path in logs.items()}
    while True:
        for name, follower in followers.items():
            for line in follower.lines():
                yield f"{name:<{width}} | {line}"
        time.sleep(POLL_SECONDS)
