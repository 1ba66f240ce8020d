"""Round trips to Redis that several readers share: the commands of all who ask a server at the same time go there together.

A reader asks about parts of counters. What it reads about one part is of one moment: it is in one MULTI. On a cluster each part
has a MULTI of its own, because the parts are in different slots. A server that is no cluster gets one MULTI for all, which takes
a sixth less of the worker's time.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias, cast

from redis.asyncio import ConnectionPool
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from query_service import problems
from shared_models.declarations import Counter
from shared_models.nodes import AsyncNodes
from shared_models.protocol import keys
from shared_models.web.problems import fault

# What a read may raise: Redis is down, slow or loading; what it says cannot be parsed.
Unreadable = (RedisError, OSError, ValueError)
# Puts the commands about a part into a pipeline.
Queue: TypeAlias = Callable[[Pipeline, Counter], object]
# The replies to some commands, as Redis sends them; one that failed has its exception. Or why there are none.
Replies: TypeAlias = "list[Any] | Exception"

# Commands in one trip. Redis serves nobody else meanwhile: for about a millisecond.
MOST_COMMANDS = 2_000


class Trip:
    """One round trip to one server. The MULTIs are written out: a pipeline of redis-py has one at most."""

    def __init__(self, nodes: AsyncNodes, url: str) -> None:
        self._nodes, self._is_cluster = nodes, nodes.is_cluster
        self._client = nodes.at(url)
        self._pipe: Pipeline = self._client.pipeline()  # it only collects commands
        # How many commands each reader has, in each MULTI.
        self._lengths: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._pipe)

    def add(self, queue: Queue, part: Counter) -> None:
        """What one reader asks about a part, or about keys in the slot of this part."""
        if self._is_cluster or not self._lengths:
            self._end()
            self._pipe.execute_command("MULTI")
            self._lengths.append([])
        before = len(self._pipe)
        queue(self._pipe, part)
        self._lengths[-1].append(len(self._pipe) - before)

    async def go(self) -> list[Replies]:
        """The replies, for each reader in the order of `add`."""
        self._end()
        commands = [arguments for arguments, _ in self._pipe.command_stack]
        try:
            replies = iter(await send(self._client.connection_pool, commands))
        except Unreadable as error:
            self._nodes.look_again()
            return [error for lengths in self._lengths for _ in lengths]
        found: list[Replies] = []
        for lengths in self._lengths:
            # OK to MULTI, QUEUED to each command, and EXEC has all replies.
            *queued, done = islice(replies, sum(lengths) + 2)
            if isinstance(done, Exception):
                self._nodes.look_again()
                why = next((each for each in queued if isinstance(each, Exception)), done)
                found += [why] * len(lengths)
            else:
                each = iter(done)
                found += [list(islice(each, length)) for length in lengths]
        return found

    def _end(self) -> None:
        if self._lengths:
            self._pipe.execute_command("EXEC")


async def send(pool: ConnectionPool, commands: Sequence[Any]) -> list[Any]:
    """The replies to these commands, as Redis sends them; an error is a reply, too. Raises redis.RedisError, OSError.

    redis-py's own pipelines would take the QUEUED in a MULTI for the reply, and need a tenth more time.
    """
    connection = await pool.get_connection()
    try:
        # What fails midway, or is cancelled, closes the connection: no reply is left in it for the next reader.
        await connection.send_packed_command(connection.pack_commands(commands))
        replies = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies
    finally:
        await pool.release(connection)


@dataclass(slots=True, eq=False)
class Asked:
    """What one reader asks about each of some parts, and the replies so far."""

    queue: Queue
    replies: list[Replies]
    missing: int
    done: asyncio.Future[None]

    def give(self, place: int, replies: Replies) -> None:
        """The replies about one part."""
        self.replies[place] = replies
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)


# Its place among the parts that are asked about, and the part.
Question: TypeAlias = tuple[Asked, int, Counter]


class Trips:
    """The round trips of one worker. All of it runs in its event loop.

    While one trip to a server is under way, new readers wait for the next one. So replies are never older than the question.
    A server that does not answer delays nobody who asks others only.
    """

    def __init__(self, nodes: AsyncNodes, most_commands: int = MOST_COMMANDS) -> None:
        self.nodes, self._most = nodes, most_commands
        # By the server's URL.
        self._waiting: defaultdict[str, deque[Question]] = defaultdict(deque)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, parts: Sequence[Counter], queue: Queue) -> list[list[Any]]:
        """For each part the replies to the commands that `queue` puts into a MULTI. Raises Problem if Redis, or one of the servers
        that hold these parts, does not answer."""
        try:
            found = await self.ask_each(parts, queue)
        except Unreadable:
            raise problems.redis_is_unavailable() from None
        failures = [each for each in found if isinstance(each, Exception)]
        if failures:
            known = all(isinstance(each, Unreadable) for each in failures)
            raise problems.redis_is_unavailable() if known else fault()
        return cast("list[list[Any]]", found)

    async def ask_each(self, parts: Sequence[Counter], queue: Queue) -> list[Replies]:
        """The same; a part whose server does not answer has the reason. Raises Unreadable if nobody says where the parts are."""
        if not parts:
            return []
        await self.nodes.ready()
        servers = [self.nodes.where(keys.home_of(part)) for part in parts]
        asked = Asked(queue, [[]] * len(parts), len(parts), asyncio.get_running_loop().create_future())
        for place, (part, url) in enumerate(zip(parts, servers, strict=True)):
            self._waiting[url].append((asked, place, part))
            if url not in self._tasks:
                self._tasks[url] = asyncio.create_task(self._travel(url), context=Context())
        await asked.done
        failed = [place for place, replies in enumerate(asked.replies) if isinstance(replies, Exception)]
        if failed and not self.nodes.is_one:
            # After a failover, or when slots were moved, another server has them.
            try:
                await self.nodes.ready()
            except Unreadable:
                return asked.replies
            moved = [place for place in failed if self.nodes.where(keys.home_of(parts[place])) != servers[place]]
            if moved:
                again = await self.ask_each([parts[place] for place in moved], queue)
                for place, replies in zip(moved, again, strict=True):
                    asked.replies[place] = replies
        return asked.replies

    async def _travel(self, url: str) -> None:
        waiting = self._waiting[url]
        taken: list[Question] = []
        try:
            while waiting:
                taken, trip = [], Trip(self.nodes, url)
                while waiting and len(trip) < self._most:
                    taken.append(waiting.popleft())
                    asked, _, part = taken[-1]
                    trip.add(asked.queue, part)
                for (asked, place, _), replies in zip(taken, await trip.go(), strict=True):
                    asked.give(place, replies)
        except Exception as error:  # a bug in Rollcall
            for asked, place, _ in (*taken, *waiting):
                asked.give(place, error)
            raise
        finally:
            # No await from here on: a reader finds a running task, or starts one.
            del self._tasks[url], self._waiting[url]
