"""The types of members: as the texts that Postgres writes, read in the order of the index, and looked up by it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from psycopg2.sql import SQL

from manage_service.protocol.sweep import rowless
from manage_service.replica import sql
from shared_models import declarations
from shared_models.declarations import TYPES, Counter, Field, Table
from shared_models.protocol.members import encode
from tests import servers

# Values of each type, at its ends, too; and what Postgres never writes for any of them.
VALUES = {
    "text": ["", "Ann", "ann", "Ünïcode", "a\tb", 'quote"y', "back\\slash"],
    "varchar": ["", "Zoe", "zoe", "x,y"],
    "smallint": ["-32768", "0", "7", "32767"],
    "integer": ["-2147483648", "10", "9", "2147483647"],
    "bigint": ["-9223372036854775808", "10", "9", "9223372036854775807"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "c0ffee00-0000-4000-8000-00000000000a"],
    "boolean": ["true", "false"],
    "date": [
        "-infinity", "4714-11-24 BC", "4714-12-31 BC", "4713-01-01 BC", "4713-02-29 BC", "0044-03-15 BC", "0001-12-31 BC",
        "0001-01-01", "2024-02-29", "9999-12-31", "10000-01-01", "5874897-12-31", "infinity",
    ],
    "enum": ["sold", "new", "back ordered", "Ünïque"],
}  # fmt: skip
JUNK = {
    "text": [b"\0", b"\xff"],
    "varchar": [b"a\0b"],
    "smallint": [b"07", b"+7", b"-0", b"", b" 7", b"x", b"9" * 5000, "७".encode()],
    "integer": [b"1.0", b"1e1", b"1_0"],
    "bigint": [b"9223372036854775808", b"-9223372036854775809"],
    "uuid": [b"C0FFEE00-0000-4000-8000-00000000000A", b"c0ffee0000004000800000000000000a", b"", b"{}"],
    "boolean": [b"t", b"1", b"TRUE", b"", b"yes"],
    "date": [
        b"", b"2024-2-29", b"2023-02-29", b"0000-01-01", b"4714-11-23 BC", b"4715-01-01 BC", b"5874898-01-01", b"today",
        b"02024-02-29", b"2024-02-29 AD", b"Infinity", b"4712-02-29 BC", "२०२४-02-29".encode(),
    ],
    "enum": [b"NEW", b"gone", b"", b"\0", b"new "],
}  # fmt: skip
# Of the type and canonical, but in no row.
ABSENT = {
    "text": "bob", "varchar": "bob", "smallint": "8", "integer": "8", "bigint": "8",
    "uuid": "c0ffee00-0000-4000-8000-00000000000b", "date": "2024-03-01", "enum": "never used",
}  # fmt: skip
COLUMN_TYPES = {"enum": '"order state"'}

TABLE = Table("things", "some shop", "many % things", tuple(Field(f"%s {type_}", type_) for type_ in TYPES))
COUNTERS = {type_: Counter(f"by_{type_}", TABLE, (f"%s {type_}",)) for type_ in TYPES}
PAIRS = Counter("pairs", TABLE, ("%s enum", "%s date"))


@pytest.fixture(scope="module")
def things(primary, replica) -> Iterator[None]:
    """A table in another schema, with a column and an index for each type, and each value in many rows."""
    labels = ", ".join(f"'{label}'" for label in [*VALUES["enum"], ABSENT["enum"]])
    columns = ", ".join(f'"%s {type_}" {COLUMN_TYPES.get(type_, type_)}' for type_ in TYPES)
    statements = [
        'CREATE SCHEMA "some shop"',
        f'CREATE TYPE "order state" AS ENUM ({labels})',
        f'CREATE TABLE "some shop"."many % things" ({columns}, xact bigint NOT NULL DEFAULT 0)',
        *(f'CREATE INDEX ON "some shop"."many % things" ("%s {type_}")' for type_ in TYPES),
        'CREATE INDEX ON "some shop"."many % things" ("%s enum", "%s date")',
    ]
    for statement in statements:
        servers.sql(primary, statement)
    for type_, values in VALUES.items():
        written = ", ".join(
            "(E'" + value.replace("\\", "\\\\") + f"'::{COLUMN_TYPES.get(type_, type_)})" for value in values
        )
        copies = f"(VALUES {written}) AS v(x), generate_series(1, 200)"
        servers.sql(primary, f'INSERT INTO "some shop"."many % things" ("%s {type_}") SELECT x FROM {copies}')
    some = "unnest(enum_range(NULL::\"order state\")) AS e, (VALUES (date '2024-02-29'), ('0044-03-15 BC'), ('infinity')) AS d(d)"
    servers.sql(
        primary,
        f'INSERT INTO "some shop"."many % things" ("%s enum", "%s date") SELECT e, d FROM {some} WHERE e <> \'never used\'',
    )
    servers.sql(primary, 'VACUUM ANALYZE "some shop"."many % things"')
    servers.wait_until_replayed(primary, replica)
    yield
    servers.sql(primary, 'DROP SCHEMA "some shop" CASCADE; DROP TYPE "order state"')
    servers.wait_until_replayed(primary, replica)


def in_order(world, counter: Counter) -> list[tuple[str, ...]]:
    """The members as Postgres writes and sorts them."""
    fields = ", ".join(f'"{name}"' for name in counter.fields)
    texts = ", ".join(f'"{name}"::text AS t{at}' for at, name in enumerate(counter.fields))
    filled = " AND ".join(f'"{name}" IS NOT NULL' for name in counter.fields)
    rows = f'SELECT DISTINCT {fields} FROM "some shop"."many % things" WHERE {filled}'
    return world.ask_primary(f"SELECT {texts} FROM ({rows}) AS members ORDER BY {fields}".replace("%", "%%"))


@pytest.mark.parametrize("counter", [*COUNTERS.values(), PAIRS], ids=lambda counter: counter.name)
@pytest.mark.parametrize("jumping", [False, True], ids=["scanning", "jumping"])
def test_members_are_the_texts_of_postgres_in_the_order_of_the_index(world, things, monkeypatch, counter, jumping):
    """Chunk by chunk, each from behind the last member of the one before: none twice, none left out."""
    monkeypatch.setattr(sql, "CHUNK_ROWS", 450)
    monkeypatch.setattr(sql, "CHUNK_JUMPS", 2)
    found, after = [], None
    with world.replica.snapshot(counter) as snapshot:
        while chunk := snapshot.read_members(counter, after, jumping=jumping):
            found += [tuple(map(str, values)) for values in chunk]
            after = chunk[-1]
            assert len(found) < 100
    assert found == in_order(world, counter)


@pytest.mark.parametrize("type_", TYPES)
def test_a_member_of_a_row_is_never_junk_and_junk_is_never_an_error(world, things, type_):
    counter = COUNTERS[type_]
    members = [encode(values) for values in in_order(world, counter)]
    assert sorted(members) == sorted(value.encode() for value in VALUES[type_])
    extra = list(JUNK[type_]) + ([ABSENT[type_].encode()] if type_ in ABSENT else [])
    with world.replica.snapshot(counter) as snapshot:
        assert sorted(rowless(counter, members + extra, snapshot)) == sorted(extra)


@pytest.mark.parametrize("counter", [*COUNTERS.values(), PAIRS], ids=lambda counter: counter.name)
@pytest.mark.parametrize("statement", [sql.WITHOUT_ROW, sql.WITH_ROW_BELOW], ids=["without_row", "with_row_below"])
def test_a_member_is_asked_for_by_the_index(world, things, counter, statement):
    """All fields are conditions of the index, whatever had to be cast: one descent a member."""
    arrays = [VALUES[type_][:2] for type_ in counter.types]
    bounds = [9, 9] if statement == sql.WITH_ROW_BELOW else []
    with world.replica.snapshot(counter) as snapshot, snapshot._connection.cursor() as cursor:
        cursor.execute(SQL("EXPLAIN (COSTS OFF) ") + sql.fill_in(statement, counter), [*arrays, *bounds])
        plan = [line for (line,) in cursor.fetchall()]
    # The line after the scan of the table's index. (An enum's labels are looked up in the catalog, once a statement.)
    at = next(at for at, line in enumerate(plan) if "many % things" in line)
    assert "Index" in plan[at] and "Index Cond:" in plan[at + 1], plan
    assert all(re.search(rf'"{name}"\)?(::text)? = ', plan[at + 1]) for name in counter.fields), plan


def test_what_is_declared_fits(world, things, monkeypatch):
    """Names with blanks, another schema: as for any other table, what is missing is said, and nothing else."""
    monkeypatch.setattr(declarations, "COUNTERS", (*declarations.COUNTERS, *COUNTERS.values()))
    for counter in COUNTERS.values():
        with (
            world.replica.snapshot(counter) as snapshot,
            pytest.raises(Exception, match="has no index on xact") as raised,
        ):
            snapshot.check(counter)
        assert "declared as" not in str(raised.value) and "begins with" not in str(raised.value)
