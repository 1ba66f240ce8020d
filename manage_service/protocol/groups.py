"""Watch what a counter has in addition to its elements: the sizes of its groups' sets, or its numbers of members by day.

If the set of a group has another size than the directory says, something else has changed the set. The keeper drops the
group, in one atomic step, and reads it again from the table. Meanwhile only this group is not live. Why the order is the
proof that the group is correct afterwards:

1. After the drop, every record goes into the new set.
2. Every member of the old set had a row that was acknowledged, or that a pass relied on. The fence is read after the drop,
   and the group's range of the index is read behind the fence (see `sweep`). A member that has left meanwhile does not come
   back: a record with a horizon below the cursor adds nothing.
3. The group is live again, unless it was dropped once more, somebody has built the counter or seen another table, or Redis has
   begun another history (`catch_up`).

If a directory and its names, or the members and their numbers by day, do not fit together, the counter becomes cold, and
the keeper builds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from secrets import token_hex
from typing import cast

import structlog
from redis import Redis
from redis.exceptions import ResponseError

from manage_service.protocol.canonical import IS_CANONICAL
from manage_service.protocol.freshness import CounterWasLost
from manage_service.protocol.progress import Progress, Steps
from manage_service.protocol.sweep import fence, with_new_watermark
from manage_service.replica.snapshots import Replica
from shared_models.declarations import Counter, Storage
from shared_models.protocol import elements, keys, members, states, steps, storages
from shared_models.protocol.members import Values
from shared_models.triggers import literal

log = structlog.get_logger()

# How many groups one piece has: half a millisecond of Redis' time.
GROUPS_AT_ONCE = 1_000


def watch(counter: Counter, redis: Redis) -> Iterator[dict[bytes, str]]:
    """Look at a counter again and again, a piece each time; yields the groups that have to be read again, with their tokens.

    Raises redis.RedisError.
    """
    while True:
        yield from look_once(counter, redis)


def look_once(counter: Counter, redis: Redis) -> Iterator[dict[bytes, str]]:
    """The same, until all of the counter has been looked at."""
    at = keys.of_counter(counter.name)
    if counter.storage is Storage.SET:
        yield {}
    elif not is_whole(counter, redis):
        state = states.read_state(redis, counter.name)
        if not state.lost and not is_whole(counter, redis) and steps.make_cold(redis, counter.name, state):
            log.error("counter.not_whole", counter=counter.name)
        yield {}
    elif counter.storage is Storage.LAST_SEEN:
        yield {}
    else:
        looked_at, changed = 0, dict[bytes, str]()
        for sizes in storages.scan_groups(redis, at):
            changed |= find_changed(counter, list(sizes), redis)
            looked_at += len(sizes)
            if looked_at >= GROUPS_AT_ONCE:
                drop(counter, changed, redis)
                looked_at, changed = 0, {}
                yield broken_groups(counter, redis)
        drop(counter, changed, redis)
        yield broken_groups(counter, redis)


def broken_groups(counter: Counter, redis: Redis) -> dict[bytes, str]:
    """The groups that were dropped and have not been read again, with their tokens."""
    found = cast("dict[bytes, bytes]", redis.hgetall(keys.of_counter(counter.name).broken))
    return {group: token.decode() for group, token in found.items()}


def is_whole(counter: Counter, redis: Redis) -> bool:
    """Whether the directory and the names have the same number of groups, or the days together as many members as there are."""
    at = keys.of_counter(counter.name)
    pipe = redis.pipeline(transaction=True)
    if counter.storage is Storage.GROUPS:
        pipe.zcard(at.members)
        pipe.zcard(at.names)
    else:
        pipe.hlen(at.members)
        pipe.hvals(at.days)
    size, beside = pipe.execute(raise_on_error=False)
    if any(isinstance(each, ResponseError) and str(each).startswith("WRONGTYPE") for each in (size, beside)):
        return False
    if isinstance(error := size if isinstance(size, Exception) else beside, Exception):
        raise error
    if counter.storage is Storage.GROUPS:
        return bool(size == beside)
    return all(number.isdigit() for number in beside) and size == sum(map(int, beside))


def find_changed(counter: Counter, groups: list[bytes], redis: Redis) -> dict[bytes, str]:
    """Those of these groups whose sets are not as large as their size, each with both in words."""
    at = keys.of_counter(counter.name)
    if not groups:
        return {}
    generation = redis.hget(at.intake, "generation")
    pipe = redis.pipeline(transaction=True)
    pipe.zmscore(at.members, groups)  # type: ignore[arg-type]
    for group in groups:
        pipe.scard(at.group(generation, group))
    sizes, *counts = pipe.execute(raise_on_error=False)
    if isinstance(sizes, Exception):
        raise sizes
    return {
        group: f"{count} of {size:.0f} members"
        for group, size, count in zip(groups, sizes, counts, strict=True)
        if size is not None and size != count
    }


def drop(counter: Counter, changed: Mapping[bytes, str], redis: Redis) -> None:
    """Drop these groups, if they are still changed."""
    for group in steps.drop_groups(redis, counter.name, list(changed), token_hex(8)):
        log.error("group.changed", counter=counter.name, has=changed[group])


def mend(counter: Counter, group: bytes, token: str, replica: Replica, redis: Redis) -> Steps:
    """Read a dropped group again. Raises psycopg2.Error, redis.RedisError, steps.TooManyGroups (other groups have taken its room).

    Ends early, without an error, if the reading has to begin again.
    """
    state = states.read_state(redis, counter.name)
    if state.lost or redis.hmget(keys.of_counter(counter.name).broken, [group]) != [token.encode()]:
        return
    values = members.decode(group, len(counter.by))
    if values is None or not all(IS_CANONICAL[term.type](text) for term, text in zip(counter.by, values, strict=True)):
        # No row has it, and Postgres cannot be asked for it.
        steps.mend_group(redis, counter.name, group, token, state)
        return
    alone, position, read = within(counter, values), None, 0
    # Without the counter's condition: an error of that says nothing about the group.
    anybody = within(replace(counter, where=""), values)
    while True:
        chunk: list[Values] = []
        try:
            with replica.snapshot(counter) as snapshot:
                behind = fence(snapshot, state)
                if behind is None:
                    if snapshot.fingerprint != state.fingerprint:
                        return
                    # If an enum does not have this label, no row has.
                    if snapshot.is_possible(anybody):
                        chunk = snapshot.read_members(alone, position, jumping=False)
        except CounterWasLost:
            return
        if behind is not None:
            yield Progress("build", read, waiting=behind)
            state = with_new_watermark(counter, state, redis)
            continue
        if not chunk:
            if steps.mend_group(redis, counter.name, group, token, state):
                log.info("group.mended", counter=counter.name, members=read)
            return
        try:
            encoded = elements.encode_all(counter, chunk)
            found = [each for each in encoded if elements.shard_of(counter, each) == counter.shard]
            steps.record(redis, {counter.name: found}, source=snapshot.source, horizon=snapshot.horizon)
        except steps.TooLate:
            yield Progress("build", read, waiting="catch-up has passed this snapshot")
            continue
        position, read = chunk[-1], read + len(found)
        yield Progress("build", read)


def within(counter: Counter, group: tuple[str, ...]) -> Counter:
    """A counter of the rows of one group, only to read them: it is not counted."""
    same = [f"{term.sql()} = {literal(value)}" for term, value in zip(counter.by, group, strict=True)]
    return replace(counter, where=" AND ".join([f"({counter.where})", *same] if counter.where else same))


def forget_generations(counter: Counter, redis: Redis) -> None:
    """Remove the sets of groups whose directory was lost: nothing counts them, and nothing else removes them.

    The generation is read after the keys. If another keeper has begun one meanwhile, its sets are either not among the keys, or
    of the generation that is read.
    """
    if counter.storage is not Storage.GROUPS:
        return
    at = keys.of_counter(counter.name)
    pattern = re.sub(r"([\[\]*?\\])", r"\\\1", f"{at.members}:") + "*"
    found = list(redis.scan_iter(pattern, count=1_000))
    current = at.group(redis.hget(at.intake, "generation"), b"")
    for some in steps.chunks([key for key in found if not key.startswith(current)]):
        redis.unlink(*some)
