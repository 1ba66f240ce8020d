"""Passes that have nothing to read: one snapshot for all counters of a table, and what is no such pass."""

from __future__ import annotations

import psycopg2
import pytest

from manage_service.protocol.catch_up import catch_up_at_rest
from manage_service.protocol.departures import departing
from manage_service.replica import sql
from shared_models import declarations
from shared_models.nodes import only
from shared_models.protocol import keys, states
from tests.manage.world import pass_over

NAMES = ["cities", "users"]


@pytest.fixture
def at_rest(world):
    """Both counters complete, with a row."""
    world.store("ann")
    world.replay()
    world.build()
    return world


def passes(world, memories=None):
    """The passes over both counters that had nothing to read."""
    found = states.read_states(world.redis, NAMES)
    return catch_up_at_rest(declarations.COUNTERS, found, memories or {}, world.replica, only(world.passes()))


def elsewhere(world):
    """A transaction that writes no row of this table."""
    world.ask_primary("CREATE TABLE elsewhere (); DROP TABLE elsewhere")
    world.replay()


def test_all_cursors_move_to_the_horizon_of_one_snapshot(at_rest, monkeypatch):
    before = at_rest.state()
    elsewhere(at_rest)
    opened, snapshot = [], at_rest.replica.snapshot

    def count(*of):
        opened.append(of)
        return snapshot(*of)

    monkeypatch.setattr(at_rest.replica, "snapshot", count)
    did = passes(at_rest)
    assert sorted(did) == NAMES and len(opened) == 1
    assert all(each.finished and not each.behind and not each.read_members for each in did.values())
    users, cities = at_rest.state(), at_rest.state("cities")
    assert users.cursor == cities.cursor > before.cursor
    assert users.complete_through == cities.complete_through > before.complete_through


def test_a_row_is_left_to_a_pass_that_reads_it(at_rest):
    before = at_rest.state()
    at_rest.store("bob")
    at_rest.replay()
    assert passes(at_rest) == {} and at_rest.state() == before
    at_rest.catch_up()
    assert list(passes(at_rest)) == ["users"], "cities still has to read it"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("state", "source", "1/1/1"),
        ("state", "cursor", 1 << 40),
        ("state", "build", "another"),
        ("state", "fingerprint", "of another table"),
        ("intake", "size", 7),
        ("intake", "build", "another"),
    ],
)
def test_a_counter_that_is_not_as_it_has_to_be_is_left_to_its_own_pass(at_rest, name, field, value):
    at_rest.redis.hset(getattr(keys.of_counter("users"), name), field, value)
    before = at_rest.state()
    elsewhere(at_rest)
    assert list(passes(at_rest)) == ["cities"]
    assert at_rest.state() == before


def test_a_counter_that_is_changed_after_it_was_read_keeps_its_cursor(at_rest):
    found = states.read_states(at_rest.redis, NAMES)
    elsewhere(at_rest)
    at_rest.redis.hset(keys.of_counter("users").state, "changed_at", "1")
    did = catch_up_at_rest(declarations.COUNTERS, found, {}, at_rest.replica, only(at_rest.passes()))
    assert did["users"].behind == "the counter was changed meanwhile" and not did["cities"].behind
    assert at_rest.state().cursor == found["users"].cursor < at_rest.state("cities").cursor


def test_nothing_is_claimed_while_a_changed_table_is_not_settled(at_rest):
    at_rest.redis.hset(keys.of_counter("users").state, "settled", "1")
    before = at_rest.state()
    elsewhere(at_rest)
    assert "its table has changed" in passes(at_rest)["users"].behind
    after = at_rest.state()
    assert after.cursor > before.cursor and after.complete_through == before.complete_through


def test_rows_above_the_horizon_that_were_added_are_nothing_to_read(at_rest, monkeypatch):
    open_long, middle = at_rest.begin().insert("open"), at_rest.begin().insert("middle")
    at_rest.store("young")
    at_rest.replay()
    redis = at_rest.passes()
    memories = {each.name: pass_over(each, at_rest.replica, redis).memory for each in declarations.COUNTERS}
    assert passes(at_rest) == {}, "without a memory these rows have to be read again"
    assert sorted(passes(at_rest, memories)) == NAMES
    with monkeypatch.context() as patch:
        patch.setattr(sql, "CHUNK_ROWS", 0)
        assert passes(at_rest, memories) == {}, "there are more of them than one statement looks at"
    middle.commit()
    at_rest.replay()
    assert passes(at_rest, memories) == {}, "it was open when the others were read"
    open_long.commit()


def test_a_locked_table_is_tried_once_for_all_of_its_counters(at_rest):
    with psycopg2.connect(at_rest.primary.url) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE message IN ACCESS EXCLUSIVE MODE")
        elsewhere(at_rest)  # its commit brings the lock to the replica, too
        did = passes(at_rest)
    other.close()
    assert sorted(did) == NAMES and all("holds a lock on the table" in each.behind for each in did.values())


def test_departures_are_looked_for_at_once_and_where_there_are_none_they_are_resolved(at_rest):
    at_rest.reconcile(*NAMES)
    assert departing(declarations.COUNTERS, at_rest.replica, at_rest.passes()) == []
    elsewhere(at_rest)
    passes(at_rest)
    assert at_rest.state().left_through < at_rest.state().cursor
    at_rest.ask_primary("UPDATE message SET username = 'bob'")
    at_rest.replay()
    assert [each.name for each in departing(declarations.COUNTERS, at_rest.replica, at_rest.passes())] == ["users"]
    assert at_rest.state("cities").left_through == at_rest.state("cities").cursor
    assert at_rest.state().left_through < at_rest.state().cursor
