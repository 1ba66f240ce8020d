"""What holds a derived counter's elements in Redis. What the scripts do with each stands in `lua/storage_*.lua`, and the rest here.

The protocol is the same for all of them. What it says of an element is: put it in, take it out, is it there, how many entries
are there, give me all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import groupby
from typing import Protocol, cast

from redis import Redis

from shared_models.declarations import Storage
from shared_models.protocol import elements, members
from shared_models.protocol.keys import CounterKeys

# The most groups that a counter may have. One that has more is refused: it would fill Redis, and nobody reads so many.
MAX_GROUPS = 100_000
# How many entries one command of a scan looks at: the others wait for 0.1 to 0.2 ms.
SCAN_COUNT = 250


class Found(Enum):
    """What a storage has of an element."""

    ABSENT = "absent"
    THERE = "there"
    # Last seen: the member is there with a later day.
    LATER = "later"


class Pipe(Protocol):
    """A pipeline of redis-py, sync or async."""

    def scard(self, name: str, /) -> object: ...
    def zcard(self, name: str, /) -> object: ...
    def hlen(self, name: str, /) -> object: ...


def queue_count(pipe: Pipe, at: CounterKeys) -> None:
    """Queue how many entries there are: members, or groups."""
    command = {Storage.SET: pipe.scard, Storage.GROUPS: pipe.zcard, Storage.LAST_SEEN: pipe.hlen}[at.storage]
    command(at.members)


def type_of(storage: Storage) -> str:
    """The type of the key `members`."""
    return {Storage.SET: "set", Storage.GROUPS: "zset", Storage.LAST_SEEN: "hash"}[storage]


def mark_of(storage: Storage, element: bytes) -> bytes:
    """What a mark on an element is called."""
    return elements.split(element)[1] if storage is Storage.LAST_SEEN else element


def arguments(storage: Storage, found: Sequence[bytes]) -> list[bytes | int]:
    """Elements as scripts take them that put them in: not to cut each of them in Redis, group by group (day by day), and for
    each it, how many members follow, and they. Elements of a set are members, and stay as they are."""
    if storage is Storage.SET:
        return list(found)
    handed: list[bytes | int] = []
    for head, some in by_head(found).items():
        handed += (head, len(some), *some)
    return handed


def by_head(found: Sequence[bytes]) -> Mapping[bytes, list[bytes]]:
    """The members of these elements, by their group or day."""
    members_of = defaultdict[bytes, list[bytes]](list)
    for each in found:
        head, _, member = each.partition(elements.SEPARATOR)
        members_of[head].append(member)
    return members_of


def find(client: Redis, at: CounterKeys, asked: Sequence[bytes]) -> list[Found]:
    """What there is of each of these elements, a chunk at most. Raises redis.RedisError."""
    if at.storage is Storage.SET:
        return [_there(each) for each in client.smismember(at.members, list(asked))]
    heads_and_members = [elements.split(each) for each in asked]
    if at.storage is Storage.LAST_SEEN:
        days = cast("list[bytes | None]", client.hmget(at.members, [member for _, member in heads_and_members]))
        return [_compare(have, day) for have, (day, _) in zip(days, heads_and_members, strict=True)]
    generation = client.hget(at.intake, "generation")
    pipe = client.pipeline(transaction=False)
    # In the order of the index, so that those of one group follow each other.
    for group, some in groupby(heads_and_members, key=lambda pair: pair[0]):
        pipe.smismember(at.group(generation, group), [member for _, member in some])
    return [_there(each) for present in pipe.execute() for each in present]


def _there(present: object) -> Found:
    return Found.THERE if present else Found.ABSENT


def _compare(have: bytes | None, day: bytes) -> Found:
    if have is None or have < day:
        return Found.ABSENT
    return Found.THERE if have == day else Found.LATER


def count_broken(client: Redis, counters: Sequence[CounterKeys]) -> list[int]:
    """Of each counter how many groups are being read again, in one round trip. Raises redis.RedisError."""
    pipe = client.pipeline(transaction=False)
    for at in counters:
        pipe.hlen(at.broken)
    return [0 if isinstance(each, Exception) else each for each in pipe.execute(raise_on_error=False)]


def scan(client: Redis, at: CounterKeys, step: int) -> Iterator[list[bytes]]:
    """The elements, in runs of at most about `step`.

    What is there for the whole time is given at least once, which is all that is needed: an element that comes or goes
    meanwhile was recorded, or is gone.
    """
    pending: list[bytes] = []
    for some in _pieces(client, at):
        pending += some
        if len(pending) >= step:
            yield pending
            pending = []
    if pending:
        yield pending


def _pieces(client: Redis, at: CounterKeys) -> Iterator[list[bytes]]:
    if at.storage is Storage.SET:
        yield from scan_set(client, at.members)
    elif at.storage is Storage.LAST_SEEN:
        for days in _scan_hash(client, at.members):
            yield [day + elements.SEPARATOR + member for member, day in days.items()]
    else:
        generation = client.hget(at.intake, "generation")
        for sizes in scan_groups(client, at):
            for group in sizes:
                for some in scan_set(client, at.group(generation, group)):
                    yield [group + elements.SEPARATOR + member for member in some]


def scan_set(client: Redis, key: str | bytes) -> Iterator[list[bytes]]:
    """The members of a set, piece by piece."""
    position = 0
    while True:
        position, found = client.sscan(key, position, count=SCAN_COUNT)
        yield cast("list[bytes]", found)
        if position == 0:
            return


def scan_groups(client: Redis, at: CounterKeys) -> Iterator[dict[bytes, int]]:
    """The groups of a directory with their sizes, piece by piece."""
    position = 0
    while True:
        position, found = client.zscan(at.members, position, count=SCAN_COUNT)
        yield {group: int(size) for group, size in cast("list[tuple[bytes, float]]", found)}
        if position == 0:
            return


def _scan_hash(client: Redis, key: str) -> Iterator[dict[bytes, bytes]]:
    position = 0
    while True:
        position, found = client.hscan(key, position, count=SCAN_COUNT)
        yield cast("dict[bytes, bytes]", found)
        if position == 0:
            return


def text_of_group(values: Sequence[str]) -> bytes:
    """A group as the directory has it."""
    return members.encode(values)
