"""A declaration compared with its table: a difference fails that counter alone, and the error says why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from manage_service.replica.catalog import DoesNotFit
from shared_models import declarations
from shared_models.declarations import Counter, Field, Table
from shared_models.protocol import keys
from tests import servers

NOTES = Table("notes", "public", "notes", (Field("author", "text"), Field("size", "integer")))
AUTHORS = Counter("authors", NOTES, ("author",))
STAMPED = "xact bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint"
TRIGGER = """CREATE TRIGGER rollcall_stamp_xact BEFORE UPDATE ON notes
             FOR EACH ROW EXECUTE FUNCTION rollcall_stamp_xact()"""
INDEXES = "CREATE INDEX ON notes (author); CREATE INDEX ON notes (xact) WHERE xact > 0"


@pytest.fixture
def notes(world) -> Iterator[None]:
    yield
    servers.sql(world.primary, "DROP TABLE IF EXISTS notes")
    world.replay()


def make(world, columns: str, *statements: str) -> None:
    servers.sql(world.primary, "DROP TABLE IF EXISTS notes")
    servers.sql(world.primary, f"CREATE TABLE notes ({columns})")
    for statement in statements:
        servers.sql(world.primary, statement)
    world.replay()


def check(world, counter: Counter = AUTHORS) -> str:
    try:
        with world.replica.snapshot(counter) as snapshot:
            snapshot.check(counter)
    except DoesNotFit as error:
        return str(error)
    return ""


def test_what_fits_is_said_nothing_of(world, notes):
    make(world, f'author text COLLATE "C", size int, {STAMPED}', INDEXES, TRIGGER)
    assert check(world) == ""


@pytest.mark.parametrize(
    "columns, statements, said",
    [
        (f"writer text, {STAMPED}", ("CREATE INDEX ON notes (xact)", TRIGGER), "public.notes has no column author"),
        (f"author int, {STAMPED}", (INDEXES, TRIGGER), "public.notes.author is integer, and declared as text"),
        (f"author varchar, {STAMPED}", (INDEXES, TRIGGER), "public.notes.author is varchar, and declared as text"),
        ("author text", (), "public.notes has no column xact: run python -m ingest_service adopt notes"),
        ("author text, xact text", ("CREATE INDEX ON notes (author)", TRIGGER), "xact is text, and has to be bigint"),
        (f"author text, {STAMPED}", ("CREATE INDEX ON notes (author)", TRIGGER), "public.notes has no index on xact"),
        (f"author text, {STAMPED}", ("CREATE INDEX ON notes (xact)", TRIGGER), "no index of public.notes begins with"),
        (
            f"author text, {STAMPED}",
            ("CREATE INDEX ON notes (xact); CREATE INDEX ON notes (author DESC)", TRIGGER),
            "no index of public.notes begins with (author), ascending",
        ),
        (
            f"author text, size int, {STAMPED}",
            ("CREATE INDEX ON notes (xact); CREATE INDEX ON notes (author) WHERE size > 0", TRIGGER),
            "no index of public.notes begins with (author)",
        ),
        (f"author text, {STAMPED}", (INDEXES,), "public.notes has no trigger that stamps updated rows"),
        (
            f"author text, {STAMPED}",
            (INDEXES, TRIGGER, "ALTER TABLE notes DISABLE TRIGGER rollcall_stamp_xact"),
            "the trigger of public.notes that stamps updated rows is disabled",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_remedy(world, notes, columns, statements, said):
    make(world, columns, *statements)
    assert said in check(world)


def test_what_does_not_fit_fails_that_counter_alone_until_it_does(world, notes, monkeypatch):
    make(world, f"author text, {STAMPED}", INDEXES)
    servers.sql(world.primary, "INSERT INTO notes (author) VALUES ('ann'), (NULL), ('ann')")
    monkeypatch.setattr(declarations, "COUNTERS", (AUTHORS, *declarations.COUNTERS))
    world.post("ann")
    world.replay()
    with pytest.raises(DoesNotFit, match="has no trigger"):
        world.build("authors")
    world.build("cities", "users")
    assert world.exact(("cities", "users"))
    servers.sql(world.primary, TRIGGER)
    world.replay()
    world.build("authors")
    assert world.set("authors") == {b"ann"}


def test_what_a_condition_leaves_out_and_NULL_are_no_members_anywhere(world, notes, monkeypatch):
    """In a build, by catch-up, for a reconcile both ways."""
    shown = Counter("shown", NOTES, ("author", "size"), where="author NOT LIKE 'x%'")
    make(
        world,
        f"author text, size int, {STAMPED}",
        "CREATE INDEX ON notes (author, size)",
        "CREATE INDEX ON notes (xact)",
        TRIGGER,
    )
    monkeypatch.setattr(declarations, "COUNTERS", (*declarations.COUNTERS, shown))
    servers.sql(world.primary, "INSERT INTO notes VALUES ('ann', 1), ('ann', NULL), (NULL, 1), ('xeno', 1)")
    world.replay()
    world.build("shown")
    assert world.set("shown") == {b'["ann","1"]'}
    servers.sql(world.primary, "INSERT INTO notes VALUES ('bob', 2), ('bob', NULL), (NULL, 2), ('xeno', 2)")
    world.replay()
    world.catch_up("shown")
    assert world.set("shown") == {b'["ann","1"]', b'["bob","2"]'} and world.exact(("shown",))
    servers.sql(world.primary, "UPDATE notes SET author = 'x' || author WHERE author = 'bob'")
    world.redis.srem(keys.of_counter("shown").members, '["ann","1"]')
    world.redis.sadd(keys.of_counter("shown").members, '["xeno","1"]', '["","1"]')
    world.replay()
    run = world.reconcile("shown")
    assert world.set("shown") == {b'["ann","1"]'}
    assert (run.findings["shown"].missing, run.findings["shown"].extra) == (1, 3)


@pytest.fixture
def odd(world, notes) -> Iterator[None]:
    """A collation, as if the indexes over it were made with an older version of the server's libraries."""
    servers.sql(world.primary, "CREATE COLLATION odd (provider = builtin, locale = 'C.UTF-8')")
    make(world, f"author text COLLATE odd, size int, {STAMPED}", INDEXES, TRIGGER)
    yield
    servers.sql(world.primary, "DROP TABLE notes; DROP COLLATION odd")


def test_a_collation_of_another_version_refuses_whatever_relies_on_its_order(world, odd, monkeypatch):
    """A build and a reconcile. Catching up by xact continues."""
    monkeypatch.setattr(declarations, "COUNTERS", (AUTHORS,))
    servers.sql(world.primary, "INSERT INTO notes VALUES ('ann')")
    outdated = "UPDATE pg_collation SET collversion = '0' WHERE collname = 'odd'"
    servers.sql(world.primary, outdated)
    world.replay()
    assert "has version 1 on this server, and its indexes were made with 0" in check(world)
    assert "ALTER COLLATION public.odd REFRESH VERSION" in check(world)
    with pytest.raises(DoesNotFit, match="has version 1 on this server"):
        world.build("authors")
    servers.sql(world.primary, "ALTER COLLATION odd REFRESH VERSION")
    world.replay()
    world.build("authors")
    servers.sql(world.primary, outdated)
    servers.sql(world.primary, "INSERT INTO notes VALUES ('bob')")
    world.replay()
    world.catch_up("authors")
    assert world.set("authors") == {b"ann", b"bob"}
    run = world.reconcile("authors")
    assert run.status == "failed" and "has version 1 on this server" in run.detail
    with world.replica.snapshot(AUTHORS) as snapshot, pytest.raises(DoesNotFit):
        snapshot.without_row(AUTHORS, [("ann",)])


def test_a_column_of_the_database_s_own_collation_has_the_version_of_the_database(world, notes):
    make(world, f"author text, size int, {STAMPED}", INDEXES, TRIGGER)
    servers.sql(world.primary, "UPDATE pg_database SET datcollversion = '0' WHERE datname = current_database()")
    try:
        world.replay()
        assert "ALTER DATABASE … REFRESH COLLATION VERSION" in check(world)
    finally:
        servers.sql(
            world.primary,
            "UPDATE pg_database SET datcollversion = pg_database_collation_actual_version(oid)"
            " WHERE datname = current_database()",
        )
        world.replay()
    assert check(world) == ""
