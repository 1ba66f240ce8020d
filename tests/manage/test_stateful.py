"""Everything in any order, against real servers, with one invariant: below the cursor nothing is missing.

Hypothesis chooses who moves next: producers (whole requests, requests that die before they count, transactions that stay
open), an eraser, the replica's replay, the keeper's passes, builds and runs step by step (several at once, and taken up
again after a crash), and Redis, which is emptied, or goes back to an older save. At the end, when everyone is quiet, one
pass or build and one reconcile make every set equal to its table.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg2 import Error as PostgresError
from redis.exceptions import RedisError

from manage_service.protocol import sweep
from manage_service.protocol.build import build, needs_building
from manage_service.runs import registry
from shared_models import declarations
from shared_models.declarations import get_counter
from shared_models.protocol import keys
from shared_models.protocol.members import encode_all
from tests.manage.world import World

USERS = st.sampled_from(["ann", "bob"])
NAMES = st.sampled_from(["users", "users", "cities"])
MODES = st.sampled_from(["repair", "repair", "check"]).map(registry.Mode)
UNTIL = st.sampled_from(["the next step", "suspects are marked", "it ends or waits", "it ends or waits"])


class Everything(RuleBasedStateMachine):
    """The world, and what was promised in it."""

    world: World

    @initialize(rows=st.lists(USERS, max_size=2), cold=st.sampled_from([False, False, False, True]))
    def begin(self, rows, cold):
        self.world.empty()
        for user in rows:
            self.world.store(user, city=user)
        if not cold:
            self.world.replay()
            self.world.build()
        self.world.redis.save()
        self.open = []  # producers whose transaction is open
        self.jobs = []  # builds and runs under way
        self.paused = None
        self.acknowledged: set[str] = set()  # users counted, and not erased or lost since

    def teardown(self):
        if not hasattr(self, "open"):
            return
        self.resume()
        for producer in self.open:
            producer.commit()
        self.world.replay()
        for name in (counter.name for counter in declarations.COUNTERS):
            with self.world.replica.snapshot() as snapshot:
                source = snapshot.source
            while needs_building(
                self.world.state(name), source
            ):  # as the keeper does: one that has lost its set begins again
                self.world.build(name)
            while not self.world.catch_up(name).finished:
                pass
        self.forget_jobs()
        # Ingest's pulse: a watermark that was set again is valid once the replica shows a later commit.
        self.world.ask_primary("SELECT pg_logical_emit_message(true, 'rollcall', 'pulse')")
        self.world.replay()
        run = self.world.reconcile()
        assert run.status == "done", run.detail
        assert self.world.exact()

    # -- producers and the eraser

    @rule(user=USERS, how=st.sampled_from(["counted", "counted", "not counted", "left open"]))
    def send(self, user, how):
        if how == "counted":
            self.world.post(user, city=user)
            self.acknowledged.add(user)
        elif how == "not counted":
            self.world.store(user, city=user)
        elif len(self.open) < 2:
            self.open.append(self.world.begin().insert(user, city=user))

    @precondition(lambda self: self.open)
    @rule(counts=st.booleans())
    def end_a_request(self, counts):
        producer = self.open.pop(0).commit()
        if counts:
            producer.count()
            self.acknowledged.update(user for _, user in producer.rows)

    @rule(user=USERS)
    def erase(self, user):
        self.world.erase(user)
        self.acknowledged.discard(user)

    # -- the replica

    @precondition(lambda self: self.paused is None)
    @rule()
    def pause_replay(self):
        self.paused = self.world.replay_paused()
        self.paused.__enter__()

    @precondition(lambda self: self.paused is not None)
    @rule()
    def resume(self):
        if self.paused is not None:
            self.paused.__exit__(None, None, None)
            self.paused = None

    @precondition(lambda self: self.paused is None)
    @rule()
    def replay(self):
        self.world.replay()

    # -- the keeper and operators

    @rule(name=NAMES)
    def catch_up(self, name):
        self.world.catch_up(name)

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(name=NAMES, until=UNTIL)
    def begin_a_build(self, name, until):
        with self.world.replica.snapshot() as snapshot:
            source = snapshot.source
        if needs_building(self.world.state(name), source):
            self.go_on(build(get_counter(name), self.world.replica, self.world.passes()), until)

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(name=NAMES, mode=MODES, until=UNTIL)
    def begin_a_run(self, name, mode, until):
        self.go_on(self.world.steps(self.world.ask(name, mode=mode), wait_seconds=0.0), until)

    @precondition(lambda self: len(self.jobs) < 3)
    @rule()
    def take_up_a_run_whose_process_has_died(self):
        for run in registry.still_open(self.world.redis)[:1]:
            self.world.redis.delete(*(keys.of_lock(f"reconcile:{name}") for name in run.counters))
            self.go_on(self.world.steps(run, wait_seconds=0.0), "the next step")

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, 2), until=UNTIL)
    def go_on_with_a_job(self, which, until):
        self.go_on(self.jobs.pop(which % len(self.jobs)), until)

    def go_on(self, job, until):
        """Run a job to there, and keep it where it has not ended."""
        try:
            for progress in job:
                marked = progress.phase == "mark"
                if progress.waiting or until == "the next step" or (until == "suspects are marked" and marked):
                    self.jobs.append(job)
                    return
        except (RedisError, PostgresError):
            pass

    # -- Redis, and people with redis-cli

    @rule(name=NAMES)
    def add_a_ghost_by_hand(self, name):
        self.world.redis.sadd(keys.of_counter(name).members, "ghost", "ann")

    @rule(what=st.sampled_from(["saves", "saves", "goes back to its save", "is emptied", "goes on", "goes on"]))
    def redis(self, what):
        """To go back is what a restart from an older save is to everybody else: other data, and no connection survives."""
        if what == "saves":
            self.world.redis.save()
        elif what == "goes back to its save":
            self.world.redis.execute_command("DEBUG", "RELOAD", "NOSAVE")
            self.cut_connections()
        elif what == "is emptied":
            self.world.redis.flushall()
            self.cut_connections()

    def cut_connections(self):
        self.acknowledged.clear()
        self.world.redis.client_kill_filter(skipme=True)

    def forget_jobs(self):
        for job in self.jobs:
            try:
                job.close()
            except RedisError:
                pass
        self.jobs = []
        self.world.redis.delete(*(keys.of_lock(f"reconcile:{counter.name}") for counter in declarations.COUNTERS))

    # -- what holds at every moment

    @invariant()
    def below_the_cursor_nothing_is_missing(self):
        if not hasattr(self, "open"):
            return
        for counter in declarations.COUNTERS:
            state = self.world.state(counter.name)
            if not state.cold:
                fields = ", ".join(counter.fields)
                rows = self.world.ask_primary(f"SELECT DISTINCT {fields} FROM message WHERE xact < %s", state.cursor)
                assert set(encode_all(rows, len(counter.fields))) <= self.world.set(counter.name)

    @invariant()
    def what_was_acknowledged_is_counted(self):
        if hasattr(self, "open"):
            assert {user.encode() for user in self.acknowledged} <= self.world.set("users")


@pytest.mark.parametrize("stories", [12, pytest.param(200, marks=pytest.mark.long)])
def test_below_the_cursor_nothing_is_missing_whatever_happens_in_whatever_order(
    world, second_valkey, monkeypatch, stories
):
    monkeypatch.setattr(sweep, "RESET_SLACK", timedelta())  # all clocks are this machine's
    # A Redis of its own: it writes saves to disk, which the others need not wait for.
    world.valkey = second_valkey(appendonly="no", save="")
    world.redis = type(world.redis).from_url(world.valkey.url)

    class Here(Everything):
        pass

    Here.world = world
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=stories,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
