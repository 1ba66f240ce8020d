"""The bucket filter of a run at the same time as departures, in every interleaving: three members in one bucket.

The search of `search.py` has one member, for which a reconcile is one question. Here are the others' steps: the run reads
the table one member at a time, puts it into the filter, scans the set, and asks about a crowded bucket; meanwhile rows come
and are counted, rows leave and departures take their members out, each as one step. One member is extra from the start, its
trigger was bypassed. Whenever the run says that the set is right, that member has to be gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import NamedTuple

import pytest

MEMBERS = (0, 1, 2)


class World(NamedTuple):
    table: frozenset[int]
    counted: frozenset[int]
    count_before: int
    extra: int
    at: str = "reading"
    position: int = 0
    read: int = 0
    absent: int = 0
    balance: int = 0
    swept: int = 0
    told: int = 0
    comes: int = 1
    leaves: int = 2
    raised: frozenset[int] = (
        frozenset()
    )  # members with a later day by now: other elements, which fall into other buckets
    raises: int = 0
    drops: int = 0
    dropped: bool = False
    drop_is_swept: bool = True


def meanwhile(w: World, is_told: bool) -> Iterator[World]:
    if w.comes:
        for member in set(MEMBERS) - w.table - {w.extra}:
            yield w._replace(table=w.table | {member}, counted=w.counted | {member}, comes=w.comes - 1)
    if w.leaves:
        for member in w.table:
            left = w._replace(table=w.table - {member}, counted=w.counted - {member}, leaves=w.leaves - 1)
            yield left._replace(swept=w.swept + 1, told=w.told + is_told, balance=w.balance - is_told)


def by_day(w: World) -> Iterator[World]:
    """A record of a later day, or a group that is dropped: the two that are not the extra member. It is read again at some time."""
    if w.raises:
        for member in w.counted - w.raised - {w.extra}:
            yield w._replace(raised=w.raised | {member}, raises=w.raises - 1)
    if w.drops:
        kept = w.counted & {w.extra}
        yield w._replace(counted=kept, swept=w.swept + w.drop_is_swept, drops=w.drops - 1, dropped=True)
    if w.dropped:
        yield w._replace(counted=w.counted | w.table, dropped=False)


def run(w: World, without: Set[str]) -> Iterator[World]:
    if w.at == "reading" and w.position < len(MEMBERS):
        moved = w._replace(position=w.position + 1)
        if w.position in w.table:
            absent = w.absent + (w.position not in w.counted)
            moved = moved._replace(
                read=w.read + 1, absent=absent, balance=w.balance + 1, counted=w.counted | {w.position}
            )
        yield moved
    elif w.at == "reading":
        alike = not w.absent and w.count_before == w.read == len(w.counted)
        if alike and (not w.swept or "what was swept voids the shortcut" in without):
            yield w._replace(at="right")
        else:
            yield w._replace(at="scanning", position=0)
    elif w.at == "scanning" and w.position < len(MEMBERS):
        by_member = "by member" not in without
        taken = w.position in w.counted and (by_member or w.position not in w.raised)
        yield w._replace(position=w.position + 1, balance=w.balance - taken)
    elif w.at == "scanning":
        unsure = w.swept != w.told and "a filter that was not told is not used" not in without
        yield w._replace(at="asked" if unsure or w.balance < 0 else "right")
    elif w.at == "asked":
        yield w._replace(counted=w.counted & w.table, at="right")


def is_broken(is_told: bool, without: Set[str] = frozenset(), **events: int) -> bool:
    """Whether some interleaving ends with the extra member in a set that is said to be right."""
    starts = [
        World(
            table=frozenset(MEMBERS) - {extra} - absent,
            counted=frozenset(MEMBERS) - absent,
            count_before=3 - len(absent),
            extra=extra,
            drop_is_swept="a drop counts as swept" not in without,
        )._replace(**events)  # type: ignore[arg-type]
        for extra in MEMBERS
        for absent in (frozenset[int](), *(frozenset({other}) for other in MEMBERS if other != extra))
    ]
    waiting, seen = starts, set(starts)
    while waiting:
        w = waiting.pop()
        if w.at == "right":
            if w.extra in w.counted:
                return True
            continue
        for after in (*run(w, without), *meanwhile(w, is_told), *by_day(w)):
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return False


@pytest.mark.parametrize("is_told", [True, False])
def test_a_run_beside_departures_leaves_no_extra_member(is_told):
    assert not is_broken(is_told)


@pytest.mark.parametrize(
    ("rule", "is_told"),
    [("a filter that was not told is not used", False), ("what was swept voids the shortcut", True)],
)
def test_without_this_rule_an_extra_member_stays(rule, is_told):
    assert is_broken(is_told, {rule})


# Later days are recorded, and groups are dropped, without departures.
OTHERS = {"by member": {"raises": 1}, "a drop counts as swept": {"drops": 1}}


@pytest.mark.parametrize("rule", OTHERS)
def test_later_days_and_dropped_groups_hide_no_extra_member(rule):
    assert not is_broken(True, leaves=0, **OTHERS[rule])  # type: ignore[arg-type]
    assert is_broken(True, {rule}, leaves=0, **OTHERS[rule])
