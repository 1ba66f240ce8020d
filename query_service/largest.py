"""The largest groups of a counter with several parts.

Each group has members in most parts, so the largest groups of one part need not be the largest of all. This is the threshold
algorithm: read the `k` largest groups of each part, and add up what all parts have of them. A group that is in none of these
lists has at most the sum of the lists' last sizes. If the last group of the answer has more, the answer is complete.
Otherwise read more: twice `k`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest groups of one part, with their sizes there; `is_all`: the part has no other groups."""

    sizes: Mapping[bytes, float]
    is_all: bool

    @property
    def most_of_others(self) -> float:
        """No group that is not in the list has more members in this part."""
        return 0 if self.is_all else min(self.sizes.values())


def add_up(lists: Sequence[Largest]) -> Mapping[bytes, float]:
    """The groups of these lists, with what the lists have of each."""
    sizes: dict[bytes, float] = {}
    for each in lists:
        for name, size in each.sizes.items():
            sizes[name] = sizes.get(name, 0) + size
    return sizes


def limits_of(lists: Sequence[Largest]) -> tuple[float, Mapping[bytes, float]]:
    """No group has more members than this: one that is in none of the lists, and each one that is in some of them."""
    others = [each.most_of_others for each in lists]
    most = sum(others)
    limits: dict[bytes, float] = {}
    for each, other in zip(lists, others, strict=True):
        for name, size in each.sizes.items():
            limits[name] = limits.get(name, most) + size - other
    return most, limits


def best(sizes: Mapping[bytes, float], most: int) -> list[bytes]:
    """The names of the largest groups, the largest first; those of one size in the order of their names."""
    return [name for _, name in nsmallest(most, ((-size, name) for name, size in sizes.items() if size))]


def least_of(sizes: Mapping[bytes, float], chosen: Sequence[bytes], most: int) -> float:
    """The size of the last group of a top; 0 if the top is not full."""
    return sizes[chosen[-1]] if len(chosen) == most else 0


def candidates(lists: Sequence[Largest], most: int) -> list[bytes]:
    """The groups in the lists that may be among the largest: those that have most members in the lists first."""
    listed = add_up(lists)
    likely = best(listed, most)
    least = least_of(listed, likely, most)
    others = (name for name, size in limits_of(lists)[1].items() if size >= least)
    return list(dict.fromkeys([*likely, *others]))


def choose(lists: Sequence[Largest], known: Mapping[bytes, float], most: int) -> list[bytes] | None:
    """The largest groups of all parts; None if the lists are too short to tell.

    `known`: what all parts together have of some groups, read in the same moment as the lists.
    """
    if all(each.is_all for each in lists):
        return best(add_up(lists), most)
    chosen = best(known, most)
    # A group of the same size may have an earlier name. So another group has to be smaller.
    least = least_of(known, chosen, most)
    of_others, limits = limits_of(lists)
    if of_others >= least or any(size >= least for name, size in limits.items() if name not in known):
        return None
    return chosen
