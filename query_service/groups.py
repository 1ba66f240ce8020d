"""Reads groups and windows from Redis. The MULTI that reads a number also reads what proves it; otherwise there is no answer.

A group has a size of its own in the directory. If its set has another size, or the keeper is reading the group again
(`broken`), only this group is cold. The keys of the sets contain a generation. A remembered generation is a guess, so each
MULTI reads it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, TypeAlias, TypeVar
from zoneinfo import ZoneInfo

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from query_service import problems
from query_service.answers import Condition, describe
from query_service.questions import MOST_TOP, Group, Listing, OneGroup, Periods, Top, Window, cursor_of
from query_service.tops import Largest, add_up, candidates, choose
from query_service.trips import MOST_COMMANDS, Trips
from shared_models.declarations import Counter, get_counter
from shared_models.protocol import keys, members, states
from shared_models.protocol.states import State

Document: TypeAlias = dict[str, Any]
T = TypeVar("T")

# How often a question is tried if the groups change between two round trips.
ROUNDS = 5
# Groups that the keeper is reading again. If there are more, query treats the whole counter as cold.
MOST_BROKEN = 1_000
# Different days on which members were last seen: 109 years. Reading them takes Redis some milliseconds.
MOST_LAST_DAYS = 40_000
# The same, for the largest groups of several parts: it takes some to find out how many to read.
ROUNDS_OF_PARTS = 40
# How many names of groups are read from all parts together, to find the largest. Redis takes 40 ms for so many.
MOST_NAMES = 200_000
# A top that cannot be told is not tried again for so long: to find that out takes a second.
TOO_EVEN_SECONDS = 10.0
# How many tops a worker remembers, to ask for the sizes of their names in the first round trip.
MOST_GUESSES = 100
CHANGING = "its groups changed again and again while they were read"
TOO_MANY_BROKEN = (
    f"more than {MOST_BROKEN:,} of its groups were changed by something else, and are read again by the keeper"
)


@dataclass(frozen=True, slots=True)
class Guess:
    """How a top is read from several parts: how many groups of each, of which groups the sizes in all parts, and which groups may
    be the answer, so that their sets are counted."""

    depth: int
    known: list[bytes] = field(default_factory=list)
    chosen: list[bytes] = field(default_factory=list)


def utc_now() -> datetime:
    """The moment just before a read is sent: no count is claimed to be fresher than it is."""
    return datetime.now(UTC)


class GroupReader:
    """Reads for the questions of one worker."""

    def __init__(self, trips: Trips, alone: Trips) -> None:
        """`alone`: trips of one part each, for what takes Redis long."""
        self._trips, self._alone = trips, alone
        # The generation of each part of a counter as it was last read, by the key of the first part's intake.
        self._generations: dict[str, list[object]] = {}
        # For each of the latest tops: the names that may be in it, and the size at its end. These are guesses, too.
        self._tops: dict[Top, tuple[dict[bytes, None], int | None]] = {}
        # The same, of counters with several parts.
        self._tops_of_parts: dict[Top, Guess] = {}
        # By `key_of` the counter: how large the smallest top was that could not be told, and until when nobody tries again.
        self._too_even: dict[str, tuple[int, float]] = {}

    async def read(self, question: OneGroup | Top | Periods | Listing | Window) -> Document:
        """The answer. Raises Problem."""
        match question:
            case OneGroup():
                return await self._one(question)
            case Top():
                return await (self._top if question.counter.shards == 1 else self._top_of_parts)(question)
            case Periods():
                return await self._periods(question)
            case Listing():
                return await self._listing(question)
            case Window():
                return await self._window(question)

    def guess(self, counter: Counter) -> list[object]:
        """The generations that the sets of a counter had when they were last read, one for each part."""
        return self._generations.get(key_of(counter), [None] * counter.shards)

    def learn(self, counter: Counter, generations: list[object]) -> None:
        """Note the generations that were read."""
        self._generations[key_of(counter)] = generations

    async def sizes(self, counter: Counter, groups: Sequence[Group]) -> tuple[State, list[int | str], datetime]:
        """The count of each group, or why it is cold. Raises Problem if the counter is cold."""
        names = [members.encode(group) for group in groups]

        def queue(pipe: Pipeline, part: Counter) -> None:
            states.queue_state(pipe, part.name)
            pipe.hget(keys.of_counter(part.name).intake, "generation")
            queue_groups(pipe, part, generations[part.shard], names)

        for _ in range(ROUNDS):
            as_of, generations = utc_now(), self.guess(counter)
            replies = await self._trips.ask(counter.parts, queue)
            state = live(counter, states_of(replies))
            now = [plain(counter, each[states.REPLIES :][:1])[0] for each in replies]
            self.learn(counter, now)
            if now == generations:
                return state, added([judge(len(names), each[states.REPLIES + 1 :]) for each in replies]), as_of
        raise problems.groups_are_cold(counter, CHANGING)

    async def _one(self, asked: OneGroup) -> Document:
        state, (count,), as_of = await self.sizes(asked.counter, [asked.group])
        if isinstance(count, str):
            raise problems.group_is_cold(asked.counter, asked.group, count)
        return {**head(asked.counter), "group": asked.group, **good(state, count), "as_of": as_of}

    async def _periods(self, asked: Periods) -> Document:
        state, counts, as_of = await self.sizes(asked.counter, asked.groups)
        listed = list(zip(asked.groups, counts, strict=True))
        numbers = [count for count in counts if isinstance(count, int)]
        return {
            **head(asked.counter),
            "from": asked.days[0],
            "to": asked.days[-1],
            "time_zone": zone_of(asked.counter),
            "groups": [describe_group(group, count) for group, count in listed],
            "sum_of_groups": sum(numbers) if len(numbers) == len(counts) else None,
            "cold_groups": [group for group, count in listed if isinstance(count, str)],
            **without_count(state),
            "as_of": as_of,
        }

    async def _top(self, asked: Top) -> Document:
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
            as_of, (generation,), names = utc_now(), self.guess(counter), list(known)
            (replies,) = await self._trips.ask(counter.parts, queue)
            state, of_total = live(counter, states_of([replies])), replies[states.REPLIES : 2 * states.REPLIES]
            (now, sum_of_groups), listed, ties, many_broken, named = plain(
                counter, replies[2 * states.REPLIES : 2 * states.REPLIES + 5]
            )
            largest, broken = pairs_of(listed), broken_of(named)
            self.learn(counter, [now])
            settled = now == generation and reads_broken
            reads_broken = is_readable(counter, many_broken)
            before, last = last, int(largest[-1][1]) if largest else None
            above = sorted((-int(size), name) for name, size in largest if int(size) != last)
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

    async def _top_of_parts(self, asked: Top) -> Document:
        """The largest groups of a counter with several parts: see `tops`."""
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
            as_of, generations = utc_now(), self.guess(counter)
            is_large = guess.depth * counter.shards > MOST_COMMANDS
            replies = await (self._alone if is_large else self._trips).ask(counter.parts, queue)
            state = live(counter, states_of(replies))
            about = [plain(counter, each[2 * states.REPLIES :][:5]) for each in replies]
            now = [each[0] for each in about]
            self.learn(counter, now)
            settled = now == generations and reads_broken
            reads_broken = all(is_readable(counter, each[2]) for each in about)
            lists, likely, chosen = await in_thread(is_large, choose_of, asked.most, guess, about)
            if chosen is not None and settled and set(chosen) <= set(guess.chosen):
                names, skipped = guess.chosen, 2 * states.REPLIES + 5
                judged = added([judge_without_broken(names, each[skipped:]) for each in replies])
                counts, broken = (
                    dict(zip(names, judged, strict=True)),
                    {name for each in about for name in broken_of(each[3])},
                )
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
                guess = Guess(guess.depth, likely if can_add else [], chosen or likely[: asked.most])
                are_added = True
                self._remember(self._tops_of_parts, asked, guess)
        raise problems.groups_are_cold(counter, CHANGING)

    async def _listing(self, asked: Listing) -> Document:
        """This reads the names of the page first, and the sizes of these groups in the next round trip."""
        counter = asked.counter
        beginning = prefix_of(counter, asked.prefix)
        begin = b"[" + beginning if asked.after is None or asked.after < beginning else b"(" + asked.after
        end = b"(" + beginning + b"\xff"  # which is in no text
        names: list[bytes] = []
        reads_broken = False

        def queue(pipe: Pipeline, part: Counter) -> None:
            at = keys.of_counter(part.name)
            states.queue_state(pipe, part.name)
            pipe.hget(at.intake, "generation")
            pipe.zcard(at.names)
            pipe.zrangebylex(at.names, begin, end, start=0, num=asked.limit + 1)
            queue_broken(pipe, part, reads_broken)
            queue_groups(pipe, part, generations[part.shard], names, with_broken=False)

        for _ in range(ROUNDS):
            as_of, generations = utc_now(), self.guess(counter)
            replies = await self._trips.ask(counter.parts, queue)
            parts = states_of(replies)
            state = live(counter, parts)
            about = [plain(counter, each[states.REPLIES :][:5]) for each in replies]
            if any(each[1] != part.count for each, part in zip(about, parts, strict=True)):
                raise problems.groups_are_cold(
                    counter, "its names are not those of its groups; the keeper builds it again"
                )
            now = [each[0] for each in about]
            self.learn(counter, now)
            settled = now == generations and reads_broken
            reads_broken = all(is_readable(counter, each[3]) for each in about)
            # The first names of all are among the first ones of each part.
            found = sorted({name for each in about for name in each[2]})[: asked.limit + 1]
            if settled and found == names:
                judged = added([judge_without_broken(names, each[states.REPLIES + 5 :]) for each in replies])
                counts = dict(zip(names, judged, strict=True))
                broken = {name for each in about for name in broken_of(each[4])}
                counts |= dict.fromkeys((name for name in broken if is_within(name, begin, beginning)), "")
                page = sorted(counts)[: asked.limit]
                return {
                    **head(counter),
                    "groups": [describe_group(group_of(counter, name), counts[name]) for name in page],
                    "next_cursor": cursor_of(page[-1]) if len(counts) > len(page) else None,
                    **without_count(state),
                    "as_of": as_of,
                }
            names = found
        raise problems.groups_are_cold(counter, CHANGING)

    async def _window(self, asked: Window) -> Document:
        counter, parts = asked.counter, asked.counter.parts
        sizes = await self._trips.ask(parts, lambda pipe, part: pipe.hlen(keys.of_counter(part.name).days))
        many = max(plain(counter, each)[0] for each in sizes)
        if many > MOST_LAST_DAYS:
            why = f"its members were last seen on {many:,} different days, and at most {MOST_LAST_DAYS:,} are added up"
            raise problems.cold(f"the window of counter {counter.name!r}", why, counter=counter.name)
        as_of = utc_now()

        def queue(pipe: Pipeline, part: Counter) -> None:
            states.queue_state(pipe, part.name)
            pipe.hgetall(keys.of_counter(part.name).days)

        replies = await self._trips.ask(parts, queue)
        found = states_of(replies)
        state = live(counter, found)
        first = first_day(as_of, counter.time_zone, asked.days)
        begin, count = first.encode(), 0
        for each, part in zip(replies, found, strict=True):
            (by_day,) = plain(counter, each[states.REPLIES :])
            numbers = [(day, int(number) if number.isdigit() else -1) for day, number in pairs_of(by_day)]
            if any(number < 0 for _, number in numbers) or sum(number for _, number in numbers) != part.count:
                why = (
                    "its members by day do not add up to its members: something other than Rollcall has changed them; "
                )
                raise problems.cold(
                    f"the window of counter {counter.name!r}", why + "the keeper builds it", counter=counter.name
                )
            count += sum(number for day, number in numbers if day >= begin)
        return {
            "counter": counter.name,
            "window": f"{asked.days}d",
            "from": first,
            "time_zone": counter.time_zone,
            **good(state, count),
            "as_of": as_of,
        }


def first_day(moment: datetime, time_zone: str, days: int) -> str:
    """The first day of a window of this many days that ends today, in the time zone."""
    return str(moment.astimezone(ZoneInfo(time_zone)).date() - timedelta(days=days - 1))


def queue_groups(
    pipe: Pipeline, counter: Counter, generation: object, names: Sequence[bytes], *, with_broken: bool = True
) -> None:
    """Queue reads about these groups: their sizes in the directory, whether they are broken, and the sizes of their sets."""
    at = keys.of_counter(counter.name)
    if names:
        pipe.zmscore(at.members, list(names))  # type: ignore[arg-type]
        if with_broken:
            pipe.hmget(at.broken, list(names))
    for name in names:
        pipe.scard(at.group(generation, name))


def judge(many: int, replies: Sequence[Any]) -> list[int | str]:
    """The replies of `queue_groups`: the count of each group, or why it is cold."""
    if not many:
        return []
    sizes, tokens, *counts = replies
    return [
        judge_one(None if size is None else float(size), count, is_broken=token is not None)
        for size, token, count in zip(checked(sizes), checked(tokens), counts, strict=True)
    ]


def added(parts: Sequence[list[int | str]]) -> list[int | str]:
    """The count of each group, by its counts in all parts; a group is cold if it is cold in one of them."""
    found: list[int | str] = []
    for counts in zip(*parts, strict=True):
        numbers = [count for count in counts if isinstance(count, int)]
        found.append(
            sum(numbers) if len(numbers) == len(counts) else next(why for why in counts if isinstance(why, str))
        )
    return found


def judge_without_broken(names: Sequence[bytes], replies: Sequence[Any]) -> list[int | str]:
    """The same, for replies without the broken groups: the caller has read all of those."""
    return judge(len(names), [replies[0], [None] * len(names), *replies[1:]]) if names else []


def judge_one(size: float | None, count: object, *, is_broken: bool) -> int | str:
    """The count of one group, or why it is cold. A group that the directory does not name is empty, even if its set exists."""
    if is_broken:
        return "something other than Rollcall has changed its set; the keeper reads it again"
    if size is None:
        return 0
    if isinstance(count, int) and count == size:
        return count
    has = f"has {count} members" if isinstance(count, int) else f"cannot be read ({count})"
    return f"its set {has}, and {size:.0f} were recorded: something other than Rollcall has changed it; the keeper reads it again"


def checked(reply: Any) -> Any:
    """The reply, unless it is an error of Redis: that is raised. Keys of a wrong type made the counter cold before."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def queue_broken(pipe: Pipeline, counter: Counter, reads_broken: bool) -> None:
    """Queue the number of broken groups; and, if `reads_broken`, which ones."""
    at = keys.of_counter(counter.name)
    pipe.hlen(at.broken)
    pipe.hgetall(at.broken) if reads_broken else pipe.hlen(at.broken)


def is_readable(counter: Counter, many: int) -> bool:
    """True if the answer can name this many broken groups. Raises Problem if there are too many."""
    if many > MOST_BROKEN:
        raise problems.groups_are_cold(counter, TOO_MANY_BROKEN)
    return True


def states_of(replies: Sequence[Sequence[Any]]) -> list[State]:
    """The state of each part, which comes first. Raises Problem if Redis refuses to say it."""
    try:
        return [states.parse_state(each[: states.REPLIES]) for each in replies]
    except RedisError:
        raise problems.redis_is_unavailable() from None


def live(counter: Counter, parts: Sequence[State]) -> State:
    """The state of a counter with these parts. Raises Problem if it is cold."""
    state = states.combine(parts)
    if state.cold:
        raise problems.part_is_cold(counter, state)
    return state


def plain(counter: Counter, replies: Sequence[Any]) -> Sequence[Any]:
    """Replies about a live counter. Raises Problem if one of its keys has a wrong type."""
    for reply in replies:
        if isinstance(reply, Exception):
            state = State(count=0, unreadable=str(reply))
            raise problems.part_is_cold(counter, state)
    return replies


def count_of(replies: Sequence[Sequence[Any]]) -> int | None:
    """The count of a total; None if it is cold."""
    state = states.combine(states_of(replies))
    return None if state.cold else state.count


def pairs_of(reply: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The fields and values of a hash, or the names and scores of a sorted set, as Redis sends them."""
    return list(zip(reply[::2], reply[1::2], strict=True))


def broken_of(reply: Sequence[bytes] | int) -> dict[bytes, bytes]:
    """The broken groups in the second reply to `queue_broken`; none if they were not read."""
    return {} if isinstance(reply, int) else dict(pairs_of(reply))


def choose_of(
    most: int, guess: Guess, about: Sequence[Sequence[Any]]
) -> tuple[list[Largest], list[bytes], list[bytes] | None]:
    """The lists of the parts; the groups in them that may be among the largest, the likeliest first; and the largest groups: None
    if it takes longer lists to tell."""
    lists = [
        Largest({name: int(size) for name, size in pairs_of(each[1])}, len(each[1]) < 2 * guess.depth) for each in about
    ]
    sizes = zip(*(each[4] for each in about), strict=True)
    known = {name: sum(map(int, filter(None, some))) for name, some in zip(guess.known, sizes, strict=False)}
    return lists, candidates(lists, most), choose(lists, known, most)


async def in_thread(is_large: bool, function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns; if there is much to do, the event loop goes on meanwhile."""
    return await asyncio.to_thread(function, *arguments) if is_large else function(*arguments)


def key_of(counter: Counter) -> str:
    """A key that tells a counter from those that were declared otherwise."""
    return keys.of_counter(counter.parts[0].name).intake


def head(counter: Counter) -> Document:
    """The beginning of a document: the counter, and `by`."""
    return {"counter": counter.of, "by": counter.by_names}


def good(state: State, count: int) -> Document:
    """A count with its state and freshness."""
    return {**describe(state, Condition.FRESH), "count": count}


def without_count(state: State) -> Document:
    """The state and freshness of counts."""
    return {name: value for name, value in describe(state, Condition.FRESH).items() if name != "count"}


def describe_group(group: Group, count: int | str) -> Document:
    """One group of a list; a cold one has no count."""
    return {"group": group, "count": count if isinstance(count, int) else None}


def group_of(counter: Counter, name: bytes) -> Group:
    """The values that a name in the directory stands for."""
    return members.decode(name, len(counter.by)) or (name.decode(errors="replace"),)


def prefix_of(counter: Counter, prefix: str) -> bytes:
    """The beginning of the names of all groups whose (first) value begins with this."""
    return prefix.encode() if len(counter.by) == 1 else members.encode((prefix, ""))[: -len('",""]')]


def is_within(name: bytes, begin: bytes, beginning: bytes) -> bool:
    """Whether a broken group belongs to the rest of the listing. This begins at `begin`: "[" with that name, "(" after it."""
    return name.startswith(beginning) and (name > begin[1:] or b"[" + name == begin)


def zone_of(counter: Counter) -> str:
    """The time zone of the counter's days."""
    return next((term.zone for term in counter.by if term.zone), counter.time_zone)
