"""A bucket filter: which members of a set to ask the table about, in memory that does not grow with the counter.

Members fall into BUCKETS buckets by their hash. Members of the table are put in, members of the set are taken out.
Assume that every member that was put in is also in the set. If no more members were taken out of a bucket than were put
in, it holds no extra member: the set has as many members there as were put in, so they are the same ones. Extra members
can only be in the other buckets. There are about as many of these as extra members.

The argument needs two things, and `reconcile` ensures both. A member that is put in is in the set at that moment. And
nobody removes it from the set before it was taken out here (for departures, see `take_swept`). A member may be taken out
twice (SSCAN may return one twice), and the set may change: a member that is added meanwhile makes its bucket look
crowded, and the table is asked about it. The hash only spreads the members. Python's hash differs in each process, so
that nobody can choose members which all fall into one bucket.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from shared_models.declarations import Storage
from shared_models.protocol import storages

# 1 MB, which fits into a processor's cache. With 5 million members in the set, each extra member costs a question about
# 20 others.
BUCKETS = 1 << 18
MASK = BUCKETS - 1


class BucketFilter:
    """Members put in, less members taken out, by bucket.

    Where a counter knows last days, an element falls into the bucket of its member. A record of a later day changes the
    element, and tells nobody: the earlier one would leave room in its bucket for an extra member. A day that is too late is found
    without the filter: it is not put in.
    """

    def __init__(self, storage: Storage = Storage.SET) -> None:
        self._storage = storage
        self._balance = array("i", bytes(4 * BUCKETS))
        self.swept = 0  # how many members departures removed meanwhile, by `take_swept`

    def _hashes(self, members: Iterable[bytes]) -> Iterator[int]:
        if self._storage is Storage.LAST_SEEN:
            return (hash(storages.mark_of(self._storage, each)) for each in members)
        return map(hash, members)

    def put_in(self, members: Iterable[bytes]) -> None:
        """Put in members of the table that are in the set, each once."""
        balance = self._balance
        for number in self._hashes(members):
            balance[number & MASK] += 1

    def take_out(self, members: Iterable[bytes]) -> None:
        """Take out members of the set, each at least once."""
        balance = self._balance
        for number in self._hashes(members):
            balance[number & MASK] -= 1

    def take_swept(self, members: Sequence[bytes]) -> None:
        """Take out members that departures have just removed from the set. If they were put in, they are no longer in
        the set."""
        self.take_out(members)
        self.swept += len(members)

    @property
    def even(self) -> bool:
        """Whether no bucket is crowded: the set has no extra member."""
        return min(self._balance) >= 0

    def crowded(self, members: Sequence[bytes]) -> list[bytes]:
        """Those of these members whose bucket has more members taken out than put in."""
        balance = self._balance
        return [
            member for member, number in zip(members, self._hashes(members), strict=True) if balance[number & MASK] < 0
        ]
