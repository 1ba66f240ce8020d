"""Counts of the work since Redis was last empty, for the metrics of processes without a port. They only grow.

They are not part of the protocol. If a process dies between the work and its note, they are a little too low.
"""

from __future__ import annotations

from redis import Redis

from manage_service.runs.registry import ENDS, Mode, Run, Status
from shared_models.protocol import keys, moments, states


def note_pass(redis: Redis, counter: str, *, read: int, added: int) -> None:
    """Note a catch-up pass over a counter."""
    redis.hincrby(keys.TOTALS, f"read:{counter}", read)
    redis.hincrby(keys.TOTALS, f"added:{counter}", added)


def read_passes(redis: Redis, counter: str) -> tuple[int, int]:
    """How many members of rows catching up has read, and how many of them it has added."""
    read, added = states.read_fields(redis, keys.TOTALS, f"read:{counter}", f"added:{counter}")
    return int(read or 0), int(added or 0)


def note_run(redis: Redis, run: Run) -> None:
    """Note a run that has ended."""
    if run.started_at is None or run.finished_at is None:
        return
    took = run.finished_at - run.started_at
    pipe = redis.pipeline(transaction=True)
    pipe.hincrby(keys.TOTALS, f"runs:{run.mode}:{run.status}", 1)
    pipe.hincrby(keys.TOTALS, f"microseconds:{run.mode}:{run.status}", took // moments.MICROSECOND)
    pipe.execute()


def read_runs(redis: Redis) -> dict[tuple[Mode, Status], tuple[int, float]]:
    """How many runs have ended, and how many seconds they took in all, by mode and status."""
    found = {}
    for mode in Mode:
        for status in ENDS:
            names = f"runs:{mode}:{status}", f"microseconds:{mode}:{status}"
            runs, microseconds = states.read_fields(redis, keys.TOTALS, *names)
            found[mode, status] = int(runs or 0), int(microseconds or 0) / 1e6
    return found
