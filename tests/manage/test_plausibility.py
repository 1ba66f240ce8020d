"""Changes to a counter's keys by somebody with a console, or with ingest's credential, are noticed, reported and repaired."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from manage_service.protocol import plausibility, sweep
from manage_service.runs.registry import Mode, Status
from shared_models.protocol import keys, steps
from shared_models.protocol.states import Drift
from tests.manage.keepers import tick_until
from tests.manage.world import sweep_of

USERS = keys.of_counter("users")
CITIES = keys.of_counter("cities")


@pytest.fixture(autouse=True)
def no_slack(monkeypatch):
    """All clocks are this machine's."""
    monkeypatch.setattr(sweep, "RESET_SLACK", timedelta())


def mended(world, keeper):
    """Tick until the counter is live. Somebody commits now and then: the replica shows how far it is by that."""

    def live_again():
        world.ask_primary("SELECT pg_logical_emit_message(true, 'rollcall', 'pulse')")
        return not world.state().cold

    tick_until(keeper, live_again)


@pytest.fixture
def live(world, keeper):
    """A world whose keeper has built and verified both counters."""
    world.post("ann", "bob")
    world.post("cid", city="Utica")
    tick_until(keeper, lambda: world.state().verified_at and world.state("cities").verified_at and not keeper.job)
    keeper.tick()
    return world


DAMAGES = {
    "a member added": lambda redis: redis.sadd(USERS.members, "nobody"),
    "a member removed": lambda redis: redis.srem(USERS.members, "ann"),
    "one for another": lambda redis: redis.sadd(USERS.members, "nobody", "no one") and redis.srem(USERS.members, "ann"),
    "the set deleted": lambda redis: redis.delete(USERS.members),
    "the set deleted and one come": lambda redis: redis.delete(USERS.members) and redis.sadd(USERS.members, "new"),
    "the intake deleted": lambda redis: redis.delete(USERS.intake),
    "both deleted": lambda redis: redis.delete(USERS.members, USERS.intake),
    "a size that is none": lambda redis: redis.hset(USERS.intake, "size", "many"),
    "a size with a zero before it": lambda redis: redis.hset(USERS.intake, "size", "03"),
    "a cursor with zeros before it": lambda redis: redis.hset(
        USERS.state, "cursor", b"000" + redis.hget(USERS.state, "cursor")
    ),
    "another size": lambda redis: redis.hset(USERS.intake, "size", 17),
    "a cursor that is none": lambda redis: redis.hset(USERS.state, "cursor", "x"),
    "the state deleted": lambda redis: redis.delete(USERS.state),
    "another type": lambda redis: redis.delete(USERS.intake) and redis.set(USERS.intake, "?"),
    "a set that is a text": lambda redis: redis.delete(USERS.members) and redis.set(USERS.members, "?"),
    "a fill that is none": lambda redis: redis.hset(USERS.fill, "token", "x") and redis.hdel(USERS.state, "cursor"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_counter_that_was_changed_by_hand_is_not_live_until_the_keeper_has_mended_it(live, keeper, damage):
    before = live.state("cities").verified_at
    DAMAGES[damage](live.redis)
    if damage != "a fill that is none":
        assert live.state().cold and live.state().why_cold
    mended(live, keeper)
    assert live.exact(), "live again means right again"
    tick_until(keeper, lambda: live.state().verified_at)
    assert live.exact() and live.state("cities").verified_at == before, "the other counter has nothing to do with it"


def test_a_watermark_with_zeros_before_it_is_set_again(live, keeper):
    """By its length it would be later than every xact, and would not be raised."""
    live.redis.hset(USERS.intake, "watermark", b"000" + live.redis.hget(USERS.intake, "watermark"))
    assert live.state().disbelieved == ("watermark",) and not live.state().cold
    tick_until(keeper, lambda: live.state().watermark)
    assert not live.state().disbelieved and live.state().watermark_reset_at


@pytest.mark.parametrize("field", ["verified_at", "complete_through", "missing", "left_through"])
@pytest.mark.parametrize("value", ["soon", "250246368000000000", "9" * 25], ids=["text", "year 9900", "25 digits"])
def test_a_proof_that_cannot_be_is_made_anew(live, keeper, field, value):
    live.redis.hset(USERS.state, field, value)
    if field != "missing" or value != "250246368000000000":
        assert live.state().disbelieved == (field,)
    assert live.state().cold is (field == "complete_through"), "there is no count that does not say how complete it is"
    tick_until(
        keeper, lambda: live.state().verified_at and live.state().complete_through and not live.state().disbelieved
    )
    assert live.state().complete_through <= datetime.now(UTC) and live.exact()
    if field == "left_through":
        tick_until(keeper, lambda: live.state().left_through == live.state().cursor)


@pytest.mark.parametrize("field", ["watermark", "watermark_source"])
def test_a_watermark_that_is_missing_stops_sweeps_until_the_keeper_has_set_it_anew(live, keeper, monkeypatch, field):
    live.redis.hset(USERS.intake, field, "soon")
    live.erase("ann")
    live.replay()
    failed = live.reconcile("users", wait_seconds=0.05)
    assert failed.status is Status.FAILED and "the watermark of the counter is missing" in failed.detail
    tick_until(keeper, lambda: live.state().watermark is not None)
    # What was acknowledged a moment before need not be on the replica.
    monkeypatch.setattr(sweep, "RESET_SLACK", timedelta(minutes=5))
    failed = live.reconcile("users", wait_seconds=0.05)
    assert failed.status is Status.FAILED and "set again" in failed.detail and b"ann" in live.set()
    monkeypatch.setattr(sweep, "RESET_SLACK", timedelta())
    live.post("dora")
    live.replay()
    assert live.reconcile("users").status is Status.DONE and live.exact()


def test_a_watermark_from_far_away_is_set_anew_once_the_replica_shows_that_it_cannot_be(live, keeper, monkeypatch):
    far = 10**18
    live.redis.hset(USERS.intake, "watermark", far)
    keeper.tick()
    live.post("dora")
    live.replay()
    keeper.tick()
    assert live.state().watermark == far, "the replica may lag: that takes longer to say"
    monkeypatch.setattr(plausibility, "IMPOSSIBLE_AFTER", timedelta())
    tick_until(keeper, lambda: live.state().watermark < far or not live.store("eve"))


def test_a_watermark_of_a_replica_that_lags_is_left_alone(live, keeper, monkeypatch):
    monkeypatch.setattr(plausibility, "IMPOSSIBLE_AFTER", timedelta())
    with live.replay_paused():
        acknowledged = live.post("dora").xact
        for _ in range(5):
            keeper.tick()
        assert live.state().watermark == acknowledged and live.state().watermark_reset_at is None


def test_a_cursor_from_far_away_is_no_reason_to_wait_for_ever(live, keeper, monkeypatch):
    monkeypatch.setattr(plausibility, "IMPOSSIBLE_AFTER", timedelta())
    live.redis.hset(USERS.state, "cursor", 10**18)
    # Somebody commits now and then: the replica shows how far it is by that.
    tick_until(keeper, lambda: live.state().cursor != 10**18 or not live.store("dora"))
    live.replay()
    tick_until(keeper, lambda: not live.state().cold and live.exact())


def test_a_check_finds_what_was_changed_by_hand_and_does_not_make_it_right(live):
    live.redis.sadd(USERS.members, "nobody")
    run = live.reconcile("users", mode=Mode.CHECK)
    assert (run.findings["users"].missing, run.findings["users"].extra) == (0, 1)
    assert live.state().cold and live.state().drift.extra == 1 and not live.state().repaired
    live.reconcile("users")
    assert not live.state().cold and live.state().repaired and live.exact()


def test_a_set_that_is_changed_while_a_run_looks_at_it_is_looked_at_again(live):
    running = live.steps(live.ask("users"))
    next(running)
    live.redis.sadd(USERS.members, "nobody")
    for _ in running:
        pass
    assert live.exact() and not live.state().cold and live.state().drift.extra == 1


def test_a_set_that_is_changed_during_every_attempt_fails_the_run_with_the_reason(live):
    run = live.ask("users")
    for number, _ in enumerate(live.steps(run)):
        live.redis.sadd(USERS.members, f"nobody {number}")
    ended = live.runs_get(run.id)
    assert ended.status is Status.FAILED and "something other than Rollcall has changed the set" in ended.detail
    assert live.state().cold


def test_scripts_that_redis_forgets_in_the_middle_lose_no_drift(live, monkeypatch):
    """Each method is called only once: a second call would find nothing to do, and say so."""
    members = [b"ghost %05d" % number for number in range(3 * steps.CHUNK_MEMBERS)]
    call = steps._call

    def forgetful(client, calls, then):
        monkeypatch.setattr(steps, "_call", call)
        first = yield from call(client, calls[:1], ())
        live.redis.script_flush()
        return first + (yield from call(client, calls[1:], then))

    monkeypatch.setattr(steps, "_call", forgetful)
    assert steps.record(live.redis, {"users": members}) == len(members)
    live.redis.hset(USERS.suspects, mapping=dict.fromkeys(members, "sweep"))
    monkeypatch.setattr(steps, "_call", forgetful)
    gone, _ = steps.sweep(live.redis, "users", "sweep", dict.fromkeys(members, b""), live.state().changed_at)
    assert sorted(gone) == members


def test_a_sweep_marks_no_more_than_a_round_at_a_time(live, monkeypatch):
    monkeypatch.setattr(sweep, "ROUND_MEMBERS", 200)
    monkeypatch.setattr(sweep, "CHUNK_ASKED", 100)
    monkeypatch.setattr(sweep, "CHUNK_FILTERED", 100)
    steps.record(live.redis, {"users": [b"ghost %04d" % number for number in range(1_500)]})
    most = 0
    running = sweep_of(live)
    for _ in running:
        most = max(most, live.redis.hlen(USERS.suspects))
    assert 100 <= most <= 300 and live.exact(["users"]) and not live.redis.exists(USERS.suspects)


def test_ingest_alone_cannot_end_the_keeper_or_a_counter(live, keeper):
    """Every field that ingest's user may write, with everything that it must not be."""
    for field in ("size", "build", "fill", "watermark", "watermark_source"):
        for value in ("", "x", "-1", "9" * 25, "1/1", "1/1/1/1", b"\xff"):
            live.redis.hset(USERS.intake, field, value)
            keeper.tick()
            live.store("dora")
    live.replay()
    mended(live, keeper)
    tick_until(keeper, lambda: b"dora" in live.set())
    assert not live.state("cities").cold


def test_a_pass_advances_no_counter_that_was_built_anew_up_to_the_same_cursor(live):
    was = live.state()
    live.redis.delete(USERS.members)
    live.redis.hdel(USERS.state, "cursor")
    live.build("users")
    assert live.state().cursor == was.cursor and live.state().build != was.build
    assert not steps.advance(live.redis, "users", was, was.cursor + 1, None)


def test_a_run_that_settles_a_gap_waits_until_it_sees_what_was_acknowledged(live):
    with live.replay_paused():
        live.post("dora")
        live.redis.srem(USERS.members, "dora")
        run = live.reconcile("users", wait_seconds=0.05)
        assert run.status is Status.FAILED and "ingest has acknowledged xact" in run.detail and live.state().cold
    live.replay()
    assert live.reconcile("users").status is Status.DONE
    assert not live.state().cold and b"dora" in live.set()


def test_a_run_that_another_one_has_robbed_of_its_marks_proves_nothing(live, monkeypatch):
    live.redis.sadd(USERS.members, "nobody")
    run, take_out = live.ask("users"), steps.sweep

    def robbed(redis, name, token, members, changed_at):
        live.redis.unlink(USERS.suspects)
        return take_out(redis, name, token, members, changed_at)

    monkeypatch.setattr(steps, "sweep", robbed)
    for _ in live.steps(run):
        pass
    ended = live.runs_get(run.id)
    assert ended.status is Status.FAILED and "another run removed their marks" in ended.detail
    assert live.state().cold


def test_a_record_does_not_make_up_for_a_watermark_that_was_deleted(live):
    """It may be lower than what was acknowledged before."""
    live.redis.hdel(USERS.intake, "watermark")
    live.post("dora")
    assert live.state().watermark is None


def test_an_acknowledged_member_stays_where_the_intake_of_a_counter_was_deleted_before_its_first_build(
    world, monkeypatch
):
    """The watermark goes with the intake, and the replica may not show the row yet."""
    monkeypatch.setattr(sweep, "RESET_SLACK", timedelta(minutes=5))
    with world.replay_paused():
        world.post("ann")
        world.redis.delete(USERS.intake)
        world.build("users")
        run = world.reconcile("users", wait_seconds=0.05)
        assert run.status is Status.FAILED and "set again" in run.detail
        assert world.set() == {b"ann"} and world.state().cold
    world.replay()
    monkeypatch.setattr(sweep, "RESET_SLACK", -timedelta(minutes=5))
    assert world.reconcile("users").status is Status.DONE
    assert world.set() == {b"ann"} and not world.state().cold


def test_a_gap_that_another_run_has_settled_is_not_settled_again(live):
    """The second run has looked before the second change, which looks like the first one."""
    live.redis.srem(USERS.members, "ann")
    first, second = live.state(), live.state()
    steps.record(live.redis, {"users": [b"ann"]})
    now = datetime.now(UTC)
    verify = partial(steps.verify, live.redis, "users", repaired=True, history=first.history)
    assert verify(first.build, first.gap, now, Drift(1, 0))
    live.redis.srem(USERS.members, "ann")
    assert live.state().gap == second.gap
    assert not verify(second.build, second.gap, now, Drift(0, 0))
    assert live.state().cold
