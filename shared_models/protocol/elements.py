"""Encode and decode elements: a derived counter's storage holds them, and they are made of the values of a row.

    set         the member                               "ann"
    groups      the group, a zero byte, the member       "NY\\0ann"
    last seen   the day, a zero byte, the member         "2026-11-27\\0ann"

Different values make different elements: Postgres stores no U+0000, so no group and no member contains one. The values are in
the order of `Counter.terms`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from zlib import crc32

from shared_models.declarations import Counter, Storage
from shared_models.protocol import members
from shared_models.protocol.members import Value, Values

SEPARATOR = b"\0"
DAY = re.compile(r"\d{4}-\d\d-\d\d")
# Days have ten characters, and sort in the order of time. Postgres also has earlier and later days, and two infinite ones.
FIRST_DAY, LAST_DAY = "0001-01-01", "9999-12-31"


def encode_all(counter: Counter, rows: Iterable[Values]) -> list[bytes]:
    """The elements of these rows' values."""
    fields = len(counter.fields)
    if counter.storage is Storage.SET:
        return members.encode_all(rows, fields)
    if len(counter.terms) == 2 and fields == 1:  # the usual case, in half the time
        if counter.storage is Storage.LAST_SEEN:
            return [f"{day_of(day)}\0{member}".encode() for member, day in rows]
        return [f"{group}\0{member}".encode() for group, member in rows]
    rows = list(rows)
    if counter.storage is Storage.LAST_SEEN:
        heads = [day_of(row[-1]).encode() for row in rows]
        tails = members.encode_all([row[:-1] for row in rows], fields)
    else:
        width, places = len(counter.by), member_places(counter)
        heads = members.encode_all([row[:width] for row in rows], width)
        tails = members.encode_all([tuple(row[place] for place in places) for row in rows], fields)
    return [head + SEPARATOR + tail for head, tail in zip(heads, tails, strict=True)]


def decode(counter: Counter, element: bytes) -> tuple[str, ...] | None:
    """The values of this element, as texts; None if no row could have made it."""
    fields = len(counter.fields)
    if counter.storage is Storage.SET:
        return members.decode(element, fields)
    head, separator, tail = element.partition(SEPARATOR)
    member = members.decode(tail, fields)
    if not separator or member is None:
        return None
    if counter.storage is Storage.LAST_SEEN:
        day = head.decode(errors="replace")
        return (*member, day) if DAY.fullmatch(day) else None
    group = members.decode(head, len(counter.by))
    if group is None:
        return None
    places = member_places(counter)
    values = group + tuple(value for value, place in zip(member, places, strict=True) if place >= len(group))
    return values if tuple(values[place] for place in places) == member else None


def member_places(counter: Counter) -> list[int]:
    """The index of each field of the member among the values of a counter by group. A field that is also in the group is there
    once."""
    names = [each.name for each in counter.terms]
    return [names.index(field) for field in counter.fields]


def split(element: bytes) -> tuple[bytes, bytes]:
    """The group, or the day, and the member."""
    head, _, member = element.partition(SEPARATOR)
    return head, member


def shard_of(counter: Counter, element: bytes) -> int:
    """The number of the part that an element belongs to: by a hash of the member. So all that belongs to one member is in parts of
    the same number."""
    if counter.shards == 1:
        return 0
    return shard_of_member(counter, element if counter.storage is Storage.SET else element.partition(SEPARATOR)[2])


def shard_of_member(counter: Counter, member: bytes) -> int:
    """The same, by the member."""
    return crc32(member) % counter.shards


def by_part(counter: Counter, found: list[bytes]) -> list[tuple[Counter, list[bytes]]]:
    """The elements of a derived counter, by its parts: those that have some."""
    if counter.shards == 1:
        return [(counter, found)]
    lists: list[list[bytes]] = [[] for _ in counter.parts]
    for each in found:
        lists[shard_of(counter, each)].append(each)
    return [(part, some) for part, some in zip(counter.parts, lists, strict=True) if some]


@lru_cache(maxsize=1_000)
def day_of(text: Value) -> str:
    """A date as Postgres writes it, in ten characters."""
    day = str(text)
    if DAY.fullmatch(day):
        return day
    return FIRST_DAY if day.startswith("-") or day.endswith("BC") else LAST_DAY
