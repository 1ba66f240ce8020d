"""The history of a count: a sample every ten seconds, for an hour. The keeper takes them, query draws them.

A sample is a count that query would have given as live at that moment. A cold counter gets no sample: its history has a
gap there, and never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from shared_models.protocol import keys
from shared_models.protocol.moments import EPOCH, MICROSECOND, to_microseconds

SAMPLE_SECONDS = 10
HOUR = timedelta(hours=1)
# About 10 kB of Redis' memory for each counter, whatever its size.
MOST = int(HOUR.total_seconds()) // SAMPLE_SECONDS


@dataclass(frozen=True, slots=True)
class Sample:
    """A count, and when it was read."""

    at: datetime
    count: int


class Pipe(Protocol):
    """A pipeline of redis-py, sync or async."""

    def lrange(self, name: str, start: int, end: int, /) -> object: ...
    def ltrim(self, name: str, start: int, end: int, /) -> object: ...
    def rpush(self, name: str, /, *values: str) -> object: ...


def queue_sample(pipe: Pipe, name: str, sample: Sample) -> None:
    """Queue the commands that add a sample and remove those older than an hour."""
    at = keys.of_samples(name)
    pipe.rpush(at, f"{to_microseconds(sample.at)} {sample.count}")
    pipe.ltrim(at, -MOST, -1)


def queue_samples(pipe: Pipe, name: str) -> None:
    """Queue what `parse_samples` reads, on a sync or async pipeline."""
    pipe.lrange(keys.of_samples(name), 0, MOST - 1)


def parse_samples(reply: Sequence[bytes], until: datetime) -> list[Sample]:
    """The samples of the hour that ends at `until`, in order. After a pause of the keeper the list holds older ones,
    too."""
    found = (Sample(EPOCH + int(at) * MICROSECOND, int(count)) for at, count in map(bytes.split, reply))
    return sorted((each for each in found if until - HOUR <= each.at <= until), key=lambda sample: sample.at)
