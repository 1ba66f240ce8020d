"""The counts of a worker, and the standing answers that are made from them.

One task in each worker reads all counters from Redis, in one round trip to each server, every REFRESH_SECONDS. It makes
the answers. A request takes one of them: a dictionary lookup. If no client asks for IDLE_SECONDS, the task ends and removes the
answers. The next request starts it again, and waits for its first read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from time import monotonic, perf_counter

import structlog

from query_service import answers, metrics
from query_service.answers import Condition, CountAnswer
from query_service.reads import Reading, read_counters
from query_service.trips import Trips, Unreadable
from shared_models import declarations

log = structlog.get_logger()

# The time between two attempts while Redis cannot be read, so that the worker notices within a second when it is back.
# A request that asks for a read of its own does not wait for it.
RETRY_SECONDS = 0.5
# Choices of counters (`?counters=…`) whose answers are kept until the next read.
MOST_CHOICES = 100


class Counts:
    """The counts of one worker. All of it runs in the worker's event loop: nothing here needs a lock."""

    def __init__(self, trips: Trips, *, refresh_seconds: float, idle_seconds: float, stale_seconds: float) -> None:
        self._trips = trips
        self.refresh_seconds, self.idle_seconds, self.stale_seconds = refresh_seconds, idle_seconds, stale_seconds
        # By path. Empty while no client asks.
        self.answers: dict[str, CountAnswer] = {}
        self.reading: Reading | None = None
        self.condition = Condition.LOST
        self._of_choices: dict[tuple[str, ...], CountAnswer] = {}
        # What the log has said last: the condition, and the counters that are away.
        self._noted: tuple[Condition, tuple[str, ...]] | None = None
        self._read_at = 0.0
        self.is_asked = False  # since the last read
        self._asked_at = 0.0
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        # Set when the read that has not begun yet has ended.
        self._next_read = asyncio.Event()

    def ask(self) -> None:
        """Note that a client asks: the task keeps the answers current for another `idle_seconds`."""
        self.is_asked = True
        if self._task is None or self._task.done():
            # In a context of its own: its log lines must not have the id of a request.
            self._task = asyncio.create_task(self._keep(), context=Context())

    async def read_anew(self) -> None:
        """Return when a read that began after this call has ended; the answers are made from it, or from a later one.

        Callers share a read, but never one that has begun already: it may have read Redis before the write that this
        caller wants to see ("counted means counted").
        """
        self.ask()
        next_read = self._next_read
        self._wanted.set()
        await next_read.wait()

    @property
    def names(self) -> list[str]:
        """The declared counters. Looked up each time, because they belong to the module and not to this worker."""
        return [counter.name for counter in declarations.COUNTERS]

    def describe(self, names: Sequence[str] | None = None) -> answers.DescribedCounts:
        """Counters as they were last read; all of them by default."""
        return answers.describe_all(self.names if names is None else names, self.reading, self.condition)

    def answer_to_choice(self, names: tuple[str, ...]) -> CountAnswer:
        """The answer of `/v1/counts?counters=…`."""
        given = self._of_choices.get(names)
        if given is None:
            given = answers.render_all(self.describe(names), self.condition)
            if len(self._of_choices) < MOST_CHOICES:
                self._of_choices[names] = given
        return given

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._closed = True
            self._wanted.set()
            await self._task

    async def _keep(self) -> None:
        """Read until no client has asked for a while."""
        try:
            while not self._closed and (self._is_asked() or monotonic() - self._asked_at < self.idle_seconds):
                this_read, self._next_read = self._next_read, asyncio.Event()
                self._wanted.clear()
                try:
                    await self._read()
                finally:
                    this_read.set()
                metrics.note_standing_answers()
                pause = self.refresh_seconds if self.condition is Condition.FRESH else RETRY_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wanted.wait()
        finally:
            # No await from here on: a request finds a running task, or neither answers nor a task.
            metrics.note_standing_answers()
            self.answers, self._of_choices = {}, {}
            self._next_read.set()
            self._next_read = asyncio.Event()

    def _is_asked(self) -> bool:
        """Whether a client has asked since the last read."""
        asked, self.is_asked = self.is_asked, False
        if asked:
            self._asked_at = monotonic()
        return asked

    async def _read(self) -> None:
        """One read, successful or not, and the answers from it."""
        begun = perf_counter()
        try:
            self.reading = await read_counters(self._trips, declarations.COUNTERS)
        except Unreadable as error:
            self._note_failure(error)
        else:
            self._note_success(self.reading, perf_counter() - begun)
        self.answers = answers.render(self.names, self.reading, self.condition)
        self._of_choices = {}

    def _note_success(self, reading: Reading, seconds: float) -> None:
        self.condition, self._read_at = Condition.FRESH, monotonic()
        away = tuple(name for name, state in reading.states.items() if state.away)
        if self._noted != (Condition.FRESH, away):
            self._noted = Condition.FRESH, away
            if away:
                log.warning("counts.away", counters=away, error=str(reading.failure))
            else:
                log.info("counts.reading")
        metrics.READS.labels("read").inc()
        metrics.READ_SECONDS.observe(seconds)
        metrics.READ_AT.set(reading.as_of.timestamp())

    def _note_failure(self, error: Exception) -> None:
        recent = self.reading is not None and monotonic() - self._read_at < self.stale_seconds
        self.condition = Condition.STALE if recent else Condition.LOST
        if self._noted != (self.condition, ()):
            self._noted = self.condition, ()
            log.warning("counts.cannot_read", answers=self.condition.value, error=str(error))
        metrics.READS.labels("failed").inc()
