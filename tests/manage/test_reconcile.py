"""Reconcile: both directions, exact, and safe against producers. Each rule of mark, fence and sweep with its race."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from manage_service import leases, stores
from manage_service.protocol import bucket_filter, reconcile, sweep
from manage_service.protocol.sweep import fence
from manage_service.replica import snapshots, sql
from manage_service.runs import registry
from manage_service.runs.execution import execute
from manage_service.runs.registry import Mode, Status
from shared_models.declarations import get_counter
from shared_models.nodes import only
from shared_models.protocol import keys, states, steps
from shared_models.protocol.timeline import SOURCE_SQL
from tests.manage.world import held_between_steps, sweep_of

USERS = get_counter("users")
SUSPECTS = keys.of_counter("users").suspects


def drift(run, name="users"):
    return run.findings[name].missing, run.findings[name].extra


def test_a_member_that_was_lost_is_found_and_put_back(world):
    world.post("ann", "bob")
    world.replay()
    world.build()
    world.redis.srem(keys.of_counter("users").members, "ann")
    run = world.reconcile("users")
    assert run.status is Status.DONE and drift(run) == (1, 0)
    assert run.findings["users"].missing_sample == [{"username": "ann"}]
    assert world.exact()


def test_a_member_without_a_row_is_found_and_taken_out(world):
    world.post("ann", "bob")
    world.erase("ann")
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "ann", "ghost")
    run = world.reconcile("users")
    assert drift(run) == (0, 2)
    assert {member["username"] for member in run.findings["users"].extra_sample} == {"ann", "ghost"}
    assert world.set() == {b"bob"}


def test_junk_in_the_set_is_taken_out(world):
    world.post("ann")
    world.replay()
    world.build()
    world.redis.sadd(
        keys.of_counter("cities").members, "junk", '["NY", "Ithaca"]', '["NY"]', b"\xff\x00", '["NY","a\\u0000"]'
    )
    world.redis.sadd(keys.of_counter("users").members, b"\xff", b"nul\x00", "")
    run = world.reconcile()
    assert drift(run, "cities") == (0, 5) and drift(run, "users") == (0, 3)
    assert world.exact()


def test_a_check_finds_the_same_drift_and_changes_nothing(world):
    world.post("ann", "bob", "cid")
    world.replay()
    world.build()
    members = keys.of_counter("users").members
    world.redis.srem(members, "ann")
    world.redis.sadd(members, "ghost", "wraith")
    before = world.set()
    checked = world.reconcile("users", mode=Mode.CHECK)
    assert world.set() == before and not world.redis.exists(SUSPECTS)
    assert world.state().drift == states.Drift(missing=1, extra=2)
    repaired = world.reconcile("users")
    assert drift(checked) == drift(repaired) == (1, 2)
    assert world.exact()
    assert drift(world.reconcile("users")) == (0, 0)


def test_a_row_that_is_on_its_way_is_no_drift(world):
    """Committed and replayed, not yet counted: its ingest is between commit and Redis, or catch-up has not come by."""
    world.post("ann")
    world.replay()
    world.build()
    world.catch_up()
    world.store("bob")
    world.replay()
    run = world.reconcile("users")
    assert drift(run) == (0, 0)
    assert world.exact()


def test_a_member_recorded_during_the_scan_is_not_swept(world):
    """Marked, then recorded: recording takes the mark off."""
    world.post("ann")
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "new", "ghost")
    with held_between_steps(world.steps(world.ask("users")), "mark"):
        assert world.redis.hexists(SUSPECTS, "new")
        world.post("new")
    assert b"new" in world.set() and b"ghost" not in world.set()
    world.replay()
    assert world.exact()


def test_a_member_recorded_before_its_mark_is_not_swept_while_replay_is_paused(world):
    """The replica does not show its row yet: the fence waits until it does."""
    world.post("ann")
    world.replay()
    world.build()
    run = world.ask("users")
    with world.replay_paused():
        world.post("new")
        running_steps = world.steps(run)
        waiting = next(step for step in running_steps if step.waiting)
        assert waiting.phase == "fence" and "acknowledged xact" in waiting.waiting
        assert world.redis.hexists(SUSPECTS, "new")
        for _ in range(5):
            assert next(running_steps).phase == "fence"
        assert b"new" in world.set()
    for _ in running_steps:
        pass
    assert run.status is Status.DONE and drift(run) == (0, 0)
    assert world.exact()


def test_a_run_whose_replica_stays_behind_fails_with_the_reason(world):
    world.post("ann")
    world.replay()
    world.build()
    with world.replay_paused():
        world.post("new")
        run = world.reconcile("users", wait_seconds=0.2)
    assert run.status is Status.FAILED
    assert run.detail.startswith("waited 0.2 s for the replica: ingest has acknowledged xact")
    assert b"new" in world.set()
    assert registry.get(world.redis, run.id).status is Status.FAILED and registry.still_open(world.redis) == []


def test_a_counter_that_waits_in_vain_leaves_the_others_their_turn(world):
    world.post("ann")
    world.replay()
    world.build()
    with world.replay_paused():
        world.post("new", city="Troy")
        run = world.reconcile(wait_seconds=0.2)
    assert run.status is Status.FAILED
    assert run.findings["cities"].failure.startswith("waited 0.2 s for the replica: ")
    assert run.findings["users"].failure.startswith("waited 0.02 s for the replica: ")
    assert run.detail == "; ".join(f"{name}: {run.findings[name].failure}" for name in ("cities", "users"))


def test_an_older_transaction_that_is_open_holds_the_fence(world):
    """The watermark is above it: its member may be recorded by now, and its row not yet be shown."""
    world.post("ann")
    world.replay()
    world.build()
    slow = world.begin().insert("slow")
    world.post("quick")
    world.redis.sadd(keys.of_counter("users").members, "ghost")
    world.replay()
    run = world.reconcile("users", wait_seconds=0.2)
    assert "an older transaction is still open" in run.detail
    slow.commit().count()
    world.replay()
    assert drift(world.reconcile("users")) == (0, 1)
    assert world.exact()


def sweeper_held_before_its_sweep(world, monkeypatch, between):
    """Run a sweep; `between` happens after its last look at the replica, and before it removes the members.

    `world.swept` are the members removed then: a disturbed run looks again, and repairs its work.
    """
    take_out = steps.sweep

    def held(redis, name, token, members, changed_at):
        monkeypatch.setattr(steps, "sweep", take_out)
        between(token, members)
        done = take_out(redis, name, token, members, changed_at)
        world.swept = done[0]
        return done

    monkeypatch.setattr(steps, "sweep", held)
    return world.reconcile("users")


def test_a_member_recorded_between_the_check_and_the_sweep_stays(world, monkeypatch):
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "back")
    run = sweeper_held_before_its_sweep(world, monkeypatch, lambda token, members: world.post("back"))
    assert world.set() == {b"back"} and drift(run) == (0, 0)


def test_a_member_caught_up_between_the_check_and_the_sweep_stays(world, monkeypatch):
    def between(token, members):
        world.store("back")
        world.replay()
        world.catch_up()

    world.build()
    world.redis.sadd(keys.of_counter("users").members, "back")
    sweeper_held_before_its_sweep(world, monkeypatch, between)
    assert world.set() == {b"back"}


def test_a_member_marked_anew_by_another_sweep_is_left_to_that_one(world, monkeypatch):
    """Recorded, hence unmarked; then marked by a second sweep on a replica that lags: the first must not use that mark."""
    tokens = []

    def between(token, members):
        tokens.append(token)
        with world.replay_paused():
            world.post("back")
            other = sweep_of(world)
            while next(other).phase != "mark":
                pass
            tokens.append(world.redis.hget(SUSPECTS, "back").decode())
            other.close()

    world.build()
    world.redis.sadd(keys.of_counter("users").members, "back")
    sweeper_held_before_its_sweep(world, monkeypatch, between)
    assert tokens[0] != tokens[1]
    assert world.set() == {b"back"} and world.swept == []


def test_a_counter_without_drift_is_verified_by_reading_its_index_once(world):
    world.post("ann", "bob")
    world.replay()
    world.build()
    phases = {step.phase for step in world.steps(world.ask("users"))}
    assert phases == {"missing"} and world.state().drift == states.Drift(0, 0)


def test_one_member_lost_and_one_too_many_do_not_make_up_for_each_other(world):
    world.post("ann", "bob")
    world.replay()
    world.build()
    members = keys.of_counter("users").members
    world.redis.srem(members, "ann")
    world.redis.sadd(members, "ghost")
    assert drift(world.reconcile("users", mode=Mode.CHECK)) == (1, 1)
    assert drift(world.reconcile("users")) == (1, 1)
    assert world.exact()


def test_members_that_share_a_bucket_do_not_make_up_for_each_other(world, monkeypatch):
    monkeypatch.setattr(bucket_filter, "MASK", 0)
    test_one_member_lost_and_one_too_many_do_not_make_up_for_each_other(world)


@pytest.mark.parametrize("mask", [0, 1, bucket_filter.MASK])
def test_drift_is_found_however_members_fall_into_buckets(world, monkeypatch, mask):
    """Chunks on both sides, and members that come in between."""
    monkeypatch.setattr(bucket_filter, "MASK", mask)
    monkeypatch.setattr(sql, "CHUNK_ROWS", 10)
    monkeypatch.setattr(sweep, "CHUNK_FILTERED", 20)
    monkeypatch.setattr(steps, "LOOK_MEMBERS", 7)
    world.post(*(f"user{n:03}" for n in range(100)))
    world.replay()
    world.build()
    members = keys.of_counter("users").members
    world.redis.srem(members, "user003", "user050", "user099")
    world.redis.sadd(members, *(f"ghost{n}" for n in range(5)))
    run = world.ask("users")
    for number, _ in enumerate(world.steps(run)):
        world.post(f"new{number}")
        world.replay()
    assert drift(run) == (3, 5)
    assert world.exact()


def test_only_crowded_buckets_are_asked_about(world, monkeypatch):
    world.post(*(f"user{n}" for n in range(300)))
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "ghost")
    asked: list[bytes] = []
    rowless = sweep.rowless

    def asking(counter, members, snapshot):
        asked.extend(members)
        return rowless(counter, members, snapshot)

    monkeypatch.setattr(sweep, "rowless", asking)
    assert drift(world.reconcile("users")) == (0, 1)
    assert b"ghost" in asked and len(asked) < 30


def test_a_run_that_goes_on_from_the_middle_finds_what_is_too_many(world, monkeypatch):
    """It has no filter of what its predecessor read, nor does the shortcut for counters without drift apply."""
    monkeypatch.setattr(sql, "CHUNK_ROWS", 10)
    world.post(*(f"user{n:03}" for n in range(100)))
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "ghost")
    run = world.ask("users")
    running_steps = world.steps(run)
    for _ in range(4):
        next(running_steps)
    world.redis.delete(keys.of_lock("reconcile:users"))
    taken = registry.get(world.redis, run.id)
    list(execute(taken, world.replica, only(world.passes()), wait_seconds=1))
    assert drift(taken) == (0, 1) and world.exact()


def test_a_member_that_comes_while_the_table_is_read_makes_the_run_look_at_the_set_too(world):
    """Its row is not shown yet: the set has one more than the table, and the two halves must not be mixed up."""
    world.post("ann", "bob")
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "ghost")
    world.erase("bob")
    world.replay()
    running_steps = world.steps(world.ask("users"))
    next(running_steps)
    world.post("new")
    world.replay()
    for _ in running_steps:
        pass
    assert world.exact()


def test_two_runs_at_once_end_exact(world, monkeypatch):
    monkeypatch.setattr(sql, "CHUNK_ROWS", 10)
    monkeypatch.setattr(sweep, "CHUNK_ASKED", 10)
    world.post(*(f"user{n}" for n in range(100)))
    world.replay()
    world.build()
    members = keys.of_counter("users").members
    world.redis.sadd(members, *(f"ghost{n}" for n in range(300)))
    world.redis.srem(members, *(f"user{n}" for n in range(50)))
    running = []
    for _ in range(2):
        running.append(world.steps(world.ask("users")))
        next(running[-1])  # one that is still queued would be the same run
    while running:
        for running_steps in list(running):
            if next(running_steps, None) is None:
                running.remove(running_steps)
    assert world.exact()
    assert [run.status for run in registry.latest(world.redis, 2)] == [Status.DONE, Status.DONE]


def test_the_second_of_two_runs_waits_for_the_first(world):
    world.build()
    first, second = world.steps(world.ask("users")), world.steps(world.ask("users"))
    next(first)
    assert next(second).waiting == "another run is reconciling this counter"
    list(first)
    assert [step for step in second if not step.waiting]


def test_a_run_goes_on_from_its_position_after_its_process_died(world, monkeypatch):
    monkeypatch.setattr(sql, "CHUNK_ROWS", 10)
    world.post(*(f"user{n:03}" for n in range(100)))
    world.replay()
    world.build()
    world.redis.srem(keys.of_counter("users").members, "user005", "user095")
    run = world.ask("users")
    running_steps = world.steps(run)
    for _ in range(4):
        next(running_steps)
    world.redis.delete(keys.of_lock("reconcile:users"))  # the lease of a process that was killed runs out
    taken = registry.get(world.redis, run.id)
    assert taken.findings["users"].read >= 30
    first = next(again := execute(taken, world.replica, only(world.passes()), wait_seconds=1))
    assert first.read > 30
    list(again)
    assert drift(taken) == (2, 0) and world.exact()


def test_who_was_stopped_until_somebody_else_ended_the_run_does_not_write_over_its_end(world, monkeypatch):
    world.post("ann")
    world.replay()
    world.build()
    run = world.ask("users")
    compare_chunk = reconcile.compare_chunk

    def stopped(*args, **options):
        """In the middle of a step, for longer than its lease."""
        monkeypatch.setattr(reconcile, "compare_chunk", compare_chunk)
        world.redis.delete(keys.of_lock("reconcile:users"))
        other = stores.connect_replica(world.replica.dsn)
        list(execute(registry.get(world.redis, run.id), other, only(world.passes()), wait_seconds=1))
        other.close()
        assert registry.get(world.redis, run.id).status is Status.DONE
        monkeypatch.setattr(leases, "LEASE_SECONDS", 0.0)  # time has gone by
        return compare_chunk(*args, **options)

    monkeypatch.setattr(reconcile, "compare_chunk", stopped)
    with pytest.raises(leases.LeaseLost):
        list(world.steps(run))
    assert registry.get(world.redis, run.id).status is Status.DONE


def test_a_counter_lost_during_a_run_is_not_called_verified(world):
    world.post("ann")
    world.replay()
    world.build()
    run = world.ask("users")
    with held_between_steps(world.steps(run), "missing"):
        world.redis.flushall()
    assert run.status is Status.FAILED and "which proves nothing" in run.detail
    assert world.state().verified_at is None and world.state().cold


def test_a_cold_counter_is_built_by_the_run_that_asks_for_it(world):
    world.store("ann")
    world.replay()
    run = world.reconcile("users")
    assert run.status is Status.DONE and not world.state().cold and world.exact(["users"])


def test_cancelling_stops_a_run_after_its_step(world, monkeypatch):
    monkeypatch.setattr(sql, "CHUNK_ROWS", 10)
    world.post(*(f"user{n}" for n in range(100)))
    world.replay()
    world.build()
    run = world.ask("users")
    running_steps = world.steps(run)
    next(running_steps)
    registry.request_cancel(world.redis, run.id)
    assert list(running_steps) == []
    assert registry.get(world.redis, run.id).status is Status.CANCELLED
    assert world.state().verified_at is None
    assert not world.redis.exists(keys.of_lock("reconcile:users"))


def state_of(watermark=0, watermark_source="7/5/2", cursor=10, source="7/5/2", watermark_reset_at=None):
    return states.State(
        count=1,
        cursor=cursor,
        source=source,
        watermark=watermark,
        watermark_source=watermark_source,
        watermark_reset_at=watermark_reset_at,
    )


NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "passes"),
    [
        (state_of(), True),
        (state_of(watermark=19, watermark_source="7/5/2"), True),
        (state_of(watermark=20, watermark_source="7/5/2"), False),
        (state_of(cursor=20), True),
        (state_of(cursor=21), False),
        (state_of(watermark=99, watermark_source="7/5/1"), True),  # a primary that has been replaced
        (state_of(watermark=1, watermark_source="7/5/3"), False),  # the replica does not follow yet
        (state_of(watermark=1, watermark_source="8/5/1"), False),  # another database altogether
        (state_of(watermark=1, watermark_source="7/6/1"), False),  # another database of the same server
        (state_of(watermark=None), False),  # somebody has deleted it
        (state_of(watermark_reset_at=NOON), False),  # what was acknowledged just before may not be shown yet
        (state_of(watermark_reset_at=NOON - timedelta(minutes=2)), True),
    ],
)
def test_the_fence_lets_through_what_shows_all_that_was_acknowledged(state, passes):
    connection: Any = None  # a fence asks nothing
    snapshot = snapshots.Snapshot(connection, source="7/5/2", lsn=0, committed_through=NOON, horizon=20, xmax=20)
    assert (fence(snapshot, state) is None) is passes


def test_a_run_that_waits_at_the_fence_ends_when_the_replica_goes_over_to_another_history(world, monkeypatch):
    """To wait on would keep the keeper from the build that the counter now needs."""
    world.post("ann")
    world.replay()
    world.build()
    run = world.ask("users")
    with world.replay_paused():
        world.post("new")
        running_steps = world.steps(run, wait_seconds=60)
        assert next(step for step in running_steps if step.waiting).phase == "fence"
        monkeypatch.setattr(sql, "STANDPOINT", sql.STANDPOINT.replace(SOURCE_SQL, "'7/5/9'"))
        assert list(running_steps) == []
    assert run.status is Status.FAILED and run.detail.startswith("the replica now shows 7/5/9, the counter belongs to ")
    assert b"new" in world.set() and world.state().verified_at is None


def test_no_redis_command_over_a_counter_is_larger_than_a_chunk(world, monkeypatch):
    """P8, seen by Redis itself: MONITOR shows each command and its arguments."""
    world.post(*(f"user{n}" for n in range(5_000)))
    world.replay()
    world.redis.flushall()
    with world.redis.monitor() as monitor:
        world.build("users")
        world.redis.sadd(keys.of_counter("users").members, *(f"ghost{n}" for n in range(900)))
        world.reconcile("users")
        world.redis.echo("the end")
        largest = 0
        for command in monitor.listen():
            if command["command"].startswith("ECHO"):
                break
            if command["client_type"] != "lua":
                largest = max(largest, command["command"].count(" "))
            assert not command["command"].startswith(("SMEMBERS", "KEYS", "SUNION", "HGETALL"))
    assert steps.CHUNK_MEMBERS <= largest <= 2 * steps.CHUNK_MEMBERS + 10  # HSET names member and token
    assert world.exact(["users"])
