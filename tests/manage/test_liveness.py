"""The keeper goes on, whatever is open, slow or broken: a transaction, a statement, one of its counters."""

from __future__ import annotations

import threading
import time

import psycopg2
import pytest
from psycopg2.errors import QueryCanceled, UndefinedTable

from manage_service.keeper import leases
from manage_service.keeper import loop as keeping
from manage_service.keeper.loop import Keeper, Timing
from manage_service.protocol.catch_up import catch_up
from manage_service.replica import snapshots as reading
from manage_service.runs import execution, registry
from manage_service.runs.registry import Mode, Status, TooManyRuns
from shared_models.declarations import get_counter
from shared_models.protocol import keys
from tests.servers import wait_for

USERS = get_counter("users")


@pytest.fixture
def keeper(world):
    made = Keeper(Timing(catch_up_seconds=0.0, reconcile_seconds=3600.0, wait_seconds=20.0))
    yield made
    made.close()


def tick_until(keeper, condition, what="the keeper"):
    wait_for(lambda: keeper.tick() is None or condition(), what)


def test_rows_above_an_open_transaction_are_read_once(world):
    world.build()
    redis, open_long = world.passes(), world.begin().insert("late")
    for number in range(30):
        world.store(f"user{number:02}")
    world.replay()
    first = catch_up(USERS, world.replica, redis)
    assert first.read_members == 30 and len(world.set()) == 30
    world.store("new")
    world.replay()
    second = catch_up(USERS, world.replica, redis, first.memory)
    assert (second.read_members, second.added) == (1, 1)
    open_long.commit()
    world.replay()
    catch_up(USERS, world.replica, redis, second.memory)
    assert world.exact(["users"])


def test_a_transaction_that_was_open_when_others_were_read_is_read_when_it_ends(world):
    """It began before the last pass, and another one keeps the horizon below it."""
    world.build()
    redis, oldest, middle = world.passes(), world.begin().insert("oldest"), world.begin().insert("middle")
    world.store("young")
    world.replay()
    did = catch_up(USERS, world.replica, redis)
    assert world.set() == {b"young"}
    middle.commit()
    world.replay()
    did = catch_up(USERS, world.replica, redis, did.memory)
    assert (did.read_members, did.added) == (1, 1) and world.set() == {b"young", b"middle"}
    oldest.commit()
    world.replay()
    catch_up(USERS, world.replica, redis, did.memory)
    assert world.exact(["users"])


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
    monkeypatch.setattr(reading, "FETCH", "FETCH 10 FROM recent")
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
    assert renewed_before + reading.ANSWER_SECONDS < leases.LEASE_SECONDS


def test_a_run_over_a_table_whose_index_is_gone_fails_with_the_reason(world, monkeypatch):
    world.post("ann")
    world.replay()
    world.build()
    monkeypatch.setattr(reading, "SCAN", reading.SCAN.replace("FROM {table}", "FROM {table}, pg_sleep(9)"))
    monkeypatch.setattr(reading, "JUMP", reading.SCAN)
    monkeypatch.setattr(reading, "OPTIONS", reading.OPTIONS.replace("statement_timeout=6s", "statement_timeout=50ms"))
    world.replica.close()
    run = world.reconcile("users")
    assert run.status is Status.FAILED
    assert "look whether its index on (username) is there" in run.detail and "statement timeout" in run.detail


@pytest.mark.parametrize("error", [QueryCanceled, UndefinedTable])
def test_a_counter_that_cannot_be_caught_up_keeps_no_other_from_it(world, keeper, monkeypatch, error):
    tick_until(keeper, lambda: world.state().verified_at and world.state("cities").verified_at)

    def fail_for_cities(counter, *args):
        if counter.name == "cities":
            raise error("canceling statement due to statement timeout")
        return catch_up(counter, *args)

    monkeypatch.setattr(keeping, "catch_up", fail_for_cities)
    world.store("ann")
    world.replay()
    tick_until(keeper, lambda: b"ann" in world.set())
    assert world.redis.hget(keys.KEEPER, "failure").decode().startswith("cities cannot be caught up: ")
    assert not world.state("cities").cold and world.redis.hget(keys.KEEPER, "source")
    monkeypatch.setattr(keeping, "catch_up", catch_up)
    tick_until(keeper, lambda: world.exact() and not world.redis.hget(keys.KEEPER, "failure"))


def test_a_build_that_takes_too_long_is_put_off_and_the_others_are_built(world, keeper, monkeypatch):
    build = keeping.build

    def too_slow(counter, *args):
        if counter.name == "cities":
            raise QueryCanceled("canceling statement due to statement timeout")
            yield
        yield from build(counter, *args)

    monkeypatch.setattr(keeping, "build", too_slow)
    tick_until(keeper, lambda: not world.state().cold)
    assert world.state("cities").condition == "refused" and "statement timeout" in world.state("cities").why_cold


def test_asking_for_what_is_queued_already_gives_the_same_run(world):
    first = world.ask("users", "cities")
    assert world.ask("cities", "users").id == first.id
    assert world.ask("users").id != first.id and world.ask("users", "cities", mode=Mode.CHECK).id != first.id
    next(world.steps(first))  # it has begun: it may have passed what is asked for now
    assert world.ask("users", "cities").id != first.id


def test_many_who_ask_at_once_get_one_run(world):
    asked, barrier = [], threading.Barrier(8)

    def ask():
        barrier.wait()
        asked.append(world.ask("users").id)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 8 and len(set(asked)) == 1 and world.redis.llen(keys.RUNS_OPEN) == 1


def test_open_runs_are_bounded(world, monkeypatch):
    monkeypatch.setattr(registry, "MOST_OPEN", 3)
    begun = [world.ask("users") for _ in range(1)]
    for _ in range(2):
        next(world.steps(begun[-1]))
        begun.append(world.ask("users"))
    next(world.steps(begun[-1]))
    with pytest.raises(TooManyRuns, match="3 runs are queued or running already"):
        world.ask("users")
    registry.request_cancel(world.redis, begun[-1].id)
    for run in begun:
        run.end(Status.CANCELLED)
        registry.save(world.redis, run)
    assert world.ask("users").status is Status.QUEUED


def test_a_cold_cache_is_given_another_chance(world, monkeypatch):
    """A chunk that is cut off once is read again."""
    world.post("ann")
    world.replay()
    world.build()
    read, failures = reading.Snapshot.read_members, [QueryCanceled("statement timeout")] * (execution.MOST_TIMEOUTS - 1)

    def sometimes(self, *args, **options):
        if failures:
            raise failures.pop()
        return read(self, *args, **options)

    monkeypatch.setattr(reading.Snapshot, "read_members", sometimes)
    assert world.reconcile("users").status is Status.DONE


def test_a_replica_that_is_away_is_no_fault_of_a_counter():
    assert reading.is_away(psycopg2.OperationalError("server closed the connection unexpectedly"))
    assert not reading.is_away(UndefinedTable("relation does not exist"))
    assert not reading.is_away(QueryCanceled("canceling statement due to statement timeout"))
