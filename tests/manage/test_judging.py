"""The findings of `status`: each fault is made, reported in a sentence, and no longer reported after its repair."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from manage_service import stores
from manage_service.runs import registry
from manage_service.runs.registry import Mode, Status
from manage_service.status import judging
from manage_service.status.judging import Limits
from manage_service.status.report import read_status
from shared_models.nodes import only
from shared_models.protocol import keys, moments
from tests import servers
from tests.manage.keepers import keeper_at_work
from tests.manage.test_commands import manage
from tests.servers import wait_for

LIMITS = Limits.of(catch_up_seconds=1.0, reconcile_seconds=3600.0)


def status_of(world, limits=LIMITS):
    return msgspec.to_builtins(read_status(only(world.redis), world.replica, limits))


def findings(world, limits=LIMITS):
    """(about, kind) of all that is wrong."""
    return [(finding["about"], finding["kind"]) for finding in status_of(world, limits)["findings"]]


@pytest.fixture
def well(world):
    """A world in which nothing is wrong: a keeper, and two counters that it has built and verified."""
    world.post("ann")
    world.replay()
    with keeper_at_work() as keeper:

        def is_well():
            status = status_of(world)
            verified = all(counter["verified_at"] for counter in status["counters"].values())
            return status["healthy"] and verified and not status["open_runs"]

        wait_for(lambda: keeper.tick() is not None and is_well(), "all to be well")
        world.keeper = keeper
        yield world


def tick_until(world, condition):
    wait_for(lambda: world.keeper.tick() is not None and condition(), "the keeper")


def test_where_nothing_is_wrong_everybody_says_so(well, client):
    status = client.get("/v1/status").json()
    assert status["healthy"] is True and status["findings"] == []
    said = manage("status")
    assert said.returncode == 0, said.stdout


def test_a_fault_is_said_by_the_api_and_the_command_and_the_exit_code(well, client):
    well.redis.sadd(keys.of_counter("users").members, "by hand")
    found = client.get("/v1/status").json()["findings"]
    # Nobody ticks here: on a slow machine it may be said already that the keeper is silent.
    (fault,) = [each for each in found if each["about"] == "users" and each["kind"] == "cold"]
    assert "something other than Rollcall" in fault["detail"]
    said = manage("status")
    assert said.returncode == 1 and fault["detail"] in said.stdout
    document = json.loads(manage("status", "--json").stdout)
    assert fault["detail"] in [each["detail"] for each in document["findings"]] and document["healthy"] is False


def test_a_keeper_that_is_silent_is_missed(well):
    well.redis.hset(keys.KEEPER, "ticked_at", moments.to_microseconds(datetime.now(UTC) - timedelta(seconds=76)))
    (fault,) = status_of(well)["findings"]
    assert (fault["about"], fault["kind"]) == ("keeper", "not-running")
    assert "silent for 76 s" in fault["detail"] and "start one" in fault["detail"]
    tick_until(well, lambda: findings(well) == [])


def test_a_replica_whose_replay_is_paused_is_late_and_so_are_its_counters(well):
    with well.replay_paused():
        well.store("bob")
        # Lag is measured against the limit: here it is very short.
        short = Limits(lag_seconds=0.2, verified_seconds=3600.0)
        expected = {("replica", "behind"), ("users", "incomplete"), ("cities", "incomplete")}
        tick_until(well, lambda: set(findings(well, short)) == expected)
        for fault in status_of(well, short)["findings"]:
            assert fault["since"] is not None and " s " in fault["detail"]


def test_a_transaction_that_holds_the_horizon_is_named(well):
    short = Limits(lag_seconds=0.2, verified_seconds=3600.0)
    open_one = well.begin().insert("waits")
    well.store("bob")
    well.replay()
    tick_until(well, lambda: ("horizon", "held") in findings(well, short))
    (fault,) = [each for each in status_of(well, short)["findings"] if each["kind"] == "held"]
    assert "pg_stat_activity" in fault["detail"]
    open_one.commit()
    well.replay()
    tick_until(well, lambda: ("horizon", "held") not in findings(well, short))


def test_a_replica_that_cannot_be_read_is_said_with_its_reason(well):
    nobody = stores.connect_replica(f"postgres://x@127.0.0.1:{servers.free_port()}/x")
    working, well.keeper.replica = well.keeper.replica, nobody
    tick_until(well, lambda: ("keeper", "held-up") in findings(well))
    (fault,) = status_of(well)["findings"]
    assert "Connection refused" in fault["detail"] and fault["since"] is not None
    well.replica, replica = nobody, well.replica
    assert ("replica", "not-reachable") in findings(well)
    well.replica, well.keeper.replica = replica, working
    tick_until(well, lambda: findings(well) == [])


def test_a_counter_that_was_not_verified_for_two_intervals_is_late(well):
    soon = Limits(lag_seconds=30.0, verified_seconds=0.0)
    assert [kind for _, kind in findings(well, soon)] == ["not-verified", "not-verified"]
    assert "was last verified" in status_of(well, soon)["findings"][0]["detail"]
    well.redis.hdel(keys.of_counter("users").state, "verified_at")
    assert findings(well) == [("users", "not-verified")]
    well.ask("users")  # somebody is about to do it
    assert findings(well) == []


def test_what_a_check_has_found_is_wrong_until_it_is_mended(well):
    well.redis.srem(keys.of_counter("users").members, "ann")
    well.redis.sadd(keys.of_counter("users").members, "ghost")  # as many as before
    tick_until(well, lambda: well.state().cursor > well.state().watermark)
    well.reconcile("users", mode=Mode.CHECK)
    (fault,) = status_of(well)["findings"]
    assert fault["kind"] == "drift" and "found 1 missing, 1 extra, and repaired nothing" in fault["detail"]
    assert status_of(well)["counters"]["users"]["repaired"] is False
    well.reconcile("users")
    status = status_of(well)
    assert status["findings"] == [] and status["counters"]["users"]["repaired"] is True
    assert status["counters"]["users"]["drift"] == {"missing": 1, "extra": 1}, "what it found, and has mended"


def test_a_run_that_failed_is_wrong_until_one_does_not(well):
    with well.replay_paused():
        well.redis.sadd(keys.of_counter("users").members, "ghost")
        well.redis.srem(keys.of_counter("users").members, "ann")
        well.store("bob")
        well.post("eve")
        assert well.reconcile("users", wait_seconds=0.05).status is Status.FAILED
    (fault,) = [each for each in status_of(well)["findings"] if each["kind"] == "run-failed"]
    assert fault["about"] == "users" and "failed" in fault["detail"]
    well.replay()
    well.reconcile("users")
    assert "run-failed" not in [kind for _, kind in findings(well)]


def test_a_run_that_waits_or_has_been_open_for_long_is_named(well):
    run = well.ask("users")
    run.asked_at = datetime.now(UTC) - timedelta(hours=3)
    registry.save(well.redis, run)
    assert findings(well) == [(run.id, "open-long")]
    run.status, run.detail, run.phase_started_at = Status.RUNNING, "behind", datetime.now(UTC) - timedelta(seconds=40)
    registry.save(well.redis, run)
    (fault,) = status_of(well)["findings"]
    assert fault["kind"] == "waits" and "has waited for 40 s: behind" in fault["detail"]
    run.end(Status.CANCELLED)
    registry.save(well.redis, run)
    assert findings(well) == []


def test_limits_follow_the_settings():
    assert Limits.of(1.0, 3600.0) == (30.0, 7260.0)
    assert Limits.of(60.0, 10.0) == (600.0, 80.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (76, "76 s"), (130, "2 min"), (7300, "2 h"), (2e5, "2 d")]
)
def test_a_time_is_told_as_a_person_would(seconds, said):
    assert judging.span(timedelta(seconds=seconds)) == said
