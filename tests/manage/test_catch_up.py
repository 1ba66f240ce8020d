"""Catch-up: each rule of the protocol, and the race that it prevents."""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from compose.local.ordinary_user import own
from manage_service.protocol import catch_up, sweep
from manage_service.stores import connect_for_passes
from shared_models.declarations import get_counter
from shared_models.protocol import keys, states, steps
from tests import servers
from tests.manage.world import pass_over

USERS = get_counter("users")


def test_rows_that_ingest_did_not_count_are_counted(world):
    world.build()
    world.store("ann", "bob")
    world.replay()
    assert world.catch_up().added == 2
    assert world.set() == {b"ann", b"bob"}


def test_the_cursor_stays_below_a_transaction_that_is_still_open_while_later_ones_commit(world):
    world.build()
    slow = world.begin().insert("slow")
    world.store("quick")
    world.replay()
    world.catch_up()
    assert world.set() == {b"quick"}, "a later row is counted though an older transaction is open"
    assert world.state().cursor <= slow.xact

    slow.commit()
    world.replay()
    world.catch_up()
    assert world.set() == {b"quick", b"slow"}
    assert world.state().cursor > slow.xact


def test_rows_whose_ids_are_lower_than_those_already_caught_up_are_not_missed(world):
    world.build()
    early = world.begin().insert("early")  # takes its id and its xact now
    for name in ("a", "b", "c"):
        world.store(name)
        world.replay()
        world.catch_up()
    early.commit()
    world.replay()
    world.catch_up()
    assert world.exact(["users"])


def test_a_pass_works_where_the_url_leads_also_over_a_unix_socket(world, second_valkey):
    """… and not over TCP, to whatever Redis listens at the usual port."""
    folder = Path(tempfile.mkdtemp(prefix="rollcall-"))
    own(folder)
    try:
        with second_valkey(unixsocket=str(folder / "socket")).client() as there:
            with connect_for_passes(f"unix://{folder / 'socket'}?db=0") as redis:
                steps.record(redis, {"users": [b"ann"]})
            assert there.smembers(keys.of_counter("users").members) == {b"ann"}
    finally:
        shutil.rmtree(folder)


def test_a_pass_over_a_lost_connection_is_void(world, second_valkey):
    """Redis restarts from an older save between the adds and the cursor. Another connection might lead to another server, too."""
    valkey = second_valkey(appendonly="no", save="")
    world.valkey, world.redis = valkey, type(world.redis).from_url(valkey.url)
    world.build()
    world.redis.save()
    world.store("ann")
    world.replay()

    redis = world.passes()
    was = states.read_state(redis, "users")
    assert was.cursor is not None
    steps.record(redis, {"users": [b"ann"]})
    valkey.kill()
    valkey.start()  # with the save: the cursor is there, ann is not
    assert world.set() == set() and world.state().cursor == was.cursor
    with pytest.raises(RedisError, match="lost"):
        for _ in range(2):  # the first may only find the broken pipe
            with pytest.raises(RedisError):
                steps.advance(redis, "users", was, was.cursor + 1000, None)
            steps.advance(redis, "users", was, was.cursor + 1000, None)
    assert world.state().cursor == was.cursor

    world.catch_up()
    assert world.set() == {b"ann"}


def test_redis_restarted_from_an_older_save_is_caught_up_from_the_older_cursor(world, second_valkey):
    valkey = second_valkey(appendonly="no", save="")
    world.valkey, world.redis = valkey, type(world.redis).from_url(valkey.url)
    world.build()
    world.redis.save()
    world.post("ann")
    world.store("bob")
    world.replay()
    world.catch_up()
    assert world.set() == {b"ann", b"bob"}
    valkey.kill()
    valkey.start()
    assert world.set() == set()
    world.catch_up()
    assert world.set() == {b"ann", b"bob"}


def test_two_passes_at_once_move_the_cursor_once_and_never_back(world):
    world.build()
    world.store("ann")
    world.replay()
    was = world.state()
    world.catch_up()
    moved = world.state().cursor
    assert moved > was.cursor
    assert steps.advance(world.redis, "users", was, was.cursor, None) is False
    assert world.state().cursor == moved


def test_a_cursor_is_not_set_on_a_counter_that_was_lost_during_the_pass(world):
    world.build()
    was = world.state()
    world.redis.flushall()
    assert steps.advance(world.redis, "users", was, was.cursor + 1, None) is False
    assert world.state().cold


def test_a_cold_counter_is_left_alone(world):
    world.store("ann")
    world.replay()
    assert world.catch_up().behind.startswith("the counter is cold")
    assert world.state().cold and world.set() == set()


def test_a_cursor_of_another_history_is_not_moved(world):
    world.build()
    world.redis.hset(keys.of_counter("users").state, "source", "1/1/1")
    world.store("ann")
    world.replay()
    assert "belongs to 1/1/1" in world.catch_up().behind
    assert world.set() == set()


def test_a_replica_that_came_back_earlier_does_not_move_the_cursor_back(world):
    world.build()
    ahead = world.state().cursor + 1_000_000
    world.redis.hset(keys.of_counter("users").state, "cursor", ahead)
    assert "the cursor is at" in world.catch_up().behind
    assert world.state().cursor == ahead


def test_many_missed_rows_are_caught_up_in_passes_of_bounded_size(world, monkeypatch):
    monkeypatch.setattr(catch_up, "PASS_ROWS", 10)
    world.build()
    for start in range(0, 50, 5):
        world.store(*(f"user{n}" for n in range(start, start + 5)))
    world.replay()
    passes = 1
    while not (did := world.catch_up()).finished:
        assert 0 < did.read_members <= 15
        passes += 1
    assert passes >= 4
    assert world.exact(["users"])


def test_one_transaction_larger_than_a_pass_is_not_cut_in_two(world, monkeypatch):
    monkeypatch.setattr(catch_up, "PASS_ROWS", 10)
    world.build()
    world.store(*(f"user{n}" for n in range(40)))
    world.replay()
    while not world.catch_up().finished:
        pass
    assert world.exact(["users"])


def test_an_updated_row_is_caught_up_with_its_new_values(world):
    world.post("ann")
    world.replay()
    world.build()
    servers.sql(world.primary, "UPDATE message SET username = 'bea'")
    world.replay()
    world.catch_up()
    assert b"bea" in world.set()


def test_complete_through_stands_still_while_replay_does_and_moves_on_with_it(world):
    world.build()
    world.store("ann")
    world.replay()
    world.catch_up()
    with world.replay_paused():
        before = world.state().complete_through
        world.store("bob")
        world.catch_up()
        assert world.state().complete_through == before
        assert b"bob" not in world.set()
    world.replay()
    world.catch_up()
    assert world.state().complete_through > before


def test_complete_through_is_never_later_than_a_row_that_is_not_counted(world):
    """Ask the primary's clock before each commit: only rows that are committed after `complete_through` may be missing."""
    world.build()
    for n in range(20):
        with world.replay_paused():
            ((before,),) = servers.sql(world.primary, "SELECT clock_timestamp()")
            world.store(f"user{n}")
            pass_over(get_counter("users"), world.replica, world.passes())
            through = world.state().complete_through
            assert f"user{n}".encode() not in world.set()
            assert through <= before
        world.replay()
        world.catch_up()


def test_a_counter_whose_set_was_deleted_is_cold_and_not_zero(world):
    world.post("ann", "bob")
    world.replay()
    world.build()
    world.catch_up()
    world.redis.delete(keys.of_counter("users").members)
    world.catch_up()
    assert world.state().cold and not world.state("cities").cold
    world.build()
    assert world.exact()


def test_a_counter_over_an_empty_table_is_live_and_zero(world):
    world.build()
    world.post("ann")
    world.replay()
    world.catch_up()
    world.erase("ann")
    world.replay()
    world.reconcile()
    world.catch_up()
    assert not world.state().cold and world.state().count == 0


def test_a_set_that_was_deleted_and_has_new_members_is_cold_all_the_same(world):
    """At once, and not when the keeper looks next: the set is smaller than what was recorded."""
    world.post("ann", "bob")
    world.replay()
    world.build()
    world.catch_up()
    world.redis.delete(keys.of_counter("users").members)
    assert world.state().cold
    world.post("cid")
    assert world.state().cold and world.state().condition == "changed"
    world.replay()
    world.catch_up()
    assert world.state().cold
    world.reconcile("users")
    assert world.exact() and not world.state().cold


def test_the_first_member_of_an_empty_counter_is_counted_at_once(world):
    world.build()
    world.post("ann")
    assert not world.state().cold and world.state().count == 1
    world.replay()
    world.catch_up()
    assert not world.state().cold and world.exact()


@pytest.mark.parametrize("gone", [("members", "intake"), ("intake",)], ids=str)
def test_a_counter_whose_intake_was_deleted_is_lost_however_many_members_come_then(world, gone, monkeypatch):
    world.post("ann", "bob")
    world.replay()
    world.build()
    world.catch_up()
    world.redis.delete(*(getattr(keys.of_counter("users"), key) for key in gone))
    world.post("cid")
    assert world.state().lost
    world.replay()
    world.build("users")
    if "members" not in gone:  # nobody knows where these members are from: a reconcile has to look
        assert world.state().condition == "changed"
        run = world.reconcile("users", wait_seconds=0.05)
        assert "has to show those of 10 s later" in run.detail, "an acknowledged member may be without its row yet"
        monkeypatch.setattr(sweep, "RESET_SLACK", timedelta())
        world.store("dora")
        world.replay()
        world.reconcile("users")
    world.catch_up()
    assert world.exact() and not world.state().cold


def test_a_size_that_is_no_number_is_no_reason_to_lose_a_member(world):
    world.post("ann")
    world.replay()
    world.build()
    world.redis.hset(keys.of_counter("users").intake, "size", "many")
    world.post("bob")
    assert world.set() == {b"ann", b"bob"} and world.state().lost
    assert world.state().disbelieved == ("size",)
    world.replay()
    world.build("users")
    world.reconcile("users")
    world.catch_up()
    assert world.exact() and not world.state().cold


def test_rows_above_an_open_transaction_are_read_once(world):
    world.build()
    redis, open_long = world.passes(), world.begin().insert("late")
    for number in range(30):
        world.store(f"user{number:02}")
    world.replay()
    first = pass_over(USERS, world.replica, redis)
    assert first.read_members == 30 and len(world.set()) == 30
    world.store("new")
    world.replay()
    second = pass_over(USERS, world.replica, redis, first.memory)
    assert (second.read_members, second.added) == (1, 1)
    open_long.commit()
    world.replay()
    pass_over(USERS, world.replica, redis, second.memory)
    assert world.exact(["users"])


def test_a_transaction_that_was_open_when_others_were_read_is_read_when_it_ends(world):
    """It began before the last pass, and another one keeps the horizon below it."""
    world.build()
    redis, oldest, middle = world.passes(), world.begin().insert("oldest"), world.begin().insert("middle")
    world.store("young")
    world.replay()
    did = pass_over(USERS, world.replica, redis)
    assert world.set() == {b"young"}
    middle.commit()
    world.replay()
    did = pass_over(USERS, world.replica, redis, did.memory)
    assert (did.read_members, did.added) == (1, 1) and world.set() == {b"young", b"middle"}
    oldest.commit()
    world.replay()
    pass_over(USERS, world.replica, redis, did.memory)
    assert world.exact(["users"])
