"""Reads groups and windows from Redis. The MULTI that reads a number also reads what proves it; otherwise there is no answer.

A group has a size of its own in the directory. If its set has another size, or the keeper is reading the group again
(`broken`), only this group is cold. The keys of the sets contain a generation. A remembered generation is a guess, so each
MULTI reads it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from redis.asyncio.client import Pipeline

from query_service import problems
from query_service.answers import Condition, describe
from query_service.questions import Group, Listing, OneGroup, Periods, Top, Window, cursor_of
from query_service.trips import Trips
from shared_models.declarations import Counter
from shared_models.protocol import keys, members, states
from shared_models.protocol.states import State

Document: TypeAlias = dict[str, Any]

# How often a question is tried if the groups change between two round trips.
ROUNDS = 5
# Groups that the keeper is reading again. If there are more, query treats the whole counter as cold.
MOST_BROKEN = 1_000
# Different days on which members were last seen: 109 years. Reading them takes Redis some milliseconds.
MOST_LAST_DAYS = 40_000
# How many tops a worker remembers, to ask for the sizes of their names in the first round trip.
MOST_GUESSES = 100
CHANGING = "its groups changed again and again while they were read"
TOO_MANY_BROKEN = (
    f"more than {MOST_BROKEN:,} of its groups were changed by something else, and are read again by the keeper"
)


def utc_now() -> datetime:
    """The moment just before a read is sent: no count is claimed to be fresher than it is."""
    return datetime.now(UTC)


class GroupReader:
    """Reads for the questions of one worker."""

    def __init__(self, trips: Trips) -> None:
        self._trips = trips
        # The generation of each counter as it was last read, by the key of its intake.
        self._generations: dict[str, object] = {}
        # For each of the latest tops: the names that may be in it, and the size at its end. These are guesses, too.
        self._tops: dict[Top, tuple[dict[bytes, None], float | None]] = {}

    async def read(self, question: OneGroup | Top | Periods | Listing | Window) -> Document:
        """The answer. Raises Problem."""
        match question:
            case OneGroup():
                return await self._one(question)
            case Top():
                return await self._top(question)
            case Periods():
                return await self._periods(question)
            case Listing():
                return await self._listing(question)
            case Window():
                return await self._window(question)

    def guess(self, counter: Counter) -> object:
        """The generation that the sets of a counter had when it was last read."""
        return self._generations.get(keys.of_counter(counter.name).intake)

    def learn(self, counter: Counter, generation: object) -> None:
        """Note the generation that was read."""
        self._generations[keys.of_counter(counter.name).intake] = generation

    async def sizes(self, counter: Counter, groups: Sequence[Group]) -> tuple[State, list[int | str], datetime]:
        """The count of each group, or why it is cold. Raises Problem if the counter is cold."""
        names = [members.encode(group) for group in groups]
        at = keys.of_counter(counter.name)

        def queue(pipe: Pipeline) -> None:
            states.queue_state(pipe, counter.name)
            pipe.hget(at.intake, "generation")
            queue_groups(pipe, counter, generation, names)

        for _ in range(ROUNDS):
            as_of, generation = utc_now(), self.guess(counter)
            replies = await self._trips.ask(queue)
            state = live(counter, replies)
            (now,) = plain(counter, replies[states.REPLIES : states.REPLIES + 1])
            self.learn(counter, now)
            if now == generation:
                return state, judge(len(names), replies[states.REPLIES + 1 :]), as_of
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
        """Read backwards, the directory gives the largest groups first, and groups of one size in the reverse order of their
        names. So this reads the names of the size at the end once more, from the first one."""
        counter, at = asked.counter, keys.of_counter(asked.counter.name)
        known, last = self._tops.get(asked, ({}, None))
        reads_broken = asked in self._tops

        def queue(pipe: Pipeline) -> None:
            states.queue_state(pipe, counter.name)
            states.queue_state(pipe, counter.of)
            pipe.hmget(at.intake, ["generation", "elements"])
            pipe.zrevrange(at.members, 0, asked.most - 1, withscores=True)
            pipe.zrangebyscore(at.members, last or 0, last or 0, start=0, num=asked.most if last else 0)
            queue_broken(pipe, counter, reads_broken)
            queue_groups(pipe, counter, generation, names, with_broken=False)

        for _ in range(ROUNDS):
            as_of, generation, names = utc_now(), self.guess(counter), list(known)
            replies = await self._trips.ask(queue)
            state, of_total = live(counter, replies), replies[states.REPLIES : 2 * states.REPLIES]
            (now, sum_of_groups), largest, ties, many_broken, broken = plain(
                counter, replies[2 * states.REPLIES : 2 * states.REPLIES + 5]
            )
            self.learn(counter, now)
            settled = now == generation and reads_broken
            reads_broken = is_readable(counter, many_broken)
            before, last = last, largest[-1][1] if largest else None
            above = sorted((-size, name) for name, size in largest if size != last)
            chosen = [name for _, name in above] + (ties[: asked.most - len(above)] if last == before else [])
            if settled and last == before and all(name in known for name in chosen):
                counts = dict(zip(names, judge_without_broken(names, replies[2 * states.REPLIES + 5 :]), strict=True))
                told = {name: count for name in chosen if name not in broken and isinstance(count := counts[name], int)}
                cold = sorted({*broken, *chosen} - told.keys())
                is_whole = not cold and (sum_of_groups or b"").isdigit()
                return {
                    **head(counter),
                    "top": [describe_group(group_of(counter, name), count) for name, count in told.items()],
                    "distinct": count_of(of_total),
                    "sum_of_groups": int(sum_of_groups) if is_whole else None,
                    "groups": state.count,
                    "cold_groups": [group_of(counter, name) for name in cold],
                    **without_count(state),
                    "as_of": as_of,
                }
            known = dict.fromkeys([*(name for name, _ in largest), *ties])
            self._guess_top(asked, known, last)
        raise problems.groups_are_cold(counter, CHANGING)

    def _guess_top(self, asked: Top, known: dict[bytes, None], last: float | None) -> None:
        """Remember what the next request for this top may expect."""
        self._tops[asked] = known, last
        if len(self._tops) > MOST_GUESSES:
            del self._tops[next(iter(self._tops))]

    async def _listing(self, asked: Listing) -> Document:
        """This reads the names of the page first, and the sizes of these groups in the next round trip."""
        counter, at = asked.counter, keys.of_counter(asked.counter.name)
        beginning = prefix_of(counter, asked.prefix)
        begin = b"[" + beginning if asked.after is None or asked.after < beginning else b"(" + asked.after
        end = b"(" + beginning + b"\xff"  # which is in no text
        names: list[bytes] = []
        reads_broken = False

        def queue(pipe: Pipeline) -> None:
            states.queue_state(pipe, counter.name)
            pipe.hget(at.intake, "generation")
            pipe.zcard(at.names)
            pipe.zrangebylex(at.names, begin, end, start=0, num=asked.limit + 1)
            queue_broken(pipe, counter, reads_broken)
            queue_groups(pipe, counter, generation, names, with_broken=False)

        for _ in range(ROUNDS):
            as_of, generation = utc_now(), self.guess(counter)
            replies = await self._trips.ask(queue)
            state = live(counter, replies)
            now, many_names, found, many_broken, broken = plain(counter, replies[states.REPLIES : states.REPLIES + 5])
            if many_names != state.count:
                raise problems.groups_are_cold(
                    counter, "its names are not those of its groups; the keeper builds it again"
                )
            self.learn(counter, now)
            settled = now == generation and reads_broken
            reads_broken = is_readable(counter, many_broken)
            if settled and found == names:
                counts = dict(zip(names, judge_without_broken(names, replies[states.REPLIES + 5 :]), strict=True))
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
        counter, at = asked.counter, keys.of_counter(asked.counter.name)
        (many,) = plain(counter, await self._trips.ask(lambda pipe: pipe.hlen(at.days)))
        if many > MOST_LAST_DAYS:
            why = f"its members were last seen on {many:,} different days, and at most {MOST_LAST_DAYS:,} are added up"
            raise problems.cold(f"the window of counter {counter.name!r}", why, counter=counter.name)
        as_of = utc_now()

        def queue(pipe: Pipeline) -> None:
            states.queue_state(pipe, counter.name)
            pipe.hgetall(at.days)

        replies = await self._trips.ask(queue)
        state = live(counter, replies)
        (by_day,) = plain(counter, replies[states.REPLIES :])
        numbers = [int(number) if number.isdigit() else -1 for number in by_day.values()]
        if min(numbers, default=0) < 0 or sum(numbers) != state.count:
            why = "its members by day do not add up to its members: something other than Rollcall has changed them; "
            raise problems.cold(
                f"the window of counter {counter.name!r}", why + "the keeper builds it", counter=counter.name
            )
        first = first_day(as_of, counter.time_zone, asked.days)
        begin = first.encode()
        count = sum(number for day, number in zip(by_day, numbers, strict=True) if day >= begin)
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
        judge_one(size, count, is_broken=token is not None)
        for size, token, count in zip(checked(sizes), checked(tokens), counts, strict=True)
    ]


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


def live(counter: Counter, replies: Sequence[Any]) -> State:
    """The state, which comes first. Raises Problem if the counter is cold."""
    state = states.parse_state(replies[: states.REPLIES])
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


def count_of(replies: Sequence[Any]) -> int | None:
    """The count of a total; None if it is cold."""
    state = states.parse_state(replies)
    return None if state.cold else state.count


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
