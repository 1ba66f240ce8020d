"""A table of somebody else with groups and days, and what Redis says of it beside what Postgres says."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared_models import declarations, triggers
from shared_models.declarations import Counter, Storage, Term
from shared_models.protocol import elements, keys, states, storages
from tests.manage.world import World

DECLARED = """
[tables.orders]
name = "shop.orders"
fields = {email = "text", country = "text", shop = "integer", created_at = "timestamptz", due = "date"}

[counters.customers]
table = "orders"
member = ["email"]
where = "NOT cancelled"
by = ["country", "day(created_at)", ["country", "month(due)"], "week(created_at)"]
last_seen = "created_at"
time_zone = "America/St_Johns"

[counters.baskets]
table = "orders"
member = ["country", "email"]
by = ["country", "shop"]
last_seen = "due"
"""
# What is enough to be damaged.
SMALL = """
[tables.orders]
name = "shop.orders"
fields = {email = "text", country = "text", created_at = "timestamptz"}

[counters.customers]
table = "orders"
member = ["email"]
where = "NOT cancelled"
by = ["country"]
last_seen = "created_at"
time_zone = "America/St_Johns"
"""
MAKE = """
    CREATE SCHEMA shop;
    CREATE TABLE shop.orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text COLLATE "C", country text COLLATE "C", shop int,
        created_at timestamptz, due date, cancelled boolean NOT NULL DEFAULT false
    )
"""


@contextmanager
def orders(world: World, lines: str = DECLARED) -> Iterator[World]:
    """The table, with what `adopt` makes; its counters are the only ones."""
    tables, counters = declarations.parse(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(declarations, "TABLES", tables)
        patch.setattr(declarations, "COUNTERS", counters)
        try:
            world.ask_primary(MAKE)
            for statement in adopted():
                world.ask_primary(statement.replace("%", "%%"))
            world.replay()
            yield world
        finally:
            world.ask_primary("DROP SCHEMA shop CASCADE")
            world.replay()


def adopted() -> Iterator[str]:
    """What `adopt` would run."""
    table, counters = declarations.TABLES[0], declarations.derived()
    watched = {
        each.name: tuple(dict.fromkeys([*(term.column for term in each.terms), *(["cancelled"] if each.where else [])]))
        for each in counters
    }
    yield from triggers.column(table)
    pieces = [
        *triggers.triggers(table, counters, watched),
        triggers.index(table.schema, table.relation, (Term("xact", "bigint"),), "xact > 0"),
        *{each.name: each for each in (index_of(counter) for counter in counters)}.values(),
    ]
    yield from (statement for piece in pieces for statement in piece.statements())


def index_of(counter: Counter) -> triggers.Piece:
    return triggers.index(counter.table.schema, counter.table.relation, counter.terms, counter.where)


def in_table(world: World, counter: Counter, below: int | None = None) -> set[bytes]:
    """The elements that the table has, by plain SQL; only of rows with a lower xact, if that is given."""
    filled = [f'"{term.column}" IS NOT NULL' for term in counter.terms]
    bound = [f"xact < {below}"] if below is not None else []
    where = " AND ".join([*filled, *([f"({counter.where})"] if counter.where else []), *bound])
    columns = ", ".join(f"({term.sql()})::text" for term in counter.terms)
    rows = world.ask_primary(f"SELECT DISTINCT {columns} FROM shop.orders WHERE {where}".replace("%", "%%"))
    found = elements.encode_all(counter, rows)
    if counter.storage is not Storage.LAST_SEEN:
        return set(found)
    last: dict[bytes, bytes] = {}
    for day, member in map(elements.split, found):
        last[member] = max(day, last.get(member, day))
    return {day + elements.SEPARATOR + member for member, day in last.items()}


def in_redis(world: World, counter: Counter, *, whole: bool = True) -> set[bytes]:
    """The elements that Redis has. Asserts that everything which is kept beside them fits, unless it need not be `whole`."""
    found: set[bytes] = set()
    for part in counter.parts:
        of_part = in_part(world, part, whole=whole)
        assert not whole or all(elements.shard_of(part, each) == part.shard for each in of_part)
        found |= of_part
    return found


def in_part(world: World, counter: Counter, *, whole: bool) -> set[bytes]:
    """The same for one part."""
    at, redis = keys.of_counter(counter.name), world.redis_of(counter)
    found = {element for some in storages.scan(redis, at, 1_000) for element in some}
    if not whole:
        return found
    heads = Tally(elements.split(each)[0] for each in found)
    if counter.storage is Storage.GROUPS:
        directory = {group: size for some in storages.scan_groups(redis, at) for group, size in some.items()}
        assert directory == heads
        assert set(redis.zrange(at.names, 0, -1)) == set(directory)
        assert int(redis.hget(at.intake, "elements") or 0) == len(found)
        assert not redis.exists(at.broken)
    elif counter.storage is Storage.LAST_SEEN:
        assert {day: int(number) for day, number in redis.hgetall(at.days).items()} == heads
    assert redis.exists(*beside(at, counter.storage)) == 0
    return found


def beside(at: keys.CounterKeys, storage: Storage) -> list[str]:
    """Keys that a counter with this storage does not have."""
    return [key for key, of in ((at.names, Storage.GROUPS), (at.days, Storage.LAST_SEEN)) if storage is not of]


def is_exact(world: World) -> bool:
    """Whether every derived counter is live, settled, and has what the table has."""
    found: dict[str, states.State] = {}
    for redis, parts in world.nodes.by_client(declarations.parts(), keys.home_of):
        found |= states.read_states(redis, [part.name for part in parts])
    if any(state.cold or state.left_through != state.cursor for state in found.values()):
        return False
    return not differences(world)


def differences(world: World) -> dict[str, tuple[set[bytes], set[bytes]]]:
    """Where it is not exact: what Redis has too many, and too few."""
    found = {counter.name: (in_redis(world, counter), in_table(world, counter)) for counter in declarations.kept()}
    return {name: (redis - table, table - redis) for name, (redis, table) in found.items() if redis != table}
