"""The board: the answers to the standing questions, kept true while somebody looks at them.

One task a worker reads all counters from Redis, in one round trip, every REFRESH_SECONDS, and puts the answers up. A
request takes what is up: one dictionary lookup. Nobody asks for IDLE_SECONDS: the task ends and the board is bare; the
next request starts it again, and waits for its first read.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context
from time import monotonic, perf_counter
from typing import Any

import structlog
from redis.asyncio import Redis

from query_service import answers, metrics
from query_service.answers import Answer, Condition
from query_service.counters import Reading, Unreadable, read_counters
from shared_models import declarations

log = structlog.get_logger()

# Between two attempts while Redis cannot be read, so that it is noticed within a second when it is back. A request
# that asks for a read of its own does not wait for it.
RETRY_SECONDS = 0.5


class Board:
    """The standing answers of one worker. All of it runs in the worker's event loop: nothing here needs a lock."""

    def __init__(self, client: Redis, *, refresh_seconds: float, idle_seconds: float, stale_seconds: float) -> None:
        self._client = client
        self.refresh_seconds, self.idle_seconds, self.stale_seconds = refresh_seconds, idle_seconds, stale_seconds
        # What is up, by path. Empty while the board is bare.
        self.answers: dict[str, Answer] = {}
        self.reading: Reading | None = None
        self.condition = Condition.LOST
        self._noted: Condition | None = None  # what the log says already
        self._read_at = 0.0
        self._asked_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        # Set when the read that has not begun yet has ended.
        self._next_read = asyncio.Event()

    def ask(self) -> None:
        """Note that somebody looks: the answers are kept true for another `idle_seconds`."""
        self._asked_at = monotonic()
        if self._task is None or self._task.done():
            # In a context of its own: it is nobody's request whose id its lines would carry.
            self._task = asyncio.create_task(self._keep(), context=Context())

    async def read_anew(self) -> None:
        """Return when a read has ended that began after this call; what it found is up then.

        Callers share a read, but never one that is under way already: that one may have passed Redis before the write
        that this caller wants to see ("counted means counted").
        """
        self.ask()
        next_read = self._next_read
        self._wanted.set()
        await next_read.wait()

    @property
    def names(self) -> list[str]:
        """The declared counters. Looked up each time: they are the module's, not the board's."""
        return [counter.name for counter in declarations.COUNTERS]

    def describe(self) -> dict[str, Any]:
        """All counters as they were last read, for the stream and the page."""
        return answers.describe_all(self.names, self.reading, self.condition)

    async def close(self) -> None:
        """Take everything down."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._client.aclose()

    async def _keep(self) -> None:
        """Read until nobody has asked for a while."""
        try:
            while self._wanted.is_set() or monotonic() - self._asked_at < self.idle_seconds:
                this_read, self._next_read = self._next_read, asyncio.Event()
                self._wanted.clear()
                try:
                    await self._read()
                finally:
                    this_read.set()
                metrics.pass_on_standing_answers()
                pause = self.refresh_seconds if self.condition is Condition.FRESH else RETRY_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wanted.wait()
        finally:
            # No await from here on: a request either finds the task at work, or bare and done, never in between.
            metrics.pass_on_standing_answers()
            self.answers = {}
            self._next_read.set()
            self._next_read = asyncio.Event()

    async def _read(self) -> None:
        """One read, whatever becomes of it, and the answers that follow from it."""
        begun = perf_counter()
        try:
            self.reading = await read_counters(self._client, self.names)
        except Unreadable as error:
            self._note_failure(error)
        else:
            self._note_success(perf_counter() - begun)
        self.answers = answers.render(self.names, self.reading, self.condition)

    def _note_success(self, seconds: float) -> None:
        assert self.reading is not None  # noqa: S101  (for the type checker)
        self.condition, self._read_at = Condition.FRESH, monotonic()
        if self._noted is not Condition.FRESH:
            self._noted = Condition.FRESH
            log.info("board.reading")
        metrics.READS.labels("read").inc()
        metrics.READ_SECONDS.observe(seconds)
        metrics.READ_AT.set(self.reading.as_of.timestamp())

    def _note_failure(self, error: Exception) -> None:
        recent = self.reading is not None and monotonic() - self._read_at < self.stale_seconds
        self.condition = Condition.STALE if recent else Condition.LOST
        if self._noted is not self.condition:
            self._noted = self.condition
            log.warning("board.cannot_read", answers=self.condition.value, error=str(error))
        metrics.READS.labels("failed").inc()
