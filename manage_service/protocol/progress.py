"""The progress of long jobs after each step. A job is a generator: the keeper interleaves it with catching up, the
command line draws its progress, a test runs one step at a time. A job holds nothing open between two steps."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is: its phase, the members read in it, and about how many there are (0: not known).

    `waiting` is the reason why the step could do nothing; empty when it did something.
    """

    phase: str
    read: int = 0
    expected: int = 0
    waiting: str = ""


Steps: TypeAlias = Generator[Progress, None, None]
