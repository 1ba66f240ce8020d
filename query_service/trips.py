"""Round trips that several readers share: the commands of all who ask at the same time go to Redis in one MULTI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from query_service import problems
from query_service.reads import Unreadable
from shared_models.web.problems import Problem, fault

# Commands in one MULTI. Redis serves nobody else meanwhile: for about a millisecond.
MOST_COMMANDS = 2_000


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The commands of one reader in a round trip."""

    queue: Callable[[Pipeline], object]
    replies: asyncio.Future[list[Any]]


class Trips:
    """The round trips of one worker. All of it runs in its event loop.

    While one trip is under way, new readers wait for the next one. So the replies are never older than the question.
    """

    def __init__(self, client: Redis, most_commands: int = MOST_COMMANDS) -> None:
        self._client, self._most = client, most_commands
        self._waiting: list[Part] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, queue: Callable[[Pipeline], object]) -> list[Any]:
        """The replies to the commands that `queue` puts into a MULTI. A command that fails has its exception as the reply.

        Raises Problem if Redis does not answer.
        """
        part = Part(queue, asyncio.get_running_loop().create_future())
        self._waiting.append(part)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._travel(), context=Context())
        return await part.replies

    async def _travel(self) -> None:
        while self._waiting:
            pipe = self._client.pipeline(transaction=True)
            taken: list[tuple[Part, int]] = []
            try:
                while self._waiting and len(pipe) < self._most:
                    before, part = len(pipe), self._waiting.pop(0)
                    taken.append((part, 0))  # it gets an answer even if a later step fails
                    part.queue(pipe)
                    taken[-1] = part, len(pipe) - before
                replies = await pipe.execute(raise_on_error=False)
            except Unreadable:
                refuse(taken, problems.redis_is_unavailable())
            except Exception:
                refuse(taken, fault())
                raise
            else:
                begin = 0
                for part, commands in taken:
                    if not part.replies.done():
                        part.replies.set_result(replies[begin : begin + commands])
                    begin += commands


def refuse(taken: list[tuple[Part, int]], problem: Problem) -> None:
    """Tell all readers of a trip that there are no replies."""
    for part, _ in taken:
        if not part.replies.done():
            part.replies.set_exception(problem)
