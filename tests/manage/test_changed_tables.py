"""A table that becomes another one: rows appear and disappear without an xact, and `complete_through` waits for a reconcile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from manage_service.protocol.build import build
from manage_service.replica import sql as statements
from manage_service.replica.catalog import DoesNotFit
from manage_service.runs.registry import Status
from shared_models import declarations
from shared_models.declarations import Counter, Field, Table
from shared_models.protocol import steps
from tests import servers
from tests.manage.keepers import keeper_at_work, tick_until
from tests.manage.world import World, held_between_steps

AUTHORS = Counter("authors", Table("notes", "public", "notes", (Field("author", "text"),)), ("author",))
MOODS = Counter("moods", Table("notes", "public", "notes", (Field("mood", "enum"),)), ("mood",))
COLUMNS = "author text, mood mood, month int, xact bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint"
TABLE = f"""
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TABLE notes ({COLUMNS}) PARTITION BY RANGE (month);
    CREATE TABLE notes_1 PARTITION OF notes FOR VALUES FROM (1) TO (2);
    CREATE TABLE notes_2 PARTITION OF notes FOR VALUES FROM (2) TO (3);
    CREATE INDEX ON notes (author); CREATE INDEX ON notes (mood); CREATE INDEX ON notes (xact);
    CREATE TRIGGER rollcall_stamp_xact BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION rollcall_stamp_xact();
    INSERT INTO notes VALUES ('ann', 'sad', 1), ('bob', 'ok', 2), ('eve', NULL, 2);
    CREATE TABLE notes_3 ({COLUMNS});
    INSERT INTO notes_3 VALUES ('cid', 'ok', 3)
"""
DROP = "DROP TABLE IF EXISTS notes, notes_2, notes_3, old; DROP TYPE IF EXISTS mood, other"
DETACH = "ALTER TABLE notes DETACH PARTITION notes_2"
ATTACH = "ALTER TABLE notes ATTACH PARTITION notes_2 FOR VALUES FROM (2) TO (3)"
SWAP = """
    ALTER TABLE notes RENAME TO old; CREATE TABLE notes (LIKE old INCLUDING ALL);
    INSERT INTO notes VALUES ('zoe', 'ok', 1, 1);
    CREATE TRIGGER rollcall_stamp_xact BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION rollcall_stamp_xact()
"""
CHANGES = {
    "a partition is attached": "ALTER TABLE notes ATTACH PARTITION notes_3 FOR VALUES FROM (3) TO (4)",
    "a partition is detached": DETACH,
    "a partition is emptied": "TRUNCATE notes_2",
    "the table is emptied": "TRUNCATE notes",
    "another table takes its name": SWAP,
    "columns take each other's names": "ALTER TABLE notes RENAME author TO was; ALTER TABLE notes ADD author text",
    "a label of an enum is renamed": "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'",
    "a partition is rewritten": "ALTER TABLE notes_2 SET UNLOGGED; ALTER TABLE notes_2 SET LOGGED",
}
NO_CHANGES = """
    CREATE INDEX other ON notes (month); ALTER TABLE notes ADD later int; ANALYZE notes; DELETE FROM notes WHERE author = 'eve'
"""


@pytest.fixture(autouse=True)
def notes(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    servers.sql(world.primary, DROP)
    servers.sql(world.primary, TABLE)
    world.replay()
    monkeypatch.setattr(declarations, "COUNTERS", (AUTHORS, MOODS))
    yield
    servers.sql(world.primary, DROP)
    world.replay()


def change(world: World, statements: str) -> None:
    for statement in statements.split(";"):
        servers.sql(world.primary, statement)
    world.replay()


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_table_is_noticed_by_the_next_pass_and_withholds_complete_through_until_it_is_reconciled(world, what):
    names = ("moods",) if "enum" in what else ("authors",)
    world.build()
    world.catch_up(*names)
    before = world.state(*names)
    assert before.withheld == ""
    change(world, CHANGES[what])
    for _ in range(2):
        if "names" in what:
            change(world, "CREATE INDEX ON notes (author)")
        assert "its table has changed" in world.catch_up(*names).behind
    assert world.state(*names).withheld and world.state(*names).complete_through == before.complete_through
    assert world.reconcile(*names).status is Status.DONE
    assert world.exact(names) and world.state(*names).withheld == ""
    assert world.catch_up(*names).behind == ""
    assert world.state(*names).complete_through > before.complete_through


def test_what_leaves_the_rows_where_they_are_is_no_change(world):
    world.build()
    change(world, NO_CHANGES)
    for name in ("authors", "moods"):
        assert world.catch_up(name).behind == "" and world.state(name).withheld == ""


def test_what_changed_while_no_keeper_was_there_is_found_by_the_next_one(world):
    with keeper_at_work() as keeper:
        tick_until(
            keeper, lambda: all(world.state(name).verified_at for name in ("authors", "moods")) and not keeper.job
        )
    change(world, CHANGES["a partition is attached"])
    assert not world.exact()
    with keeper_at_work() as keeper:
        keeper.tick()
        assert world.state("authors").withheld
        tick_until(keeper, lambda: not world.state("authors").withheld and not world.state("moods").withheld)
    assert world.exact() and world.set("authors") == {b"ann", b"bob", b"cid", b"eve"}


def test_a_changed_type_fails_the_reconcile_with_the_reason_and_the_claim_stands_still(world):
    world.build()
    before = world.state("authors").complete_through
    change(world, "ALTER TABLE notes ALTER author TYPE varchar")
    assert "its table has changed" in world.catch_up("authors").behind
    run = world.reconcile("authors")
    assert run.status is Status.FAILED and "author is varchar, and declared as text" in run.detail
    world.catch_up("authors")
    assert world.state("authors").withheld and world.state("authors").complete_through == before


def test_a_fill_begins_anew_where_the_table_has_changed_below_it(world, monkeypatch):
    """What it has read comes back with other rows, or another type."""
    monkeypatch.setattr(statements, "CHUNK_ROWS", 1)
    running = build(AUTHORS, world.replica, world.passes())
    for _ in range(2):
        next(running)
    change(world, "INSERT INTO notes_3 VALUES ('aaa', 'ok', 3, 1); " + CHANGES["a partition is attached"])
    for _ in running:
        pass
    assert b"aaa" in world.set("authors") and world.exact(["authors"]) and world.state("authors").withheld == ""
    running = build(MOODS, world.replica, world.passes())
    next(running)
    change(world, "ALTER TABLE notes ALTER mood TYPE text")
    with pytest.raises(DoesNotFit, match="mood is text, and declared as enum"):
        for _ in running:
            pass


def test_a_part_that_is_away_while_a_run_looks_at_it_is_not_taken_for_gone(world):
    """Also where nobody else has seen it away: the run looks again."""
    world.build()
    servers.sql(world.primary, "DELETE FROM notes WHERE author = 'ann'")
    world.replay()
    with held_between_steps(world.steps(world.ask("authors")), "mark"):
        change(world, DETACH)
    change(world, ATTACH)
    assert "its table has changed" in world.catch_up("authors").behind
    world.reconcile("authors")
    assert world.exact(["authors"]) and world.set("authors") == {b"bob", b"eve"}


def test_a_sweep_takes_nothing_out_once_another_table_was_seen(world, monkeypatch):
    """It was stopped after it had asked a table without the part, which has come back, and was reconciled."""
    world.build()
    change(world, DETACH)
    world.catch_up("authors")
    take_out = steps.sweep

    def late(*arguments, **options):
        monkeypatch.setattr(steps, "sweep", take_out)
        change(world, ATTACH)
        world.catch_up("authors")
        return take_out(*arguments, **options)

    monkeypatch.setattr(steps, "sweep", late)
    with suppress(steps.TableChanged):
        world.reconcile("authors")
    assert world.exact(["authors"]) and world.state("authors").withheld == ""
