"""The common part of all faults: the stack, how a fault is undone, and work in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import psutil
import psycopg2
import redis

from loadtest.chaos.journal import Journal
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import STATEMENT_SECONDS, ChaosStack, connected
from shared_models.declarations import Counter

Undo = Callable[[], None]

# How long undoing may take, with retries: a server that was just killed recovers first.
UNDO_SECONDS = 30.0


class Impossible(Exception):
    """This fault is not possible now: its target does not exist."""


def suspended(processes: Sequence[psutil.Process]) -> Undo:
    """Stop these processes; the return value lets them go on."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.suspend()

    def go_on() -> None:
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.resume()

    return go_on


class Harm:
    """One part of the faults: each kind is the method of that name."""

    def __init__(self, stack: ChaosStack, journal: Journal, say: Callable[[str], None]) -> None:
        self.stack, self.journal, self.say = stack, journal, say

    def lose(self, began: float, counter: str = "", parts: Iterable[int] = ()) -> None:
        """Note that Redis may have lost something, from `began` until now: of all counters or of this derived one, and of all
        their parts or of those with these numbers."""
        only = {"parts": sorted(parts), "of": self.stack.redis.parts} if parts else {}
        self.journal.write("loss", counter=counter, **{"from": began}, **only)

    def lose_part(self, part: Counter, began: float) -> None:
        """The same, of one part."""
        self.lose(began, part.whole, [part.shard])

    def in_the_background(self, fault: Fault, work: Callable[[threading.Event], None]) -> Undo:
        """Do work that ends soon after its event is set: when the fault is over. The database may end it earlier."""
        over = threading.Event()

        def do() -> None:
            try:
                work(over)
            except (psycopg2.Error, redis.RedisError) as error:
                self.say(f"          {fault.kind} ended early: {str(error).partition(chr(10))[0]}")

        thread = threading.Thread(target=do, name=fault.kind, daemon=True)
        thread.start()

        def finish() -> None:
            over.set()
            thread.join()

        return finish

    def hold_open(
        self,
        fault: Fault,
        statement: str,
        *parameters: str,
        end: str,
        ended: Callable[[str], None] = lambda outcome: None,
    ) -> Undo:
        """Run a statement in a transaction, which ends when the fault does."""

        def hold(over: threading.Event) -> None:
            outcome = "refused"
            try:
                with connected(self.stack.primary, fault.seconds + STATEMENT_SECONDS) as cursor:
                    cursor.execute(f"BEGIN; {statement}", parameters or None)
                    over.wait(fault.seconds)
                    outcome = "unknown" if end == "COMMIT" else "refused"
                    cursor.execute(end)
                    # A failed transaction answers COMMIT with ROLLBACK, and no error.
                    outcome = "ok" if cursor.statusmessage == "COMMIT" else "refused"
            finally:
                ended(outcome)

        return self.in_the_background(fault, hold)


def nothing() -> None:
    """Do nothing: the fault ends without help, or the stack has to repair it."""
