"""Reads the largest groups from Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, TypeVar

from redis.asyncio.client import Pipeline

from query_service import problems
from query_service.directories import (
    CHANGING,
    ROUNDS,
    Document,
    Generations,
    added,
    broken_of,
    count_of,
    describe_group,
    group_of,
    head,
    is_readable,
    judge_without_broken,
    key_of,
    live,
    pairs_of,
    plain,
    queue_broken,
    queue_groups,
    states_of,
    utc_now,
    without_count,
)
from query_service.largest import Largest, add_up, candidates, choose
from query_service.questions import MOST_TOP, Top
from query_service.trips import MOST_COMMANDS, Trips
from shared_models.declarations import Counter, get_counter
from shared_models.protocol import keys, states

T = TypeVar("T")

# How often a top of several parts is tried: it takes some rounds to find out how many groups to read.
ROUNDS_OF_PARTS = 40
# How many names of groups are read from all parts together, to find the largest. Redis takes 40 ms for so many.
MOST_NAMES = 200_000
# A top that cannot be told is not tried again for so long: to find that out takes a second.
TOO_EVEN_SECONDS = 10.0
# How many tops a worker remembers, to ask for the sizes of their names in the first round trip.
MOST_GUESSES = 100
# … and of how many groups for each of them.
MOST_REMEMBERED = 4_000


@dataclass(frozen=True, slots=True)
class Guess:
    """How a top is read from several parts: how many groups of each, of which groups the sizes in all parts, and which groups may
    be the answer, so that their sets are counted."""

    depth: int
    known: list[bytes] = field(default_factory=list)
    chosen: list[bytes] = field(default_factory=list)


class TopReader:
    """Reads for the questions of one worker."""

    def __init__(self, trips: Trips, alone: Trips, generations: Generations) -> None:
        """`alone`: trips of one part each, for what takes Redis long."""
        self._trips, self._alone, self._generations = trips, alone, generations
        # For each of the latest tops: the names that may be in it, and the size at its end. These are guesses, too.
        self._tops: dict[Top, tuple[dict[bytes, None], float | None]] = {}
        # The same, of counters with several parts.
        self._tops_of_parts: dict[Top, Guess] = {}
        # By `key_of` the counter: how large the smallest top was that could not be told, and until when nobody tries again.
        self._too_even: dict[str, tuple[int, float]] = {}

    async def read(self, asked: Top) -> Document:
        """The answer. Raises Problem."""
        return await (self._of_one_part(asked) if asked.counter.shards == 1 else self._of_parts(asked))

    async def _of_one_part(self, asked: Top) -> Document:
        """The largest groups of a counter with one part.

        Read backwards, the directory gives the largest groups first, and groups of one size in the reverse order of their
        names. So this reads the names of the size at the end once more, from the first one."""
        counter, at = asked.counter, keys.of_counter(asked.counter.name)
        known, last = self._tops.get(asked, ({}, None))
        reads_broken = asked in self._tops

        def queue(pipe: Pipeline, part: Counter) -> None:
            states.queue_state(pipe, part.name)
            states.queue_state(pipe, counter.of)
            pipe.hmget(at.intake, ["generation", "elements"])
            pipe.zrevrange(at.members, 0, asked.most - 1, withscores=True)
            pipe.zrangebyscore(at.members, last or 0, last or 0, start=0, num=asked.most if last else 0)
            queue_broken(pipe, counter, reads_broken)
            queue_groups(pipe, counter, generation, names, with_broken=False)

        for _ in range(ROUNDS):
            as_of, (generation,), names = utc_now(), self._generations.guess(counter), list(known)
            (replies,) = await self._trips.ask(counter.parts, queue)
            state, of_total = live(counter, states_of([replies])), replies[states.REPLIES : 2 * states.REPLIES]
            (now, sum_of_groups), listed, ties, many_broken, named = plain(
                counter, replies[2 * states.REPLIES : 2 * states.REPLIES + 5]
            )
            largest, broken = pairs_of(listed), broken_of(named)
            self._generations.learn(counter, [now])
            settled = now == generation and reads_broken
            reads_broken = is_readable(counter, many_broken)
            before, last = last, float(largest[-1][1]) if largest else None
            above = sorted((-float(size), name) for name, size in largest if float(size) != last)
            chosen = [name for _, name in above] + (ties[: asked.most - len(above)] if last == before else [])
            if settled and last == before and all(name in known for name in chosen):
                counts = dict(zip(names, judge_without_broken(names, replies[2 * states.REPLIES + 5 :]), strict=True))
                told = {name: count for name in chosen if name not in broken and isinstance(count := counts[name], int)}
                cold = sorted({*broken, *chosen} - told.keys())
                is_whole = not cold and (sum_of_groups or b"").isdigit()
                return {
                    **head(counter),
                    "top": [describe_group(group_of(counter, name), count) for name, count in told.items()],
                    "distinct": count_of([of_total]),
                    "sum_of_groups": int(sum_of_groups) if is_whole else None,
                    "groups": state.count,
                    "cold_groups": [group_of(counter, name) for name in cold],
                    **without_count(state),
                    "as_of": as_of,
                }
            known = dict.fromkeys([*(name for name, _ in largest), *ties])
            self._remember(self._tops, asked, (known, last))
        raise problems.groups_are_cold(counter, CHANGING)

    @staticmethod
    def _remember(tops: dict[Top, T], asked: Top, guess: T) -> None:
        """Remember what the next request for this top may expect."""
        tops[asked] = guess
        if len(tops) > MOST_GUESSES:
            del tops[next(iter(tops))]

    async def _of_parts(self, asked: Top) -> Document:
        """The largest groups of a counter with several parts: see `largest`."""
        counter, total = asked.counter, get_counter(asked.counter.of)
        refused, until = self._too_even.get(key_of(counter), (MOST_TOP + 1, 0.0))
        if asked.most >= refused and monotonic() < until:  # what is larger, is harder to tell
            raise problems.top_is_too_even(counter, MOST_NAMES)
        deepest = MOST_NAMES // counter.shards
        guess = self._tops_of_parts.get(asked, Guess(min(2 * asked.most, deepest)))
        reads_broken, are_added = asked in self._tops_of_parts, False

        def queue(pipe: Pipeline, part: Counter) -> None:
            at = keys.of_counter(part.name)
            states.queue_state(pipe, part.name)
            states.queue_state(pipe, total.parts[part.shard].name)
            pipe.hget(at.intake, "generation")
            pipe.zrevrange(at.members, 0, guess.depth - 1, withscores=True)
            queue_broken(pipe, part, reads_broken)
            pipe.zmscore(at.members, guess.known or [b""])  # type: ignore[arg-type]
            queue_groups(pipe, part, generations[part.shard], guess.chosen, with_broken=False)

        for _ in range(ROUNDS_OF_PARTS):
            as_of, generations = utc_now(), self._generations.guess(counter)
            is_large = guess.depth * counter.shards > MOST_COMMANDS
            replies = await (self._alone if is_large else self._trips).ask(counter.parts, queue)
            state = live(counter, states_of(replies))
            about = [plain(counter, each[2 * states.REPLIES :][:5]) for each in replies]
            now = [each[0] for each in about]
            self._generations.learn(counter, now)
            settled = now == generations and reads_broken
            reads_broken = all(is_readable(counter, each[2]) for each in about)
            lists, likely, chosen = await in_thread(is_large, choose_of, asked.most, guess, about)
            if chosen is not None and settled and set(chosen) <= set(guess.chosen):
                names, skipped = guess.chosen, 2 * states.REPLIES + 5
                judged = added([judge_without_broken(names, each[skipped:]) for each in replies])
                counts = dict(zip(names, judged, strict=True))
                broken = {name for each in about for name in broken_of(each[3])}
                told = {name: count for name in chosen if name not in broken and isinstance(count := counts[name], int)}
                cold = sorted({*broken, *chosen} - told.keys())
                return {
                    **head(counter),
                    "top": [describe_group(group_of(counter, name), count) for name, count in told.items()],
                    "distinct": count_of([each[states.REPLIES :][: states.REPLIES] for each in replies]),
                    "sum_of_groups": None if cold else state.elements,
                    "groups": len(add_up(lists)) if all(each.is_all for each in lists) else None,
                    "cold_groups": [group_of(counter, name) for name in cold],
                    **without_count(state),
                    "as_of": as_of,
                }
            can_add = len(likely) * counter.shards <= MOST_NAMES
            if chosen is None and (are_added or not can_add):
                if guess.depth == deepest:
                    self._too_even[key_of(counter)] = asked.most, monotonic() + TOO_EVEN_SECONDS
                    raise problems.top_is_too_even(counter, MOST_NAMES)
                guess, are_added = Guess(min(2 * guess.depth, deepest) if can_add else deepest), False
            else:
                # Some more than it takes: while many rows come, groups at the end of a top change their places.
                may_be_chosen = list(dict.fromkeys([*(chosen or ()), *likely]))[: asked.most + asked.most // 10 + 5]
                guess, are_added = Guess(guess.depth, likely if can_add else [], may_be_chosen), True
                is_short = len(guess.known) <= MOST_REMEMBERED
                self._remember(self._tops_of_parts, asked, guess if is_short else replace(guess, known=[]))
        raise problems.groups_are_cold(counter, CHANGING)


def choose_of(
    most: int, guess: Guess, about: Sequence[Sequence[Any]]
) -> tuple[list[Largest], list[bytes], list[bytes] | None]:
    """The lists of the parts; the groups in them that may be among the largest, the likeliest first; and the largest groups: None
    if it takes longer lists to tell."""
    lists = [
        Largest({name: float(size) for name, size in pairs_of(each[1])}, len(each[1]) < 2 * guess.depth)
        for each in about
    ]
    sizes = zip(*(each[4] for each in about), strict=True)
    known = {name: sum(map(float, filter(None, some))) for name, some in zip(guess.known, sizes, strict=False)}
    return lists, candidates(lists, most), choose(lists, known, most)


async def in_thread(is_large: bool, function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns; if there is much to do, the event loop goes on meanwhile."""
    return await asyncio.to_thread(function, *arguments) if is_large else function(*arguments)
