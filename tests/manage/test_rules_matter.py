"""Each rule of the protocol is needed: without it, its test fails.

`loadtest.chaos.rules` leaves them out, from outside. The scenarios below are those that other files have no test for; they
hold with all rules.
"""

from __future__ import annotations

import inspect

import pytest
from redis.exceptions import RedisError

from loadtest.chaos.rules import RULES, leave_out
from manage_service import stores
from manage_service.protocol.build import build
from shared_models.declarations import get_counter
from shared_models.protocol import steps
from tests.manage import (
    test_build,
    test_catch_up,
    test_departures,
    test_failovers,
    test_groupings,
    test_plausibility,
    test_reconcile,
    test_rewritten_tables,
)
from tests.manage.test_build import small_chunks  # noqa: F401  (a fixture)
from tests.manage.test_departures import noted  # noqa: F401  (a fixture)
from tests.manage.test_failovers import failovers  # noqa: F401  (a fixture)
from tests.manage.test_groupings import counted, shop  # noqa: F401  (fixtures)
from tests.manage.test_plausibility import live  # noqa: F401  (a fixture)
from tests.manage.world import pass_over, sweep_of

USERS = get_counter("users")


def steps_of_a_sweep(world, most=5):
    """A sweep on the replica, as far as it comes: a fence that holds would hold for ever."""
    sweeping = sweep_of(world)
    for _, _ in zip(range(most), sweeping, strict=False):
        pass


def ahead_of(world):
    """Another replica, or the same one before it crashed: it shows what the world's own does not show yet."""
    return stores.connect_replica(world.primary.url)


def a_member_built_from_a_replica_that_came_back_earlier_is_not_swept(world):
    world.post("bob")  # there is a watermark, and it is lower than the cursor that the build sets
    world.replay()
    with world.replay_paused():
        world.store("ann")
        ahead = ahead_of(world)
        list(build(USERS, ahead, world.passes()))
        ahead.close()
        steps_of_a_sweep(world)
        assert b"ann" in world.set(), "the counter claims to be complete beyond her row"


def a_member_of_a_pass_under_way_is_not_swept_by_a_replica_that_came_back_earlier(world, monkeypatch):
    world.build("users")
    advance = steps.advance

    def held(*args):
        steps_of_a_sweep(world)
        return advance(*args)

    with world.replay_paused():
        world.store("ann")
        ahead = ahead_of(world)
        # By name: where a rule is left out, catch-up's steps are not the module.
        monkeypatch.setattr("manage_service.protocol.catch_up.steps.advance", held)
        pass_over(USERS, ahead, world.passes())
        ahead.close()
        assert world.state().cursor > 0 and world.set() == {b"ann"}


def a_fill_that_is_cut_off_in_a_chunk_does_not_skip_it(world, monkeypatch):
    world.store("ann")
    world.replay()
    record = steps.record

    def cut_off(*args, **options):
        monkeypatch.setattr(steps, "record", record)
        raise RedisError("the connection is gone")

    monkeypatch.setattr(steps, "record", cut_off)
    try:
        list(build(USERS, world.replica, world.passes()))
    except RedisError:
        list(build(USERS, world.replica, world.passes()))  # another keeper goes on
    assert world.exact(["users"])


CAUGHT_BY = {
    "token": test_reconcile.test_a_member_marked_anew_by_another_sweep_is_left_to_that_one,
    "fence": test_reconcile.test_a_member_recorded_before_its_mark_is_not_swept_while_replay_is_paused,
    "claim of a fill": a_member_built_from_a_replica_that_came_back_earlier_is_not_swept,
    "claim": a_member_of_a_pass_under_way_is_not_swept_by_a_replica_that_came_back_earlier,
    "filter present": test_reconcile.test_members_that_share_a_bucket_do_not_make_up_for_each_other,
    "departures": test_departures.test_a_deleted_member_leaves_without_a_reconcile,
    "late records": test_departures.test_a_record_that_comes_after_its_departure_adds_nothing,
    "unmark": test_reconcile.test_a_member_recorded_between_the_check_and_the_sweep_stays,
    "unmark in catch-up": test_reconcile.test_a_member_caught_up_between_the_check_and_the_sweep_stays,
    "compare": test_catch_up.test_a_cursor_is_not_set_on_a_counter_that_was_lost_during_the_pass,
    "one connection": test_catch_up.test_a_pass_over_a_lost_connection_is_void,
    "one history": test_failovers.test_a_pass_does_not_claim_what_was_lost_on_its_connection,
    "horizon": test_catch_up.test_the_cursor_stays_below_a_transaction_that_is_still_open_while_later_ones_commit,
    "fill lsn": test_build.test_a_replica_that_came_back_earlier_is_waited_for,
    "fill position": a_fill_that_is_cut_off_in_a_chunk_does_not_skip_it,
    "promote last": test_build.test_a_table_that_was_there_before_the_counter_is_counted_whole,
    "gap": test_plausibility.test_a_set_that_is_changed_during_every_attempt_fails_the_run_with_the_reason,
    "row security": test_rewritten_tables.test_a_table_that_hides_rows_is_an_error_and_not_a_table_with_fewer_rows,
    "mend fence": test_groupings.test_a_group_is_read_again_from_a_replica_that_shows_what_was_recorded_into_it,
    "complete through": test_catch_up.test_complete_through_is_never_later_than_a_row_that_is_not_counted,
}
# Those that are not manage's: the chaos run fails without them (tests/failures/test_chaos.py), or ingest's own test
# (tests/ingest/test_recording.py). Two of manage's need servers of their own (test_rewritten_tables.py, test_one_database.py).
ELSEWHERE = {
    *("cold", "one key", "size", "source asked anew", "lock first", "on the disk"),
    *("group size", "broken group", "lowered day"),
}


def run(scenario, request):
    """Call a test, or a scenario, with the fixtures that it asks for."""
    scenario(**{name: request.getfixturevalue(name) for name in inspect.signature(scenario).parameters})


@pytest.mark.parametrize("rule", [rule for rule, scenario in CAUGHT_BY.items() if scenario.__module__ == __name__])
def test_the_scenario_holds_with_all_rules(rule, request):
    run(CAUGHT_BY[rule], request)


@pytest.mark.parametrize("rule", CAUGHT_BY)
def test_without_the_rule_its_test_fails(rule, request, monkeypatch):
    leave_out(rule, monkeypatch.setattr)
    # StopIteration: it waits for a step that no longer comes.
    with pytest.raises((AssertionError, pytest.fail.Exception, StopIteration)):
        run(CAUGHT_BY[rule], request)


def test_every_rule_has_its_test():
    assert CAUGHT_BY.keys() | ELSEWHERE == RULES.keys()
