"""Carries out a schedule: injects each fault at its time, and undoes it at its time.

It starts killed processes again, as a supervisor would, and does nothing else. All of it happens in the main
thread, so that its processes end with it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import psutil
import psycopg2
import redis

from loadtest.chaos.faults import Faults
from loadtest.chaos.harm import UNDO_SECONDS, Impossible, Undo
from loadtest.chaos.journal import Journal
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import ChaosStack, resume

# The errors that a fault may get because of another one.
FAILURES = (psycopg2.Error, redis.RedisError, psutil.Error, OSError)


@dataclass(order=True)
class Event:
    """The beginning of a fault, or its end; ordered by time, then by number. `act` returns the next event."""

    at_seconds: float
    number: int
    act: Callable[[], Event | None] = field(compare=False)


class Injector:
    """Carries out a schedule on a stack."""

    def __init__(self, stack: ChaosStack, journal: Journal, say: Callable[[str], None]) -> None:
        self.stack, self.journal, self.say = stack, journal, say
        self.faults = Faults(stack, journal, say)
        self.done: list[Fault] = []
        self.numbers = count()
        self.began = 0.0  # monotonic seconds

    def run(self, faults: Sequence[Fault], seconds: float) -> None:
        """Inject the faults, each at its time, and end with all of them undone."""
        self.began = began = time.monotonic()
        due = [Event(fault.at_seconds, next(self.numbers), partial(self.begin, fault)) for fault in faults]
        heapq.heapify(due)
        try:
            while due:
                event = heapq.heappop(due)
                time.sleep(max(0.0, began + event.at_seconds - time.monotonic()))
                following = event.act()
                if following is not None:
                    heapq.heappush(due, following)
            time.sleep(max(0.0, began + seconds - time.monotonic()))
        finally:
            for wire in self.stack.wires.values():
                wire.mend()
            for process in self.stack.processes:
                resume(process)

    def begin(self, fault: Fault) -> Event | None:
        """Inject it; returns its end, or None if it was not possible."""
        self.say(str(fault))
        self.journal.write("fault", number=fault.number, kind=fault.kind, target=fault.target, how=fault.how)
        try:
            undo = self.faults.do(fault)
        except (Impossible, *FAILURES) as error:
            self.say(f"          skipped: {error!r}")
            self.journal.write("mended", number=fault.number, skipped=repr(error))
            return None
        self.done.append(fault)
        return Event(fault.at_seconds + fault.seconds, next(self.numbers), partial(self.end, fault, undo))

    def end(self, fault: Fault, undo: Undo, deadline_seconds: float | None = None) -> Event | None:
        """Undo it, with another attempt if that fails. Other events come in between: one of them may be the reason."""
        try:
            undo()
        except FAILURES:
            now_seconds = time.monotonic() - self.began
            if deadline_seconds is None:
                deadline_seconds = now_seconds + UNDO_SECONDS
            if now_seconds > deadline_seconds:
                raise
            return Event(now_seconds + 0.1, next(self.numbers), partial(self.end, fault, undo, deadline_seconds))
        self.journal.write("mended", number=fault.number)
        return None
