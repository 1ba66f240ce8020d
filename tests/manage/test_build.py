"""Build: cold until complete, whatever happens on the way."""

from __future__ import annotations

from datetime import timedelta

import pytest
from redis.exceptions import RedisError

from manage_service.protocol import build, sweep
from manage_service.protocol.build import read_fill
from manage_service.replica import sql
from shared_models.declarations import get_counter
from shared_models.protocol import keys, steps
from tests import servers

USERS = get_counter("users")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(sql, "CHUNK_ROWS", 10)
    monkeypatch.setattr(sql, "CHUNK_JUMPS", 10)


def names(count: int) -> list[str]:
    return [f"user{n:03}" for n in range(count)]


def test_a_table_that_was_there_before_the_counter_is_counted_whole(world):
    world.store(*names(100))
    world.replay()
    world.build()
    assert not world.state().cold
    assert world.exact()


def test_an_empty_table_is_a_live_counter_of_zero_members(world):
    world.build()
    assert not world.state().cold and world.state().count == 0


def test_the_empty_text_is_a_member_like_any_other(world, small_chunks):
    world.store("", *names(30))
    world.replay()
    world.build()
    assert b"" in world.set() and world.exact()


def test_a_counter_is_cold_until_the_last_chunk_is_in(world, small_chunks):
    world.store(*names(50))
    world.replay()
    reads = []
    for progress in build.build(USERS, world.replica, world.passes()):
        assert world.state().cold
        assert world.state().filled[0] == progress.read
        reads.append(progress.read)
    assert reads == [10, 20, 30, 40, 50]
    assert not world.state().cold and world.state().filled is None


def test_rows_that_come_during_a_build_are_counted_by_the_first_pass_after_it(world, small_chunks):
    world.store(*names(50))
    world.replay()
    for n, _ in enumerate(build.build(USERS, world.replica, world.passes())):
        world.store(f"a-late-{n}")  # sorts before the position: the build has passed it
        world.replay()
    world.catch_up()
    assert world.exact(["users"])


def test_a_member_acknowledged_during_a_build_stays(world, small_chunks):
    world.store(*names(30))
    world.replay()
    with world.replay_paused():
        steps = build.build(USERS, world.replica, world.passes())
        next(steps)
        world.post("zoe")  # the replica will not show her before the build is done
        for _ in steps:
            pass
        assert not world.state().cold
        assert b"zoe" in world.set()


def test_the_next_keeper_goes_on_from_the_position_of_one_that_was_killed(world, small_chunks):
    world.store(*names(100))
    world.replay()
    steps = build.build(USERS, world.replica, world.passes())
    for _ in range(4):
        next(steps)
    fill = read_fill(USERS, world.redis)
    reads = [progress.read for progress in build.build(USERS, world.replica, world.passes())]
    assert fill is not None and reads[0] > fill.read >= 40
    assert world.exact(["users"])


def test_two_builds_at_once_end_in_one_complete_counter(world, small_chunks):
    world.store(*names(100))
    world.replay()
    one = build.build(USERS, world.replica, world.passes())
    other = build.build(USERS, world.replica, world.passes())
    running = [one, other]
    while running:
        for filling in list(running):
            if next(filling, None) is None:
                running.remove(filling)
    assert not world.state().cold and world.exact(["users"])


def test_a_fill_that_has_been_superseded_neither_adds_nor_promotes(world, small_chunks):
    world.store(*names(30))
    world.replay()
    filling = build.build(USERS, world.replica, world.passes())
    next(filling)
    old = read_fill(USERS, world.redis)
    assert old is not None
    with world.replica.snapshot() as snapshot:
        build.begin_fill(USERS, snapshot, world.redis)
    assert not steps.fill(world.redis, "users", old.token, old.position, b"=x", [b"x"])
    assert steps.promote(world.redis, "users", old.token, old.position) is False
    assert list(filling) == []
    assert world.state().cold and b"x" not in world.set()


def test_redis_emptied_during_a_build_leaves_the_counter_cold(world, small_chunks):
    world.store(*names(50))
    world.replay()
    steps = build.build(USERS, world.replica, world.passes())
    next(steps)
    world.redis.flushall()
    assert list(steps) == []
    assert world.state().cold
    world.build("users")
    assert world.exact(["users"])


@pytest.mark.parametrize("recorded", [(), ("new",)], ids=["alone", "and ingest makes it anew"])
@pytest.mark.parametrize("at", [1, 5], ids=["in the middle", "at the last chunk"])
def test_a_set_deleted_during_a_build_is_never_live_with_a_part_of_its_members(
    world, small_chunks, monkeypatch, recorded, at
):
    monkeypatch.setattr(sweep, "RESET_SLACK", timedelta())  # all clocks are this machine's
    world.store(*names(50))
    world.replay()
    steps = build.build(USERS, world.replica, world.passes())
    for _ in range(at):
        next(steps)
    world.redis.delete(keys.of_counter("users").members)
    if recorded:
        world.post(*recorded)
    assert list(steps) == []
    assert world.state().cold and read_fill(USERS, world.redis) is None
    world.replay()
    world.build("users")
    if recorded:  # the set is not what was recorded: whether it is right now, a reconcile has to say
        assert world.state().condition == "changed"
        world.store(
            "a later commit"
        )  # the intake may have been deleted as well: what was acknowledged has to be shown first
        world.replay()
        world.reconcile("users")
    assert not world.state().cold and world.exact(["users"])


def test_the_first_message_of_all_does_not_end_what_has_not_begun(world, small_chunks):
    """The set comes into being under a fill that has added nothing yet: the build begins again, once."""
    world.store(*names(20))
    world.replay()
    with world.replica.snapshot() as snapshot:
        build.begin_fill(USERS, snapshot, world.redis)
    world.post("first")
    world.replay()
    world.build("users")
    assert not world.state().cold and world.exact(["users"])


def test_redis_restarted_from_a_save_in_the_middle_of_a_build_goes_on_from_there(world, small_chunks, second_valkey):
    valkey = second_valkey(appendonly="no", save="")
    world.valkey, world.redis = valkey, type(world.redis).from_url(valkey.url)
    world.store(*names(100))
    world.replay()
    steps = build.build(USERS, world.replica, world.passes())
    next(steps)
    next(steps)
    world.redis.save()
    saved = read_fill(USERS, world.redis)
    for _ in range(3):
        next(steps)
    valkey.kill()
    valkey.start()
    with pytest.raises(RedisError):
        list(steps)
    assert read_fill(USERS, world.redis) == saved
    world.build("users")
    assert world.exact(["users"])


def test_a_sweep_has_to_see_the_rows_above_an_open_transaction_that_a_fill_claims(world):
    world.build("users")
    slow, ann = world.begin().insert("slow"), world.store("ann")
    world.replay()
    world.redis.hdel(keys.of_counter("users").state, "cursor")
    world.build("users")
    slow.commit()
    state = world.state()
    assert state.cursor <= slow.xact < ann.xact <= state.watermark


def test_a_replica_that_came_back_earlier_is_waited_for(world, small_chunks):
    world.store(*names(50))
    world.replay()
    steps = build.build(USERS, world.replica, world.passes())
    next(steps)
    fill_key = keys.of_counter("users").fill
    lsn = int(world.redis.hget(fill_key, "lsn"))
    steps.close()
    world.redis.hset(fill_key, "lsn", lsn + 10**9)
    assert "came back at an earlier state" in next(build.build(USERS, world.replica, world.passes())).waiting
    assert world.state().cold


def test_another_history_of_the_database_is_read_from_the_start_and_the_count_is_served_meanwhile(world, small_chunks):
    world.store(*names(50))
    world.replay()
    world.build("users")
    through = world.state().complete_through
    world.redis.hset(keys.of_counter("users").state, mapping={"source": "1/1/1", "verified_at": 1})
    world.store("new")
    world.replay()
    for _ in build.build(USERS, world.replica, world.passes()):
        assert not world.state().cold and world.state().complete_through == through
    assert world.state().source != "1/1/1"
    assert world.state().verified_at is None, "what was proved of the old history proves nothing about the new"
    assert world.exact(["users"])


def test_a_fill_begun_in_another_history_begins_again(world, small_chunks):
    world.store(*names(50))
    world.replay()
    next(build.build(USERS, world.replica, world.passes()))
    world.redis.hset(keys.of_counter("users").fill, mapping={"source": "1/1/1", "position": "=user040"})
    world.build("users")
    assert world.exact(["users"])


def test_a_member_of_several_fields_is_built_across_chunks(world, small_chunks):
    for city in ('Quote"y', "Comma,ville", "Back\\slash", "Ünïcode", "New\nLine", *(f"C{n}" for n in range(30))):
        world.store("ann", city=city)
    world.replay()
    world.build()
    assert world.exact()


def test_a_new_counter_over_an_old_table_is_cold_and_is_built(world, monkeypatch):
    from shared_models import declarations

    world.post("ann", city="Rome")
    world.replay()
    world.build()
    states = declarations.Counter("states", declarations.TABLES[0], ("state",))
    monkeypatch.setattr(declarations, "COUNTERS", (*declarations.COUNTERS, states))
    assert world.state("states").cold
    world.build("states")
    assert world.set("states") == {b"NY"} and world.exact()
    servers.sql(world.primary, "UPDATE message SET state = 'CA'")
    world.replay()
    world.reconcile("states")
    assert world.set("states") == {b"CA"}
