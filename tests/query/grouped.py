"""Counters by group and with `last_seen`, in Redis by the steps of the protocol, and beside them as sets of Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from redis import Redis

from shared_models import declarations
from shared_models.declarations import Counter, get_counter, parse
from shared_models.nodes import Nodes
from shared_models.protocol import elements, keys, states, steps
from shared_models.protocol.members import encode
from tests.query.rolls_in_redis import SOURCE, Rolls

FILE = """
[tables.orders]
name = "shop.orders"
fields = {email = "text", state = "text", shop = "integer", created_at = "timestamptz"}

[counters.customers]
table = "orders"
member = ["email"]
by = ["state", "day(created_at)", "week(created_at)", "month(created_at)", ["state", "day(created_at)"], "shop"]
last_seen = "created_at"
time_zone = "Europe/Berlin"

[counters.buyers]
table = "orders"
member = ["email"]
by = ["state", "day(created_at)"]

[counters.shops]
table = "orders"
member = ["shop"]
"""
NAMES = tuple(each.name for counter in parse(FILE)[1] for each in (counter, *counter.groupings))
# The same with six shards: but for the shops, which are few.
SHARDED = FILE.replace('member = ["email"]', 'member = ["email"]\nshards = 6')
# A group, or a day, and a member; or the member alone.
Element: TypeAlias = tuple[tuple[str, ...], str]


@dataclass
class World:
    """The counters of FILE, live; `groups` and `last` are what they have to say. `nodes`: if there are several servers."""

    rolls: Rolls
    nodes: Nodes[Redis] | None = None
    groups: dict[str, dict[tuple[str, ...], set[str]]] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)

    @property
    def client(self) -> Redis:
        return self.rolls.client

    def redis_of(self, part: Counter) -> Redis:
        """The client of the server that holds a part."""
        return self.nodes.of(keys.home_of(part)) if self.nodes else self.client

    def make_live(self) -> None:
        """All of them, empty."""
        for counter in map(get_counter, NAMES):
            for part in counter.parts:
                Rolls(self.redis_of(part)).make_live(part.name, [])
            self.groups[counter.name], self.members[counter.name] = {}, set()

    def empty(self) -> None:
        """All of them, live and empty again."""
        for client in self.nodes.each() if self.nodes else [self.client]:
            client.flushdb()
        self.last.clear()
        self.make_live()

    def record(self, name: str, *found: Element) -> None:
        """Rows that were committed."""
        for head, member in found:
            if name == "customers":
                self.last[member] = max(self.last.get(member, ""), head[0])
            elif ":" in name:
                self.groups[name].setdefault(head, set()).add(member)
            else:
                self.members[name].add(member)
        for part, some in by_part(name, found):
            steps.record(self.redis_of(part), {part.name: some}, 1001, SOURCE)

    def sweep(self, name: str, head: tuple[str, ...], member: str, instead: str = "") -> None:
        """The row is gone; last seen: this day is now the last one."""
        ((part, (element,)),) = by_part(name, [(head, member)])
        steps.mark(self.redis_of(part), part.name, "token", [element])
        steps.sweep(self.redis_of(part), part.name, "token", {element: instead.encode()}, "")
        if name == "customers" and self.last.get(member) == head[0]:
            if instead:
                self.last[member] = instead
            else:
                del self.last[member]
        elif ":" in name:
            kept = self.groups[name].get(head, set())
            kept.discard(member)
            if not kept:
                self.groups[name].pop(head, None)
        elif name != "customers":
            self.members[name].discard(member)

    def set_of(self, name: str, *group: str) -> bytes:
        """The key of a group's set."""
        at = keys.of_counter(name)
        return at.group(self.client.hget(at.intake, "generation"), encode(group))

    def fill(self, name: str, found: Iterable[Element]) -> None:
        """A counter, built."""
        self.rolls.make_live(name, [element_of(name, each) for each in found], token="fill-2")


def by_part(name: str, found: Iterable[Element]) -> list[tuple[Counter, list[bytes]]]:
    return elements.by_part(get_counter(name), [element_of(name, each) for each in found])


def element_of(name: str, element: Element) -> bytes:
    head, member = element
    if name == "customers":
        return head[0].encode() + elements.SEPARATOR + member.encode()
    return encode(head) + elements.SEPARATOR + member.encode() if ":" in name else member.encode()


def is_live(client: Redis, name: str) -> bool:
    return not states.read_state(client, name).cold


def declare(monkeypatch: object, text: str = FILE) -> None:
    """In this test."""
    monkeypatch.setattr(declarations, "COUNTERS", parse(text)[1])  # type: ignore[attr-defined]
