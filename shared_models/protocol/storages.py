"""The storages: what holds a derived counter's elements in Redis. The scripts' part is in `lua/storage_*.lua`, the rest is here.

The protocol is the same for all of them. It adds and removes elements, asks whether they are there, counts the entries, and
scans all elements.
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

# The most groups that a counter may have. A counter with more is refused: it would fill Redis, and nobody reads so many groups.
MAX_GROUPS = 100_000
# How many entries one command of a scan looks at. Other clients wait 0.1 to 0.2 ms for it.
SCAN_COUNT = 250


class Found(Enum):
    """Whether a storage has an element."""

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
    """The field under which a hash of marks has the mark of an element."""
    return elements.split(element)[1] if storage is Storage.LAST_SEEN else element


def arguments(storage: Storage, found: Sequence[bytes]) -> list[bytes | int]:
    """Elements as the scripts that add them take them: for each group (or day) its name, the number of its members, and these
    members. So Redis need not cut each element. Elements of a set are members, and stay as they are."""
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
    """Whether each of these elements is there; a chunk at most. Raises redis.RedisError."""
    if at.storage is Storage.SET:
        return [_there(each) for each in client.smismember(at.members, list(asked))]
    heads_and_members = [elements.split(each) for each in asked]
    if at.storage is Storage.LAST_SEEN:
        days = cast("list[bytes | None]", client.hmget(at.members, [member for _, member in heads_and_members]))
        return [_compare(have, day) for have, (day, _) in zip(days, heads_and_members, strict=True)]
    generation = client.hget(at.intake, "generation")
    pipe = client.pipeline(transaction=False)
    # The elements are in the order of the index, so the members of one group follow each other.
    for group, some in groupby(heads_and_members, key=lambda pair: pair[0]):
        pipe.smismember(at.group(generation, group), [member for _, member in some])
    return [_there(each) for present in pipe.execute() for each in present]


def _there(present: object) -> Found:
    return Found.THERE if present else Found.ABSENT


def _compare(have: bytes | None, day: bytes) -> Found:
    if have is None or have < day:
        return Found.ABSENT
    return Found.THERE if have == day else Found.LATER


def scan(client: Redis, at: CounterKeys, step: int) -> Iterator[list[bytes]]:
    """The elements, in runs of at most about `step`.

    It gives every element that is there for the whole time at least once. No caller needs more: an element that comes or goes
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
            # Somebody may have written a zero byte into a day.
            yield [elements.split(day)[0] + elements.SEPARATOR + member for member, day in days.items()]
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


def scan_groups(client: Redis, at: CounterKeys) -> Iterator[dict[bytes, float]]:
    """The groups of a directory with their sizes, piece by piece. A size that somebody has written may be no whole number."""
    position = 0
    while True:
        position, found = client.zscan(at.members, position, count=SCAN_COUNT)
        yield dict(cast("list[tuple[bytes, float]]", found))
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
