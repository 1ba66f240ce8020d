"""The answers to producers, in 24 bytes for each request: the rows follow from their numbers (`rows`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

RUN_BYTES = 8
ENTRY = Struct("<IIIIQ")


class Entry(NamedTuple):
    """One request, after its last attempt: rows `first` to `first + rows - 1` of a producer."""

    producer: int
    first: int
    rows: int
    acknowledged: bool  # otherwise the outcome is unknown: all of its rows are stored, or none
    row_id: int  # the id in the answer to a single message; 0 for a batch


class Ledger:
    """The file, for the one process that writes it. It opens with the name of the run."""

    def __init__(self, path: Path, run: str) -> None:
        self._file = path.open("wb")
        self._file.write(run.encode().ljust(RUN_BYTES))

    def note(self, entry: Entry) -> None:
        """Keep the outcome of one request."""
        self._file.write(ENTRY.pack(*entry))

    def close(self) -> None:
        """Close the file. Before this nothing is certainly written."""
        self._file.close()


def read(path: Path) -> tuple[str, Iterator[Entry]]:
    """The name of the run, and its entries."""
    content = path.read_bytes()
    entries = ENTRY.iter_unpack(memoryview(content)[RUN_BYTES:])
    return content[:RUN_BYTES].decode().strip(), (Entry(p, f, n, bool(a), i) for p, f, n, a, i in entries)
