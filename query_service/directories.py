"""What is read about the groups of a counter, and how it is judged. The MULTI that reads a number also reads what proves it.

A group has a size of its own in the directory. If its set has another size, or the keeper is reading the group again
(`broken`), only this group is cold. The keys of the sets contain a generation. A remembered generation is a guess, so each
MULTI reads it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from query_service import problems
from query_service.answers import Condition, describe
from query_service.questions import Group
from shared_models.declarations import Counter
from shared_models.protocol import keys, members, states
from shared_models.protocol.states import State

Document: TypeAlias = dict[str, Any]

# How often a question is tried if the groups change between two round trips.
ROUNDS = 5
# Groups that the keeper is reading again. If there are more, query treats the whole counter as cold.
MOST_BROKEN = 1_000
CHANGING = "its groups changed again and again while they were read"
TOO_MANY_BROKEN = (
    f"more than {MOST_BROKEN:,} of its groups were changed by something else, and are read again by the keeper"
)


class Generations:
    """The generations of the sets of groups, as they were last read: guesses for the next read."""

    def __init__(self) -> None:
        # One for each part of a counter, by the key of the first part's intake.
        self._known: dict[str, list[object]] = {}

    def guess(self, counter: Counter) -> list[object]:
        """The generations of a counter, one for each part."""
        return self._known.get(key_of(counter), [None] * counter.shards)

    def learn(self, counter: Counter, generations: list[object]) -> None:
        """Note the generations that were read."""
        self._known[key_of(counter)] = generations


def utc_now() -> datetime:
    """The moment just before a read is sent: no count is claimed to be fresher than it is."""
    return datetime.now(UTC)


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
