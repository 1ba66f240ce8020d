"""Whether members are counted: from a client's request to members, and to Redis' answer.

Questions that arrive at the same time share a round trip to a server: while one runs, others gather for the next.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass
from urllib.parse import parse_qsl

import msgspec

from query_service import problems
from query_service.reads import read_memberships
from query_service.trips import Trip, Unreadable
from shared_models.declarations import Counter
from shared_models.nodes import AsyncNodes
from shared_models.protocol import elements, keys, members
from shared_models.protocol.states import State
from shared_models.web.problems import Problem, fault

# How many members one round trip asks for: so a large question delays small ones only for a moment.
MOST_AT_ONCE = 5_000
# Turns of the event loop between two round trips. In these turns the worker sends answers, and the next questions of the
# same clients arrive in time for the next round trip. Measured with 32 connections: a tenth more answers.
TURNS_BETWEEN_TRIPS = 3


class MembersAsked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a question about many members. A number stands for its digits."""

    members: list[dict[str, str | int]]


_body = msgspec.json.Decoder(MembersAsked)


def read_query(counter: Counter, query_string: str) -> bytes:
    """The member in `?field=value&…`: each field of the counter once, and no other. Raises Problem 400."""
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError:
        raise problems.wrong_member("a value is not UTF-8") from None
    except ValueError:
        raise problems.wrong_member("there are more than 100 parameters") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        ((name, times),) = Tally(name for name, _ in pairs).most_common(1)
        raise problems.wrong_member(f"{name!r} is given {times} times", field=name)
    check_fields(counter, values)
    return members.encode([values[name] for name in counter.fields])


def read_body(counter: Counter, body: bytes | bytearray, limit: int) -> list[bytes]:
    """The members in `{"members": [{field: value, …}, …]}`, in their order. Raises Problem 400 or 413."""
    try:
        asked = _body.decode(body).members
    # RecursionError: brackets nested thousands deep.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problems.unreadable_body(
            f'send {{"members": [{{"{counter.fields[0]}": "…"}}, …]}} as JSON: {error}'
        ) from None
    if len(asked) > limit:
        raise problems.too_many_members(limit)
    for index, values in enumerate(asked):
        check_fields(counter, values, index=index)
    return members.encode_all([tuple(values[name] for name in counter.fields) for values in asked], len(counter.fields))


def check_fields(counter: Counter, names: Iterable[str], **where: int) -> None:
    """Raises the problem that names the first field that is missing, or that the counter does not have."""
    given = set(names)
    if len(given) == len(counter.fields) and given.issuperset(counter.fields):
        return
    has = f"a member of {counter.name!r} has: {', '.join(counter.fields)}"
    for name in counter.fields:
        if name not in given:
            raise problems.wrong_member(f"{name!r} is missing; {has}", field=name, **where)
    for name in sorted(given.difference(counter.fields)):
        raise problems.wrong_member(f"{name!r} is not a field; {has}", field=name, **where)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Members of one part of a counter, and the request that waits for the answer."""

    part: Counter
    members: list[bytes]
    answer: asyncio.Future[list[bool]]


class Memberships:
    """The questions of one worker. All of it runs in its event loop."""

    def __init__(self, nodes: AsyncNodes) -> None:
        self.nodes = nodes
        # By the URL of the server that is asked.
        self._waiting: defaultdict[str, list[Question]] = defaultdict(list)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, counter: Counter, asked: list[bytes]) -> list[bool]:
        """Which of them are counted, as read after this call. Raises Problem if the counter is cold, or Redis does not
        answer.

        Answers are not cached, so there is no stale one.
        """
        try:
            await self.nodes.ready()
        except Unreadable:
            raise problems.redis_is_unavailable() from None
        if counter.shards == 1:
            return await self._ask_part(counter, asked)
        numbers = [elements.shard_of_member(counter, member) for member in asked]
        lists: dict[int, list[bytes]] = {}
        for number, member in zip(numbers, asked, strict=True):
            lists.setdefault(number, []).append(member)
        answers = await asyncio.gather(*(self._ask_part(counter.parts[number], some) for number, some in lists.items()))
        of_parts = dict(zip(lists, map(iter, answers), strict=True))
        return [next(of_parts[number]) for number in numbers]

    def _ask_part(self, part: Counter, asked: list[bytes]) -> asyncio.Future[list[bool]]:
        url = self.nodes.where(keys.home_of(part))
        question = Question(part, asked, asyncio.get_running_loop().create_future())
        self._waiting[url].append(question)
        if url not in self._tasks:
            self._tasks[url] = asyncio.create_task(self._answer_all(url), context=Context())
        return question.answer

    async def _answer_all(self, url: str) -> None:
        taken: list[Question] = []
        try:
            while self._waiting[url]:
                taken = self._take(url)
                by_part: dict[str, tuple[Counter, list[bytes]]] = {}
                for question in taken:
                    by_part.setdefault(question.part.name, (question.part, []))[1].extend(question.members)
                found = await read_memberships(Trip(self.nodes, url), list(by_part.values()))
                self._give(taken, dict(zip(by_part, found, strict=True)))
                for _ in range(TURNS_BETWEEN_TRIPS):
                    await asyncio.sleep(0)
        except Exception:  # a bug in Rollcall
            self._refuse([*taken, *self._waiting[url]], fault())
            raise
        finally:
            # No await from here on: a question finds a running task, or starts one.
            del self._tasks[url], self._waiting[url]

    def _take(self, url: str) -> list[Question]:
        """The questions for one round trip, in their order: at least one."""
        size, waiting = 0, self._waiting[url]
        for number, question in enumerate(waiting):
            size += len(question.members)
            if number and size > MOST_AT_ONCE:
                break
        else:
            number = len(waiting)
        taken, self._waiting[url] = waiting[:number], waiting[number:]
        return taken

    @staticmethod
    def _give(taken: list[Question], found: dict[str, list[bool] | State | Exception]) -> None:
        """Give each question its part of the result, in the order in which they were joined."""
        begun: dict[str, int] = {}
        for question in taken:
            of_part = found[question.part.name]
            at = begun.get(question.part.name, 0)
            begun[question.part.name] = at + len(question.members)
            if question.answer.done():
                continue  # the client has gone
            if isinstance(of_part, State):
                question.answer.set_exception(problems.counter_is_cold(question.part.whole, of_part))
            elif isinstance(of_part, Exception):
                question.answer.set_exception(problems.redis_is_unavailable())
            else:
                question.answer.set_result(of_part[at : at + len(question.members)])

    @staticmethod
    def _refuse(taken: list[Question], problem: Problem) -> None:
        for question in taken:
            if not question.answer.done():
                question.answer.set_exception(problem)
