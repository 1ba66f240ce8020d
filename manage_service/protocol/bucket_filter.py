"""A bucket filter: which members of a set are worth asking the table about, in memory that does not grow with the counter.

Members fall into BUCKETS buckets by their hash. What the table has is put in, what the set has is taken out. Assume
that every member that was put in is also in the set. Then a bucket out of which no more were taken than were put in
holds no extra member: the set has as many members there as were put in, so they are the same ones. Extra members can
only be in the other buckets. There are about as many of these as extra members.

The argument needs two things, and `reconcile` sees to both. What is put in is in the set at that moment. And nobody
removes it from the set before it has been taken out here (for departures, see `take_swept`). A member may be taken out
twice (SSCAN may give one twice), and the set need not stand still: a member that comes meanwhile makes its bucket look
crowded, and is asked about. The hash only spreads the members. Python's differs from process to process, so that nobody
can choose members which all fall into one bucket.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

# 1 MB, which fits into a processor's cache. With 5 million members in the set, one extra member makes us ask about 20
# others.
BUCKETS = 1 << 18
MASK = BUCKETS - 1


class BucketFilter:
    """Members put in, less members taken out, by bucket."""

    def __init__(self) -> None:
        self._balance = array("i", bytes(4 * BUCKETS))
        self.swept = 0  # members that departures removed meanwhile, as it was told

    def put_in(self, members: Iterable[bytes]) -> None:
        """Members of the table, each once, that are in the set."""
        balance = self._balance
        for number in map(hash, members):
            balance[number & MASK] += 1

    def take_out(self, members: Iterable[bytes]) -> None:
        """Members of the set, each at least once."""
        balance = self._balance
        for number in map(hash, members):
            balance[number & MASK] -= 1

    def take_swept(self, members: Sequence[bytes]) -> None:
        """Members that departures have just removed from the set. If they were put in, they are no longer in the
        set."""
        self.take_out(members)
        self.swept += len(members)

    @property
    def even(self) -> bool:
        """Whether no bucket is crowded: the set has no extra member."""
        return min(self._balance) >= 0

    def crowded(self, members: Sequence[bytes]) -> list[bytes]:
        """Those of these members that are in a bucket out of which more were taken than had been put in."""
        balance = self._balance
        return [member for member in members if balance[hash(member) & MASK] < 0]
