"""What holds an element in Redis: the functions of `shared_models/lua/storage_groups.lua` and `storage_last_seen.lua`.

An element is a number: the day of ann's last row, 0 for none. Where groups are counted every row has the day 1: then the element
says whether ann is in the group. Beside her stands bob, whose row is old and whom nobody erases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.protocol.rules import Rules


class Days(NamedTuple):
    """Last seen: a hash member -> day. `whole`: the number of members by day is right."""

    day: int = 0
    bob: bool = False
    whole: bool = True


class Group(NamedTuple):
    """One group: its set, its size in the directory (None: it is not there), whether it is among the names; and the token of the
    drop, while it has not been read again."""

    ann: bool = False
    bob: bool = False
    size: int | None = None
    named: bool = False
    broken: int | None = None

    @property
    def members(self) -> int:
        return self.ann + self.bob


Held = Any  # Days or Group


class LastSeen:
    empty = Days()

    def __init__(self, rules: Rules) -> None:
        self.on = rules.on

    def day(self, held: Days) -> int:
        return held.day

    def count(self, held: Days) -> int:
        return bool(held.day) + held.bob

    def live(self, held: Days) -> bool:
        return held.whole

    whole = live

    def has_bob(self, held: Days) -> bool:
        return held.bob

    def holds(self, held: Days, day: int) -> bool:
        return held.day >= day

    def unmark(self, held: Days, day: int, mark: Any) -> Any:
        """What a record of this day makes of a mark."""
        if mark is None or not held.day or day >= held.day:
            return None
        if not self.on("earlier record"):
            return mark
        return "again" if self.on("again") else None

    def put(self, held: Days, day: int) -> tuple[int, Days]:
        """By how much the size moves, and what is held then."""
        later = max(day, held.day) if self.on("later day") else day
        return int(not held.day), held._replace(day=later)

    def put_bob(self, held: Days) -> tuple[int, Days]:
        return int(not held.bob), held._replace(bob=True)

    def take(self, held: Days, instead: int) -> tuple[int, Days, bool]:
        """By how much the size moves, what is held then, and whether something was taken out."""
        if not self.on("lowered"):
            instead = 0
        if held.day <= instead:
            return 0, held, False
        return int(instead == 0), held._replace(day=instead), True

    def clear(self, held: Days) -> Days:
        return self.empty

    def change(self, held: Days) -> Iterator[tuple[str, Days]]:
        """What somebody does by hand."""
        yield "spoils the number of members by day", held._replace(whole=False)
        if held.day:
            yield "removes ann by hand", held._replace(day=0)
        else:
            yield "adds ann by hand, with day 3", held._replace(day=3)
        yield "deletes the members and the days", self.empty


class Groups:
    empty = Group()

    def __init__(self, rules: Rules) -> None:
        self.on = rules.on

    def day(self, held: Group) -> int:
        return int(held.ann)

    def count(self, held: Group) -> int:
        return int(held.size is not None)

    def live(self, held: Group) -> bool:
        """Whether query answers for this group, if it does for the counter. A group that is not in the directory has nobody."""
        if held.broken is not None:
            return False
        return held.size is None or held.members == held.size or not self.on("size of a group")

    def whole(self, held: Group) -> bool:
        return held.named == (held.size is not None)

    def has_bob(self, held: Group) -> bool:
        return held.bob and held.size is not None

    def holds(self, held: Group, day: int) -> bool:
        return held.ann

    def unmark(self, held: Group, day: int, mark: Any) -> Any:
        return None

    def put(self, held: Group, day: int) -> tuple[int, Group]:
        return self._put(held, "ann")

    def put_bob(self, held: Group) -> tuple[int, Group]:
        return self._put(held, "bob")

    def _put(self, held: Group, who: str) -> tuple[int, Group]:
        new = held.size is None
        if new:
            held = held._replace(ann=False, bob=False)
        more = not getattr(held, who)
        size = (held.size or 0) + 1 if more else held.size
        return int(new), held._replace(**{who: True}, size=size, named=True)

    def take(self, held: Group, instead: int) -> tuple[int, Group, bool]:
        if held.size is None or not held.ann:
            return 0, held, True
        held = held._replace(ann=False, size=held.size - 1)
        assert held.size is not None
        if held.size > 0 or (held.members and self.on("last of a group")):
            return 0, held, True
        return 1, Group(broken=held.broken), True

    def clear(self, held: Group) -> Group:
        """The next generation."""
        return self.empty

    def change(self, held: Group) -> Iterator[tuple[str, Group]]:
        """... but not what outweighs an earlier change."""
        for what, changed in self._changes(held):
            if changed.members != changed.size or held.size in (None, held.members):
                yield what, changed

    def _changes(self, held: Group) -> Iterator[tuple[str, Group]]:
        if held.ann:
            yield "removes ann from the group's set by hand", held._replace(ann=False)
        else:
            yield "adds ann to the group's set by hand", held._replace(ann=True)
        if held.members:
            yield "deletes the group's set", held._replace(ann=False, bob=False)
        if held.size is not None:
            yield "deletes the directory", held._replace(size=None)
            yield "makes the group's size larger", held._replace(size=held.size + 1)
            yield "makes the group's size smaller", held._replace(size=held.size - 1)
            yield "removes the group from the names", held._replace(named=False)

    def drop(self, held: Group, token: int) -> tuple[int, Group]:
        """`drop_groups.lua`, of a group that is not as large as its size."""
        return -1, Group(broken=token if self.on("broken") else None)
