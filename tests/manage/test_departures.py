"""Deletes, updates and TRUNCATE change the counts without a reconcile: real triggers, a real replica, steps chosen by tests."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from manage_service import stores
from manage_service.protocol import bucket_filter
from manage_service.protocol.departures import resolve_departures
from manage_service.replica import sql
from manage_service.runs import registry
from manage_service.runs.execution import execute
from shared_models.declarations import get_counter
from shared_models.nodes import only
from shared_models.protocol import keys, steps
from tests.manage.keepers import keeper_at_work, keeper_process, tick_until
from tests.manage.world import pass_over
from tests.servers import wait_for

USERS = keys.of_counter("users")
HOUR = 3600.0


@pytest.fixture
def noted(world):
    """A world whose counters are complete and reconciled. The migrations have made the triggers."""
    world.post("ann", "bob", "eve")
    world.replay()
    world.reconcile()
    world.ask_primary("TRUNCATE rollcall_triggers.departure")
    world.replay()
    return world


def batch(world, name="users"):
    return resolve_departures(get_counter(name), world.replica, world.passes())


def resolve(world, name="users"):
    """Catch up, then a batch from beginning to end."""
    world.replay()
    world.catch_up(name)
    for progress in batch(world, name):
        assert not progress.waiting, progress


def erase_unnoted(world, username):
    """As where triggers are bypassed: nothing is noted."""
    world.ask_primary("DELETE FROM message WHERE username = %s; DELETE FROM rollcall_triggers.departure", username)


def runs(world):
    return registry.latest(world.redis, 100)


def test_a_deleted_member_leaves_without_a_reconcile(noted):
    before = len(runs(noted))
    noted.erase("ann")
    resolve(noted)
    assert noted.set() == {b"bob", b"eve"} and not noted.state().cold
    assert len(runs(noted)) == before
    assert noted.state().left_through == noted.state().cursor and not noted.redis.exists(USERS.departing)


def test_a_member_that_still_has_a_row_stays(noted):
    noted.post("ann", city="Troy")
    noted.ask_primary("DELETE FROM message WHERE username = 'ann' AND city = 'Troy'")
    resolve(noted)
    resolve(noted, "cities")
    assert noted.exact()
    assert b"ann" in noted.set() and noted.redis.scard(keys.of_counter("cities").members) == 1


def test_an_update_moves_a_member(noted):
    noted.ask_primary("UPDATE message SET username = 'zoe' WHERE username = 'ann'")
    resolve(noted)
    assert noted.set() == {b"bob", b"eve", b"zoe"} and not noted.state().cold


def test_what_is_not_caught_up_yet_is_not_read(noted):
    """A record above the cursor may still come, and would bring the member back."""
    late = noted.store("late")
    noted.erase("late")
    noted.replay()
    for _ in batch(noted):
        pass
    assert noted.state().left_through <= late.xact
    late.count()
    resolve(noted)
    assert noted.exact(["users"])


def test_a_record_that_comes_after_its_departure_adds_nothing(noted):
    late = noted.store("late")
    noted.erase("late")
    resolve(noted)
    with pytest.raises(steps.TooLate):
        late.count()
    assert noted.exact(["users"]) and not noted.state().cold


def test_a_late_record_of_members_that_are_there_is_no_failure(noted):
    late = noted.store("late")
    resolve(noted)
    late.count()
    assert noted.exact(["users"])


def test_a_member_that_was_recorded_before_the_mark_is_waited_for(noted):
    noted.erase("ann")
    noted.replay()
    noted.catch_up()
    with noted.replay_paused():
        noted.post("ann")
        resolving = batch(noted)
        assert [next(resolving).phase, next(resolving).phase] == ["mark", "fence"]
        assert next(resolving).waiting
    noted.replay()
    for _ in resolving:
        pass
    assert noted.exact(["users"]) and b"ann" in noted.set()


def test_a_batch_that_waits_for_an_impossible_watermark_goes_on_when_the_keeper_has_set_it_again(noted, monkeypatch):
    monkeypatch.setattr("manage_service.protocol.sweep.RESET_SLACK", timedelta(0))
    noted.erase("ann")
    noted.replay()
    noted.catch_up()
    at = keys.of_counter("users")
    noted.redis.hset(at.intake, "watermark", 10**15)
    resolving = batch(noted)
    assert [next(resolving).phase, next(resolving).phase] == ["mark", "fence"]
    with noted.replica.snapshot() as snapshot:
        steps.reset_watermark(noted.redis, "users", noted.state(), snapshot.xmax - 1, snapshot.source)
    assert next(resolving).waiting  # the replica has to show commits from after it
    noted.store("zoe")
    noted.replay()
    for progress in resolving:
        assert not progress.waiting
    assert noted.set() == {b"bob", b"eve"}


def test_the_fence_stays_where_it_was_while_ingest_goes_on(noted):
    noted.erase("ann")
    noted.replay()
    noted.catch_up()
    with noted.replay_paused():
        noted.post("first")
        resolving = batch(noted)
        assert next(resolving).phase == "mark"
        assert next(resolving).waiting
    noted.replay()
    with noted.replay_paused():
        noted.post("second", "bob")
        assert next(resolving).phase == "sweep"
    for _ in resolving:
        pass
    assert noted.set() == {b"eve", b"bob", b"first", b"second"}


def test_a_member_that_is_recorded_between_fence_and_sweep_stays(noted):
    """The replica does not show its new row: it stays only because the record removes the mark."""
    noted.erase("ann")
    noted.replay()
    noted.catch_up()
    with noted.replay_paused():
        noted.post("first")
        resolving = batch(noted)
        assert next(resolving).phase == "mark"
        assert next(resolving).waiting
    noted.replay()
    with noted.replay_paused():
        noted.post("ann")
        assert [progress.phase for progress in resolving] == ["sweep"]
        assert b"ann" in noted.set()
    noted.replay()
    assert noted.exact(["users"])


def test_a_keeper_that_dies_between_mark_and_sweep_leaves_the_batch_to_the_next(noted):
    noted.erase("ann")
    noted.replay()
    noted.catch_up()
    dead = batch(noted)
    next(dead)
    before = noted.state().left_through
    resolve(noted)
    assert noted.exact(["users"]) and noted.state().left_through > before
    for _ in dead:  # it wakes up again
        pass
    assert noted.exact(["users"]) and not noted.state().cold


def test_a_keeper_that_wakes_up_makes_no_marks_over_those_of_another(noted):
    steps.begin_departing(noted.redis, "users", "first")
    steps.begin_departing(noted.redis, "users", "second")
    assert steps.mark_departing(noted.redis, "users", "second", [b"ann"])
    assert not steps.mark_departing(noted.redis, "users", "first", [b"ann"])
    assert noted.redis.hget(USERS.departing, "ann") == b"second"
    was = noted.state()
    assert not steps.resolve(noted.redis, "users", was, "first", was.cursor)
    assert noted.redis.exists(USERS.departing)


@pytest.mark.parametrize("name", ["users", "cities"])
def test_one_departure_may_have_many_members(noted, name):
    noted.post("ann", "kim", city="Troy")
    noted.replay()
    noted.catch_up(name)
    noted.ask_primary("DELETE FROM message WHERE username <> 'bob'; UPDATE message SET username = 'zoe', city = 'Rome'")
    noted.replay()
    with noted.replica.snapshot(get_counter(name)) as snapshot:
        _, members = snapshot.departed(get_counter(name), 0, snapshot.horizon)
    left = {"users": ["ann", "bob", "eve", "kim"], "cities": ["Ithaca", "Troy"]}[name]
    assert sorted(member[-1] for member in members) == left
    resolve(noted, name)
    assert noted.exact([name])


def test_a_batch_ends_at_a_transaction(noted, monkeypatch):
    monkeypatch.setattr(sql, "BATCH_DEPARTURES", 2)
    noted.post(*(f"user {number}" for number in range(6)))
    for number in range(6):
        noted.erase(f"user {number}")
    noted.replay()
    noted.catch_up()
    before, batches = noted.state().left_through, batch(noted)
    while noted.state().left_through == before:
        next(batches)
    assert 1 <= len(noted.set() - noted.table(get_counter("users"))) < 6
    for _ in batches:
        pass
    assert noted.exact(["users"]) and noted.state().left_through == noted.state().cursor


@pytest.mark.parametrize("statement", ["TRUNCATE message", "DELETE FROM message"])
def test_everything_may_leave_at_once(noted, statement, monkeypatch):
    if statement.startswith("DELETE"):
        monkeypatch.setattr(sql, "MOST_DEPARTED", 2)
    with keeper_at_work(reconcile_seconds=HOUR) as keeper:
        noted.ask_primary(statement)
        noted.replay()
        tick_until(keeper, lambda: noted.exact(["users"]), "all have left")
        tick_until(keeper, lambda: noted.state().left_through is not None)
    assert not noted.state().cold


def test_bypassed_triggers_are_mended_by_the_reconcile(noted):
    erase_unnoted(noted, "ann")
    resolve(noted)
    assert noted.set() - noted.table(get_counter("users")) == {b"ann"}
    noted.reconcile("users")
    assert noted.exact(["users"])


def test_a_reconcile_resolves_what_has_left_before_it(noted):
    noted.redis.hdel(USERS.state, "left_through")
    noted.erase("ann")
    resolve(noted)
    assert noted.state().left_through is None and b"ann" in noted.set()
    cursor = noted.state().cursor
    noted.reconcile("users")
    assert noted.state().left_through == cursor and noted.exact(["users"])


def test_a_check_resolves_nothing(noted):
    noted.redis.hdel(USERS.state, "left_through")
    noted.reconcile("users", mode=registry.Mode.CHECK)
    assert noted.state().left_through is None


def test_a_transaction_left_open_delays_departures_and_nothing_else(noted):
    held = noted.begin().insert("held")
    noted.erase("ann")
    noted.post("new")
    resolve(noted)
    assert {b"ann", b"new"} <= noted.set()
    held.commit()
    resolve(noted)
    assert noted.exact(["users"])


@pytest.mark.parametrize("told", [True, False])
def test_departures_beside_a_run_hide_no_extra_member(noted, told, monkeypatch):
    """In the filter the one that left would make room for one that has no row: here all fall into one bucket."""
    monkeypatch.setattr(bucket_filter, "MASK", 0)
    erase_unnoted(noted, "eve")
    noted.replay()
    noted.catch_up()
    filters: dict[str, bucket_filter.BucketFilter] = {}
    run = noted.steps_in(filters)
    for progress in run:
        if progress.phase == "missing" and progress.read:
            break
    noted.erase("ann")
    noted.replay()
    noted.catch_up()
    # A run of another process has no filter that could be told of it.
    swept = filters["users"].take_swept if told else lambda members: None
    for _ in resolve_departures(get_counter("users"), noted.replica, noted.passes(), swept):
        pass
    assert noted.set() == {b"bob", b"eve"}
    for _ in run:
        pass
    assert noted.set() == {b"bob"}


def test_departures_beside_a_run_void_its_shortcut(noted):
    """As many members before as after, and as many in the table: but another one has left, and another one has come."""
    erase_unnoted(noted, "eve")
    noted.replay()
    noted.catch_up()
    run = noted.steps_in({})
    next(run)
    noted.post("kim")
    noted.replay()
    noted.catch_up()
    for progress in run:
        if progress.phase == "missing" and progress.read:
            break
    noted.erase("ann")
    resolve(noted)
    assert noted.redis.scard(USERS.members) == 3
    for _ in run:
        pass
    assert noted.exact(["users"])


def test_a_keeper_takes_out_what_is_deleted_beside_concurrent_inserts(noted):
    """Exact, member by member, with no reconcile in between."""
    before = len(runs(noted))
    failures: list[psycopg2.Error] = []

    def write(first: int) -> None:
        try:
            with psycopg2.connect(noted.primary.url) as connection, connection.cursor() as cursor:
                for number in range(60):
                    name = f"user {(first * 7 + number) % 40}"
                    cursor.execute(
                        "INSERT INTO message (state, city, username, message) VALUES ('NY', %s, %s, '')", (name, name)
                    )
                    connection.commit()
                    if number % 3 == first % 3:
                        cursor.execute("DELETE FROM message WHERE username = %s", (f"user {number % 40}",))
                    elif number % 5 == 0:
                        cursor.execute(
                            "UPDATE message SET username = username || '!' WHERE username = %s", (f"user {number % 7}",)
                        )
                    connection.commit()
        except psycopg2.Error as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(first,)) for first in range(3)]
    with keeper_at_work(reconcile_seconds=HOUR) as keeper:
        for writer in writers:
            writer.start()
        tick_until(keeper, lambda: not any(writer.is_alive() for writer in writers), "the writers are done")
        assert not failures
        noted.replay()
        tick_until(keeper, noted.exact, "exact")
    assert len(runs(noted)) == before


def test_a_keeper_that_is_killed_between_mark_and_sweep_goes_on_exactly(noted):
    with keeper_process(noted) as first:
        wait_for(lambda: noted.redis.hget(keys.KEEPER, "ticked_at"), "a tick")
        with psycopg2.connect(noted.primary.url) as deleter, deleter.cursor() as cursor:
            cursor.execute("DELETE FROM message WHERE username = 'ann'")
            held = noted.begin().insert("held")
            noted.post("new")  # what it raises the watermark to is not shown as long as the other one is open
        deleter.close()
        wait_for(lambda: noted.redis.hlen(USERS.departing), "its mark")
        first.kill()
        first.wait()
    assert b"ann" in noted.set()
    held.commit()
    noted.redis.delete(keys.of_lock("keeper"))
    noted.replay()
    with keeper_at_work(reconcile_seconds=HOUR) as keeper:
        tick_until(keeper, lambda: noted.exact() and noted.state().left_through == noted.state().cursor, "exact")
    assert not noted.redis.exists(USERS.departing)


def test_a_row_with_an_xact_of_another_history_leaves_like_any_other(noted):
    noted.ask_primary("UPDATE message SET xact = 1000000000000")
    noted.erase("ann")
    noted.ask_primary("UPDATE message SET username = 'zoe' WHERE username = 'bob'")
    resolve(noted)
    assert noted.set() == {b"eve", b"zoe"}


def test_a_run_does_not_believe_a_replica_that_came_back_earlier(noted):
    """It shows a row that was deleted below the cursor, and the run would say that all such departures are resolved."""
    before = noted.state().left_through
    with noted.replay_paused():
        noted.erase("bob")
        ahead = stores.connect_replica(noted.primary.url)
        pass_over(get_counter("users"), ahead, noted.passes())
        run = noted.ask("users")

        def snapshot(counter=None):
            return (ahead if run.phase in ("", "missing") else noted.replica).snapshot(counter)

        going_back: Any = SimpleNamespace(snapshot=snapshot)
        running = execute(run, going_back, only(noted.passes()), wait_seconds=60.0)
        assert next(progress for progress in running if progress.waiting).phase in ("extra", "mark")
        assert noted.set() == {b"ann", b"bob", b"eve"} and noted.state().left_through == before
    noted.replay()
    for _ in running:
        pass
    ahead.close()
    assert (run.status, noted.set()) == ("done", {b"ann", b"eve"}), run.detail
    assert noted.state().left_through > before
