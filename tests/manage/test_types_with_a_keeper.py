"""Members of other types than text and numbers, with a real keeper: the set is Postgres' own texts, value by value."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared_models import declarations, triggers
from shared_models.declarations import Counter, Field, Table, Term
from shared_models.protocol import keys
from tests.manage.keepers import keeper_at_work, tick_until
from tests.manage.world import World

HOUR = 3600.0
TYPES = {"mood": "enum", "day": "date", "token": "uuid"}
THINGS = Table("things", "odd", "things", tuple(Field(*each) for each in TYPES.items()))
COUNTERS = (
    *(Counter(f"{name}s", THINGS, (name,)) for name in TYPES),
    Counter("all_three", THINGS, tuple(TYPES)),
)
NAMES = [counter.name for counter in COUNTERS]
# The labels are not in the order of their names; a label may be anything that a text may be.
MAKE = """
    CREATE SCHEMA odd;
    CREATE TYPE odd.mood AS ENUM ('zesty', 'so-so', 'Ångström "x"', '');
    CREATE TABLE odd.things (mood odd.mood, day date, token uuid)
"""
TOKEN = "00000000-0000-0000-0000-00000000000"
FIRST = f"""
    INSERT INTO odd.things VALUES
        ('zesty', '2024-02-29', '{TOKEN}1'), ('zesty', '2024-02-29', upper('{TOKEN}A')::uuid), ('', '-infinity', '{TOKEN}2'),
        ('Ångström "x"', '0044-03-15 BC', '{TOKEN}3'), (NULL, '1999-12-31', '{TOKEN}4'), ('so-so', NULL, '{TOKEN}4')
"""
MORE = f"""
    INSERT INTO odd.things VALUES
        ('so-so', 'infinity', '{TOKEN}5'), ('so-so', '12345-06-07', NULL), ('', '0001-01-01', '{TOKEN}6'),
        (NULL, '4714-11-24 BC', NULL), (NULL, '4713-02-29 BC', NULL), (NULL, '5874897-12-31', NULL),
        ('zesty', '4714-11-24 BC', NULL), ('zesty', '4713-02-29 BC', NULL), ('zesty', '5874897-12-31', NULL)
"""
# Of the first and last days that there are, one row of two goes.
LESS = """
    DELETE FROM odd.things
    WHERE day = '-infinity' OR mood = 'so-so' OR token::text LIKE '%%a' OR (mood = 'zesty' AND token IS NULL)
"""
KEPT_DAYS = (
    "2024-02-29",
    "1999-12-31",
    "0044-03-15 BC",
    "0001-01-01",
    "4714-11-24 BC",
    "4713-02-29 BC",
    "5874897-12-31",
)
# By hand, for each counter: no value of its type, a value in another spelling, a value that no row has.
JUNK = {
    "moods": ("grumpy", "ZESTY", "zesty "),
    "days": ("junk", "2024-2-29", "2023-02-29", "0000-01-01", "2031-01-01", "4714-11-23 BC", "5874898-01-01"),
    "tokens": ("junk", f"{TOKEN}A", f"{{{TOKEN}1}}", f"{TOKEN}f"),
    "all_three": (
        "junk",
        f'["grumpy","2024-02-29","{TOKEN}1"]',
        f'["zesty","2023-02-29","{TOKEN}1"]',
        f'["zesty", "2024-02-29", "{TOKEN}1"]',
        f'["so-so","2024-02-29","{TOKEN}1"]',
    ),
}


@pytest.fixture
def things(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The table with its first rows and its triggers; its counters are the only ones."""
    pieces = [
        *triggers.triggers(THINGS, COUNTERS, {counter.name: counter.fields for counter in COUNTERS}),
        triggers.index(THINGS.schema, THINGS.relation, (Term("xact", "bigint"),), "xact > 0"),
        *(triggers.index(THINGS.schema, THINGS.relation, each.terms, each.where) for each in COUNTERS),
    ]
    try:
        for statement in (MAKE, FIRST, *triggers.column(THINGS)):
            world.ask_primary(statement)
        for statement in (statement for piece in pieces for statement in piece.statements()):
            world.ask_primary(statement)
        world.replay()
        monkeypatch.setattr(declarations, "COUNTERS", COUNTERS)
        yield world
    finally:
        world.ask_primary("DROP SCHEMA odd CASCADE")
        world.replay()


def has_left(world: World, name: str, xact: int) -> bool:
    """Whether the keeper is done with the departures of this transaction, and those before it."""
    left_through = world.state(name).left_through
    return left_through is not None and left_through > xact


def test_enums_dates_and_uuids_are_built_caught_up_left_and_reconciled(things: World) -> None:
    """The session that deletes writes its dates in another style."""
    with keeper_at_work(reconcile_seconds=HOUR) as keeper:
        tick_until(keeper, lambda: all(not things.state(name).cold for name in NAMES), "all to be built")
        assert things.exact(NAMES)
        assert things.set("days") == {b"2024-02-29", b"-infinity", b"0044-03-15 BC", b"1999-12-31"}
        assert things.set("moods") == {b"zesty", b"", b"so-so", 'Ångström "x"'.encode()}

        things.ask_primary(MORE)
        things.replay()
        tick_until(keeper, lambda: things.exact(NAMES), "the new rows to be counted")
        assert {b"infinity", b"12345-06-07", b"0001-01-01"} <= things.set("days")
        tick_until(keeper, lambda: all(things.state(name).left_through is not None for name in NAMES), "a reconcile")

        things.ask_primary("SET datestyle = 'German, DMY'")
        things.ask_primary(LESS)
        ((xact,),) = things.ask_primary("UPDATE odd.things SET mood = '' WHERE day = '2024-02-29' RETURNING xact")
        things.ask_primary("RESET datestyle")
        things.replay()
        tick_until(keeper, lambda: all(has_left(things, name, xact) for name in NAMES), "departures to be done with")
        assert things.exact(NAMES)
        assert things.set("days") == {day.encode() for day in KEPT_DAYS}
        assert things.set("moods") == {b"", 'Ångström "x"'.encode()}

    for name, junk in JUNK.items():
        things.redis.sadd(keys.of_counter(name).members, *junk)
    run = things.reconcile(*NAMES)
    assert things.exact(NAMES)
    assert {name: run.findings[name].extra for name in NAMES} == {name: len(junk) for name, junk in JUNK.items()}
