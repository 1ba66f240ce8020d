"""Reads groups, lists of groups and windows from Redis: see `directories`, and `tops` for the largest groups."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from redis.asyncio.client import Pipeline

from query_service import problems
from query_service.directories import (
    CHANGING,
    ROUNDS,
    Document,
    Generations,
    added,
    broken_of,
    describe_group,
    good,
    group_of,
    head,
    is_readable,
    judge,
    judge_without_broken,
    live,
    pairs_of,
    plain,
    queue_broken,
    queue_groups,
    states_of,
    utc_now,
    without_count,
)
from query_service.questions import Group, Listing, OneGroup, Periods, Top, Window, cursor_of
from query_service.tops import TopReader
from query_service.trips import Trips
from shared_models.declarations import Counter
from shared_models.protocol import keys, members, states
from shared_models.protocol.states import State

# Different days on which members were last seen: 109 years. Reading them takes Redis some milliseconds.
MOST_LAST_DAYS = 40_000


class GroupReader:
    """Reads for the questions of one worker."""

    def __init__(self, trips: Trips, tops: TopReader, generations: Generations) -> None:
        self._trips, self._tops, self._generations = trips, tops, generations

    async def read(self, question: OneGroup | Top | Periods | Listing | Window) -> Document:
        """The answer. Raises Problem."""
        match question:
            case OneGroup():
                return await self._one(question)
            case Top():
                return await self._tops.read(question)
            case Periods():
                return await self._periods(question)
            case Listing():
                return await self._listing(question)
            case Window():
                return await self._window(question)

    async def sizes(self, counter: Counter, groups: Sequence[Group]) -> tuple[State, list[int | str], datetime]:
        """The count of each group, or why it is cold. Raises Problem if the counter is cold."""
        names = [members.encode(group) for group in groups]

        def queue(pipe: Pipeline, part: Counter) -> None:
            states.queue_state(pipe, part.name)
            pipe.hget(keys.of_counter(part.name).intake, "generation")
            queue_groups(pipe, part, generations[part.shard], names)

        for _ in range(ROUNDS):
            as_of, generations = utc_now(), self._generations.guess(counter)
            replies = await self._trips.ask(counter.parts, queue)
            state = live(counter, states_of(replies))
            now = [plain(counter, each[states.REPLIES :][:1])[0] for each in replies]
            self._generations.learn(counter, now)
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
            as_of, generations = utc_now(), self._generations.guess(counter)
            replies = await self._trips.ask(counter.parts, queue)
            parts = states_of(replies)
            state = live(counter, parts)
            about = [plain(counter, each[states.REPLIES :][:5]) for each in replies]
            if any(each[1] != part.count for each, part in zip(about, parts, strict=True)):
                raise problems.groups_are_cold(
                    counter, "its names are not those of its groups; the keeper builds it again"
                )
            now = [each[0] for each in about]
            self._generations.learn(counter, now)
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


def prefix_of(counter: Counter, prefix: str) -> bytes:
    """The beginning of the names of all groups whose (first) value begins with this."""
    return prefix.encode() if len(counter.by) == 1 else members.encode((prefix, ""))[: -len('",""]')]


def is_within(name: bytes, begin: bytes, beginning: bytes) -> bool:
    """Whether a broken group belongs to the rest of the listing. This begins at `begin`: "[" with that name, "(" after it."""
    return name.startswith(beginning) and (name > begin[1:] or b"[" + name == begin)


def zone_of(counter: Counter) -> str:
    """The time zone of the counter's days."""
    return next((term.zone for term in counter.by if term.zone), counter.time_zone)
