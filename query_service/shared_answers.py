"""Answers to questions that no standing answer fits. Clients that ask the same at the same moment share one, and it is kept for
a moment.

A reader reads Redis, and gives a document. A client that asks for a fresh answer never gets one whose reading began before
the request: that reading may have missed the write that this client wants to see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, Protocol, TypeAlias

from query_service import metrics
from query_service.answers import Condition, CountAnswer, give

# Reads the answer to a question from Redis. Raises Problem.
Reader: TypeAlias = Callable[[Any], Awaitable[dict[str, Any]]]

# The most that a worker's kept answers may hold. A top of 1,000 groups is about 50 kB.
KEPT_BYTES = 4 << 20


class Question(Hashable, Protocol):
    """A question. Equal questions have the same answer."""

    @property
    def kind(self) -> str:
        """For the metrics."""
        ...

    @property
    def route(self) -> str:
        """Where it is asked."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """An answer: the document, and its bytes."""

    document: dict[str, Any]
    answer: CountAnswer


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that is given until it is too old."""

    given: Given
    until: float


class SharedAnswers:
    """The shared answers of one worker. All of it runs in the worker's event loop."""

    def __init__(self, read: Reader, *, keep_seconds: float, kept_bytes: int = KEPT_BYTES) -> None:
        self._read, self.keep_seconds, self._most_bytes = read, keep_seconds, kept_bytes
        # The oldest first: all are kept for the same time.
        self._kept: dict[Question, Kept] = {}
        self.kept_bytes = 0
        self._running: dict[Question, asyncio.Task[Given]] = {}
        # Readings that wait until the running one of the same question has ended.
        self._next: dict[Question, asyncio.Task[Given]] = {}

    async def ask(self, question: Question, *, fresh: bool = False) -> Given:
        """The answer; `fresh`: read after this call, else at most `keep_seconds` old. Raises Problem."""
        running = self._running.get(question)
        if not fresh:
            kept = self._kept.get(question)
            if kept is not None and kept.until > monotonic():
                metrics.SHARED.labels(question.kind, "kept").inc()
                return kept.given
            if running is not None:
                metrics.SHARED.labels(question.kind, "shared").inc()
                return await asyncio.shield(running)
        if running is None:
            return await asyncio.shield(self._start(question))
        following = self._next.get(question)
        if following is None:
            following = self._next[question] = task_of(self._follow(running, question))
        else:
            metrics.SHARED.labels(question.kind, "shared").inc()
        return await asyncio.shield(following)

    def _start(self, question: Question) -> asyncio.Task[Given]:
        metrics.SHARED.labels(question.kind, "read").inc()
        task = self._running[question] = task_of(self._find(question))
        return task

    async def _follow(self, running: asyncio.Task[Given], question: Question) -> Given:
        await asyncio.wait([running])
        del self._next[question]
        return await (self._running.get(question) or self._start(question))

    async def _find(self, question: Question) -> Given:
        begun = perf_counter()
        try:
            document = await self._read(question)
        finally:
            del self._running[question]
        metrics.SHARED_SECONDS.labels(question.kind).observe(perf_counter() - begun)
        counted = {name: value for name, value in document.items() if name not in ("complete_through", "as_of")}
        given = Given(document, give(question.route, document, counted, Condition.FRESH))
        self._keep(question, given)
        return given

    def _keep(self, question: Question, given: Given) -> None:
        now = monotonic()
        self._forget(question)
        self._kept[question] = Kept(given, now + self.keep_seconds)
        self.kept_bytes += len(given.answer.whole.body)
        while self._kept:
            oldest = next(iter(self._kept))
            if self._kept[oldest].until > now and self.kept_bytes <= self._most_bytes:
                return
            self._forget(oldest)

    def _forget(self, question: Question) -> None:
        kept = self._kept.pop(question, None)
        if kept is not None:
            self.kept_bytes -= len(kept.given.answer.whole.body)


def task_of(reading: Coroutine[Any, Any, Given]) -> asyncio.Task[Given]:
    """A task whose failure is ignored if nobody waits for it any longer. It has a context of its own: its log lines must not
    have the id of some request."""
    task: asyncio.Task[Given] = asyncio.create_task(reading, context=Context())
    task.add_done_callback(look_at_failure)
    return task


def look_at_failure(task: asyncio.Task[Given]) -> None:
    """Mark a failure as seen; everybody who waits for the task gets it anyway."""
    with suppress(asyncio.CancelledError):
        task.exception()
