"""The formulas of docs/sizing.md: sizes and times of a table with R rows and M members.

What a row and a member cost depends on the machine and on the lengths of texts. So two small tables are measured first, and the
costs are solved from these. A set of Redis is the exception: its size follows from how its table of buckets grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Valkey 9: a bucket has this many bytes, and room for seven members. A table has 2^k buckets.
BUCKET_BYTES, BUCKET_MEMBERS = 64, 7


@dataclass(frozen=True, slots=True)
class Costs:
    """What a row and a member add: bytes, or seconds."""

    row: float
    member: float

    def of(self, rows: float, members: float) -> float:
        """Of a whole table."""
        return self.row * rows + self.member * members


def solve(first: tuple[int, int, float], second: tuple[int, int, float]) -> Costs:
    """The costs by two measured tables: rows, members, and a size or time. The tables have equally many rows.

    A difference that is smaller than the noise may come out below zero: then all is a cost of rows.
    """
    (rows, members, value), (_, others, other) = first, second
    member = max(0.0, (value - other) / (members - others))
    row = (value - member * members) / rows
    return Costs(row, member) if row >= 0 else Costs(0.0, value / members)


def bucket_bytes(members: int) -> float:
    """What the buckets of one set of Redis take.

    A set that is full gets twice as many buckets, and each new member moves one old bucket: until that is done there are both.
    """
    buckets = 2 ** math.ceil(math.log2(max(members, BUCKET_MEMBERS) / BUCKET_MEMBERS))
    is_moving = members <= (BUCKET_MEMBERS + 1) * buckets // 2
    return BUCKET_BYTES * buckets * (1.5 if is_moving else 1.0)


def redis_bytes(members: int, entry_bytes: float, shards: int = 1) -> float:
    """A counter in Redis. `entry_bytes`: what one member takes, without the buckets."""
    return members * entry_bytes + shards * bucket_bytes(members // shards)
