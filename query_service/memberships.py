"""Whether members are counted: from a client's request to members, and to Redis' answer.

Questions that arrive at the same time share a round trip: while one runs, others gather for the next.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass
from urllib.parse import parse_qsl

import msgspec
from redis.asyncio import Redis

from query_service import problems
from query_service.reads import CounterIsCold, Unreadable, read_memberships
from shared_models.declarations import Counter
from shared_models.protocol import members
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
    """Members of one counter, and the request that waits for the answer."""

    counter: str
    members: list[bytes]
    answer: asyncio.Future[list[bool]]


class Memberships:
    """The questions of one worker. All of it runs in its event loop."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self._waiting: list[Question] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, counter: str, asked: list[bytes]) -> list[bool]:
        """Which of them are counted, as read after this call. Raises Problem if the counter is cold, or Redis does not
        answer.

        Answers are not cached, so there is no stale one.
        """
        question = Question(counter, asked, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._answer_all(), context=Context())
        return await question.answer

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def _answer_all(self) -> None:
        while self._waiting:
            taken = self._take()
            by_counter: dict[str, list[bytes]] = {}
            for question in taken:
                by_counter.setdefault(question.counter, []).extend(question.members)
            try:
                found = await read_memberships(self.client, by_counter)
            except Unreadable:
                self._refuse(taken, problems.redis_is_unavailable())
            except Exception:
                self._refuse(taken, fault())
                raise
            else:
                self._give(taken, found)
                for _ in range(TURNS_BETWEEN_TRIPS):
                    await asyncio.sleep(0)

    def _take(self) -> list[Question]:
        """The questions for one round trip, in their order: at least one."""
        size = 0
        for number, question in enumerate(self._waiting):
            size += len(question.members)
            if number and size > MOST_AT_ONCE:
                break
        else:
            number = len(self._waiting)
        taken, self._waiting = self._waiting[:number], self._waiting[number:]
        return taken

    @staticmethod
    def _give(taken: list[Question], found: dict[str, list[bool] | CounterIsCold]) -> None:
        """Give each question its part of the result, in the order in which they were joined."""
        begun: dict[str, int] = {}
        for question in taken:
            of_counter = found[question.counter]
            at = begun.get(question.counter, 0)
            begun[question.counter] = at + len(question.members)
            if question.answer.done():
                continue  # the client has gone
            if isinstance(of_counter, CounterIsCold):
                question.answer.set_exception(problems.counter_is_cold(of_counter.name, of_counter.state))
            else:
                question.answer.set_result(of_counter[at : at + len(question.members)])

    @staticmethod
    def _refuse(taken: list[Question], problem: Problem) -> None:
        for question in taken:
            if not question.answer.done():
                question.answer.set_exception(problem)
