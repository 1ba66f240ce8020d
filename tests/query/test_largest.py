"""The largest groups of several parts, without Redis: whatever the lists are, what is said is true."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from query_service.largest import Largest, best, candidates, choose

NAMES = [bytes([letter]) for letter in b"abcdefgh"]
parts = st.lists(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 6)), min_size=1, max_size=4)


def listed(part: dict[bytes, int], depth: int) -> Largest:
    """What Redis gives of a part: of groups of one size it leaves out the first names."""
    names = sorted(part, key=lambda name: (part[name], name), reverse=True)[:depth]
    return Largest({name: part[name] for name in names}, len(names) < depth)


@given(parts=parts, most=st.integers(1, 9), depth=st.integers(1, 9), known=st.sets(st.sampled_from(NAMES)))
def test_what_is_chosen_is_what_all_parts_say_together(
    parts: list[dict[bytes, int]], most: int, depth: int, known: set[bytes]
) -> None:
    sums = {name: sum(part.get(name, 0) for part in parts) for name in NAMES}
    chosen = choose([listed(part, depth) for part in parts], {name: sums[name] for name in known}, most)
    assert chosen is None or chosen == best(sums, most)


@given(parts=parts, most=st.integers(1, 9), depth=st.integers(1, 9))
def test_the_candidates_are_enough_to_tell(parts: list[dict[bytes, int]], most: int, depth: int) -> None:
    lists = [listed(part, depth) for part in parts]
    sums = {name: sum(part.get(name, 0) for part in parts) for name in NAMES}
    known = {name: sums[name] for name in candidates(lists, most)}
    assert choose(lists, known, most) == choose(lists, sums, most)


@given(parts=parts, most=st.integers(1, 9))
def test_lists_that_are_long_enough_always_tell(parts: list[dict[bytes, int]], most: int) -> None:
    assert choose([listed(part, len(NAMES) + 1) for part in parts], {}, most) is not None


def test_large_groups_are_told_without_reading_all() -> None:
    first, second = {b"a": 90, b"b": 50, b"c": 9, b"d": 8}, {b"b": 70, b"a": 20, b"c": 7, b"e": 7}
    known = {b"a": 110, b"b": 120, b"c": 16}
    assert choose([listed(first, 3), listed(second, 3)], known, 2) == [b"b", b"a"]
    assert choose([listed(first, 1), listed(second, 1)], known, 2) is None, "another group may have 90 and 70"
    assert choose([listed(first, 3), listed(second, 3)], known, 3) is None, "another group may have 9 and 7, too"
