"""The keeper: one tick at a time, and as a process that is stopped, killed, and left without its stores."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace

import psycopg2
import pytest
from psycopg2.errors import QueryCanceled, UndefinedTable
from redis import Redis

from manage_service import leases, stores
from manage_service.keeper import loop as keeping
from manage_service.keeper.schedule import Schedule
from manage_service.protocol import build as building
from manage_service.protocol import reconcile
from manage_service.protocol.catch_up import catch_up
from manage_service.replica import snapshots, sql
from manage_service.runs import registry
from manage_service.runs.registry import Mode, Status
from shared_models.protocol import keys
from tests import servers
from tests.manage.keepers import keeper_at_work, keeper_process, tick_until
from tests.servers import wait_for


def test_cold_counters_are_built_and_then_verified_without_an_operator(world):
    world.store("ann", "bob")
    world.replay()
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: all(world.state(name).verified_at for name in ("users", "cities")))
    assert world.exact()
    assert {run.asked_by for run in registry.latest(world.redis, 10)} == {"schedule"}


def test_what_ingest_could_not_count_is_caught_up_at_the_next_tick(world):
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: not world.state().cold and not world.state("cities").cold)
        world.store("ann")
        world.replay()
        keeper.catch_up_at = 0.0  # after a slow pass it pauses as long
        keeper.tick()
    assert world.exact()


def test_a_counter_is_reconciled_again_when_its_interval_is_over(world):
    with keeper_at_work(reconcile_seconds=0.05) as keeper:
        tick_until(keeper, lambda: world.state().verified_at)
        first = world.state().verified_at
        world.redis.sadd(keys.of_counter("users").members, "ghost")
        tick_until(keeper, lambda: world.state().verified_at > first and world.set() == set())
    assert any(run.drifted for run in registry.latest(world.redis, 10))


def test_a_counter_that_needs_a_run_right_after_another_one_is_not_taken_for_one_whose_run_has_failed(world):
    world.build("users")
    schedule = Schedule(3600.0)
    for _ in range(2):
        emptied = replace(world.state(), left_through=None)  # by a TRUNCATE, at any moment
        schedule.ask_for_what_is_due({"users": emptied}, (), world.redis)
        schedule.ask_for_what_is_due({"users": emptied}, (), world.redis)
        (run,) = registry.still_open(world.redis)
        list(world.steps(run))


def test_an_operators_run_is_executed_and_stands_in_the_history(world):
    world.post("ann")
    with keeper_at_work() as keeper:
        run = world.ask("users", mode=Mode.CHECK)
        tick_until(keeper, lambda: registry.get(world.redis, run.id).status is Status.DONE)
    assert registry.get(world.redis, run.id).findings["users"].verified_at is not None
    assert run.id in {found.id for found in registry.latest(world.redis, 10)}


def test_catching_up_goes_on_between_the_steps_of_a_run(world):
    world.post("ann")
    world.replay()
    world.reconcile()
    with keeper_at_work() as keeper, world.replay_paused():
        world.post("new")
        run = world.ask("users")
        tick_until(keeper, lambda: registry.get(world.redis, run.id).phase == "fence")
        ticked = world.redis.hget(keys.KEEPER, "ticked_at")
        tick_until(keeper, lambda: world.redis.hget(keys.KEEPER, "ticked_at") > ticked, "another pass")
        assert registry.get(world.redis, run.id).phase == "fence"


def test_a_run_left_by_a_keeper_that_died_is_gone_on_with(world):
    world.post("ann")
    world.replay()
    world.build()
    run = world.ask("users")
    dead = world.steps(run)
    next(dead)
    assert registry.get(world.redis, run.id).status is Status.RUNNING
    dead.close()
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: registry.get(world.redis, run.id).status is Status.DONE)


def test_of_two_keepers_one_leads_and_the_other_takes_over(world):
    with keeper_at_work() as first, keeper_at_work() as second:
        first.tick()
        second.tick()
        assert first.leading and not second.leading
        first.close()
        second.tick()
        assert second.leading


def test_a_replica_that_is_away_fails_the_run_with_the_reason_and_nothing_else(world):
    world.post("ann")
    world.replay()
    world.reconcile()
    with keeper_at_work(wait_seconds=0.2) as keeper:
        run = world.ask("users")
        keeper.replica.close()
        keeper.replica.dsn = f"postgres://nobody@127.0.0.1:{servers.free_port()}/none"
        tick_until(keeper, lambda: not registry.get(world.redis, run.id).open)
        assert "Connection refused" in registry.get(world.redis, run.id).detail
        keeper.replica = stores.connect_replica()
        world.store("bob")
        world.replay()
        tick_until(keeper, lambda: b"bob" in world.set())


def test_a_counter_that_postgres_refuses_keeps_no_other_from_being_built_and_reconciled(world, monkeypatch):
    world.store("ann")
    world.replay()
    whole = building.build

    def build(counter, replica, redis):
        if counter.name == "cities":
            raise psycopg2.errors.InsufficientPrivilege("permission denied for table message\nDETAIL: ann")
        yield from whole(counter, replica, redis)

    for module in (keeping, reconcile):
        monkeypatch.setattr(module, "build", lambda *args: (step for step in build(*args)))
    with keeper_at_work() as keeper:
        run = world.ask("cities")
        tick_until(keeper, lambda: world.state("users").verified_at)
        assert registry.get(world.redis, run.id).detail == "permission denied for table message"
        assert world.state("cities").cold
        keeper.tick()
        reason = world.redis.hget(keys.KEEPER, "failure").decode()
        assert reason == "cities cannot be built: InsufficientPrivilege: permission denied for table message"
        for module in (keeping, reconcile):
            monkeypatch.setattr(module, "build", whole)
        keeper.refused["cities"] = reason, 0.0  # the time is over
        tick_until(keeper, lambda: world.state("cities").verified_at)
        keeper.tick()
        assert world.redis.hget(keys.KEEPER, "failure") == b""
    assert world.exact()


def test_a_run_that_somebody_else_has_just_ended_is_not_executed(world, monkeypatch):
    """Between the keeper's look at the list and its lease."""
    world.post("ann")
    world.replay()
    world.reconcile()
    run = world.ask("users")
    seen = registry.still_open(world.redis)
    run.end(Status.CANCELLED)
    registry.save(world.redis, run)
    gone = world.ask("users")
    seen += [gone]
    world.redis.delete(keys.of_run(gone.id))
    monkeypatch.setattr(registry, "still_open", lambda redis: seen)
    with keeper_at_work() as keeper:
        for _ in range(3):
            keeper.tick()
        assert keeper.job is None
    assert registry.get(world.redis, run.id).status is Status.CANCELLED
    assert not world.redis.exists(keys.of_lock(f"run:{run.id}"), keys.of_lock(f"run:{gone.id}"))


def test_redis_emptied_under_the_keeper_is_built_anew(world):
    world.store("ann")
    world.replay()
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: world.state().verified_at)
        world.redis.flushall()
        tick_until(keeper, lambda: world.state().verified_at and not world.state("cities").cold)
    assert world.exact()


def test_what_was_read_above_the_cursor_is_read_again_where_redis_may_have_lost_it(world, keeper):
    tick_until(keeper, lambda: world.state().verified_at)
    open_long = world.begin().insert("late")
    world.store("ann")
    world.replay()
    tick_until(keeper, lambda: b"ann" in world.set())
    assert keeper.memories
    keeper.start_over()
    assert not keeper.memories
    open_long.commit()


def test_leases_are_renewed_inside_a_pass(world, keeper, monkeypatch):
    monkeypatch.setattr(sql, "FETCH", "FETCH 10 FROM recent")
    tick_until(keeper, lambda: world.state().verified_at)
    renewed = []
    monkeypatch.setattr(keeper.lease, "renew", lambda: renewed.append(time.monotonic()))
    world.store(*(f"user{number}" for number in range(200)))
    world.replay()
    before = len(renewed)
    keeper.catch_up_all()
    assert len(renewed) - before >= 20


def test_a_statement_is_cut_off_before_a_lease_can_run_out():
    renewed_before = leases.LEASE_SECONDS / 5  # what `renew` does not look at
    assert renewed_before + snapshots.ANSWER_SECONDS < leases.LEASE_SECONDS


@pytest.mark.parametrize("error", [QueryCanceled, UndefinedTable])
def test_a_counter_that_cannot_be_caught_up_keeps_no_other_from_it(world, keeper, monkeypatch, error):
    tick_until(keeper, lambda: world.state().verified_at and world.state("cities").verified_at)

    def fail_for_cities(parts, *args):
        if parts[0].name == "cities":
            raise error("canceling statement due to statement timeout")
        return catch_up(parts, *args)

    monkeypatch.setattr(keeping, "catch_up", fail_for_cities)
    world.store("ann")
    world.replay()
    tick_until(keeper, lambda: b"ann" in world.set())
    assert world.redis.hget(keys.KEEPER, "failure").decode().startswith("cities cannot be caught up: ")
    assert not world.state("cities").cold and world.redis.hget(keys.KEEPER, "source")
    monkeypatch.setattr(keeping, "catch_up", catch_up)
    tick_until(keeper, lambda: world.exact() and not world.redis.hget(keys.KEEPER, "failure"))


def test_a_build_that_takes_too_long_is_put_off_and_the_others_are_built(world, keeper, monkeypatch):
    build = building.build

    def too_slow(counter, *args):
        if counter.name == "cities":
            raise QueryCanceled("canceling statement due to statement timeout")
            yield
        yield from build(counter, *args)

    monkeypatch.setattr(keeping, "build", too_slow)
    tick_until(keeper, lambda: not world.state().cold)
    assert world.state("cities").condition == "refused" and "statement timeout" in world.state("cities").why_cold


# -- as a process


def test_the_keeper_stops_cleanly_on_sigterm(world):
    with keeper_process(world) as process:
        wait_for(lambda: world.state().verified_at, "the keeper to have built and verified")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=servers.DEADLINE_SECONDS) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert "keeper.started" in said and "keeper.stopped" in said
    assert not world.redis.exists(keys.of_lock("keeper")), "the next keeper need not wait"


SECRET = "ann-of-the-log"


def test_the_keeper_logs_no_member(world):
    with keeper_process(world, RECONCILE_SECONDS="0.2", LOG_JSON="true") as process:
        wait_for(lambda: world.state().verified_at, "the keeper to have built and verified")
        world.store(SECRET, city=SECRET)
        wait_for(lambda: SECRET.encode() in world.set(), "what ingest has not counted to be caught up")
        world.redis.sadd(keys.of_counter("users").members, f"{SECRET}-gone")
        wait_for(lambda: world.exact(), "a reconcile")
        wait_for(lambda: not registry.still_open(world.redis), "its end")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
    events = {json.loads(line)["event"] for line in said.splitlines()}
    assert {"keeper.caught_up", "run.started", "run.ended", "job.started", "job.ended"} <= events
    assert SECRET not in said


def metrics_of(client):
    """Each sample, by its name and labels."""
    lines = client.get("/metrics").content.decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_what_the_keeper_knows_is_in_the_metrics_of_manage(world, client):
    assert "rollcall_keeper_tick_age_seconds" not in metrics_of(client), "there has never been one"
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: world.state().verified_at and world.state("cities").verified_at)
        world.store("ann", "bob")
        world.replay()
        tick_until(keeper, lambda: b"ann" in world.set())
        run = world.ask("users", mode=Mode.CHECK)
        tick_until(keeper, lambda: not registry.get(world.redis, run.id).open)
        shown = metrics_of(client)
        assert 0 <= shown["rollcall_keeper_tick_age_seconds"] < 15
        assert shown["rollcall_replica_reachable"] == 1
        assert 0 <= shown["rollcall_replica_lag_seconds"] < 60
        assert shown["rollcall_horizon_age_seconds"] == 0
        assert shown['rollcall_keeper_caught_up_members_total{counter="users",kind="added"}'] == 2
        assert shown['rollcall_keeper_caught_up_members_total{counter="users",kind="read"}'] >= 2
        assert shown['rollcall_run_seconds_count{mode="check",status="done"}'] == 1
        assert shown['rollcall_run_seconds_sum{mode="check",status="done"}'] > 0
        assert shown['rollcall_run_seconds_count{mode="repair",status="failed"}'] == 0

        with world.replay_paused():
            world.store("cid")
            behind = wait_for(
                lambda: keeper.tick() is not None and metrics_of(client)["rollcall_replica_lag_bytes"], "some lag"
            )
            assert behind > 0
        world.replay()

        held = world.begin().insert("dan")
        world.store("eve")  # later, and ended before
        world.replay()
        tick_until(keeper, lambda: metrics_of(client)["rollcall_horizon_age_seconds"] > 0.2, "the horizon to be held")
        held.commit()
        world.store("fay")
        world.replay()
        tick_until(keeper, lambda: metrics_of(client)["rollcall_horizon_age_seconds"] == 0, "the horizon to be free")

        keeper.replica.close()
        keeper.replica.dsn = f"postgres://nobody@127.0.0.1:{servers.free_port()}/none"
        ticked = world.redis.hget(keys.KEEPER, "ticked_at")
        tick_until(keeper, lambda: metrics_of(client)["rollcall_replica_reachable"] == 0, "the replica to be missed")
        assert world.redis.hget(keys.KEEPER, "ticked_at") > ticked, "the keeper itself is alive"


def test_a_keeper_that_was_killed_is_followed_by_one_that_goes_on(world):
    with keeper_process(world) as process:
        wait_for(lambda: world.state().verified_at, "the first keeper")
        process.kill()
    world.store("ann")
    with keeper_process(world):
        wait_for(lambda: world.exact(), "the second keeper to count what the first one missed", seconds=30)


@pytest.mark.parametrize("again", ["empty", "saved"])
def test_redis_gone_and_back_needs_no_operator(world, second_valkey, again):
    valkey = second_valkey(appendonly="no", save="")
    world.valkey, world.redis = valkey, Redis.from_url(valkey.url)
    world.store("ann")
    with keeper_process(world) as process:
        wait_for(lambda: world.state().verified_at and not world.state("cities").cold, "the keeper")
        if again == "saved":
            world.redis.save()
        valkey.kill()
        world.store("bob")
        valkey.start()
        world.redis = Redis.from_url(valkey.url)
        wait_for(lambda: not world.state().cold and not world.state("cities").cold and world.exact(), "all counted")
        assert process.poll() is None
