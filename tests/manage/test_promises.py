"""The promises (README) that manage keeps, each under its name. Ingest's and query's are in their folders."""

from __future__ import annotations

import random
import threading
import tracemalloc

from manage_service.protocol import sweep
from manage_service.replica import sql
from manage_service.runs import registry
from manage_service.runs.registry import Mode
from shared_models.protocol import keys, states
from tests import servers
from tests.manage.keepers import keeper_process
from tests.servers import wait_for


def test_P3_what_was_stored_while_redis_was_down_is_counted_without_an_operator(world):
    with keeper_process(world):
        wait_for(lambda: not world.state().cold and not world.state("cities").cold, "the keeper to build")
        world.store("ann", "bob", city="Rome")
        wait_for(world.exact, "the next passes")


def test_P4_a_counter_that_was_never_completed_or_was_lost_is_cold(world):
    assert world.state().cold
    world.post("ann")
    assert world.state().cold, "members that ingest has recorded do not make a counter"
    world.replay()
    world.build()
    assert not world.state().cold
    world.redis.delete(keys.of_counter("users").state)
    assert world.state().cold


def test_P5_exact_once_writes_pause_and_a_reconcile_has_run(world):
    """Everything at random: counted or not, erased or not, members lost from the set and put into it by hand."""
    chance = random.Random(5)
    world.build()
    for _ in range(60):
        who = f"user{chance.randrange(40)}"
        chance.choice([world.post, world.store, world.store, world.erase])(who)
        if chance.random() < 0.2:
            world.redis.srem(keys.of_counter("users").members, f"user{chance.randrange(40)}")
        if chance.random() < 0.2:
            world.redis.sadd(keys.of_counter("users").members, f"ghost{chance.randrange(40)}")
    world.replay()
    world.reconcile()
    assert world.exact()


def test_P5_exact_while_producers_erasers_and_operators_work_at_the_same_time(world):
    """Real threads against a real keeper; then they pause, one reconcile, and member by member."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def forever(act):
        def loop():
            try:
                while not stop.is_set():
                    act()
            except BaseException as failure:  # noqa: BLE001  (shown by the test)
                failures.append(failure)

        return threading.Thread(target=loop)

    chance = random.Random(1)
    actors = [
        forever(lambda: world.post(f"user{chance.randrange(300)}")),
        forever(lambda: world.store(f"user{chance.randrange(300)}", city=f"City{chance.randrange(9)}")),
        forever(lambda: world.erase(f"user{chance.randrange(300)}")),
        forever(lambda: world.redis.sadd(keys.of_counter("users").members, f"ghost{chance.randrange(99)}")),
    ]
    with keeper_process(world, RECONCILE_SECONDS="0.2"):
        for actor in actors:
            actor.start()
        stop.wait(4)
        stop.set()
        for actor in actors:
            actor.join()
        assert failures == []
        run = world.ask()

        def ended():
            # Ingest's pulse: where a set was changed by hand before it was built, the replica has to show a later commit.
            world.ask_primary("SELECT pg_logical_emit_message(true, 'rollcall', 'pulse')")
            return not registry.get(world.redis, run.id).open

        wait_for(ended, "the run that begins after the writes", seconds=90)
        assert world.exact()


def test_P6_rows_removed_by_any_means_leave_the_count_and_no_other_member_does(world):
    world.post("ann", "bob", "cid")
    world.post("ann")
    world.replay()
    world.build()
    servers.sql(world.primary, "DELETE FROM message WHERE id = (SELECT min(id) FROM message WHERE username = 'ann')")
    world.erase("bob")
    servers.sql(world.primary, "UPDATE message SET username = 'dot' WHERE username = 'cid'")
    world.replay()
    run = world.reconcile()
    assert world.set() == {b"ann", b"dot"}, "ann still has a row"
    assert run.findings["users"].extra == 2 and world.state().drift.extra == 2
    servers.sql(world.primary, "TRUNCATE message")
    world.replay()
    world.reconcile()
    assert world.state().count == 0 and not world.state().cold


def test_P7_a_number_says_since_when_it_was_verified_and_what_was_found(world):
    world.post("ann")
    world.replay()
    world.build()
    assert world.state().verified_at is None and world.state().drift is None
    world.redis.sadd(keys.of_counter("users").members, "ghost")
    run = world.reconcile(mode=Mode.CHECK)
    state = world.state()
    assert run.asked_at < state.verified_at and state.drift == states.Drift(missing=0, extra=1)
    ((now,),) = servers.sql(world.primary, "SELECT clock_timestamp()")
    assert state.complete_through < now


def test_P8_memory_of_a_reconcile_does_not_grow_with_the_counter(world, monkeypatch):
    """Everything differs: 2,000 and then 8,000 members of each kind, in small chunks; the same peak."""
    monkeypatch.setattr(sql, "CHUNK_ROWS", 200)
    monkeypatch.setattr(sweep, "CHUNK_ASKED", 200)
    monkeypatch.setattr(sweep, "CHUNK_FILTERED", 500)

    def peak_of(rows):
        servers.sql(world.primary, "TRUNCATE message")
        servers.sql(
            world.primary,
            "INSERT INTO message (state, city, username, message) "
            f"SELECT 'NY', 'X', 'u' || n, '' FROM generate_series(1, {rows}) AS n",
        )
        world.replay()
        pipe = world.redis.pipeline()
        for start in range(0, rows, 1000):
            pipe.sadd(keys.of_counter("users").members, *(f"ghost{n}" for n in range(start, start + 1000)))
        pipe.execute()
        tracemalloc.start()
        run = world.reconcile("users")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert run.findings["users"].missing + run.findings["users"].extra >= rows
        assert world.exact(["users"])
        return peak

    world.build()
    small = peak_of(2_000)
    assert peak_of(8_000) < 1.3 * small


def test_P8_nothing_on_the_replica_runs_longer_than_a_chunk(world):
    """Each statement that reads a table is bounded by a LIMIT, by the members that it names, or by a FETCH."""
    bounded = {
        "SCAN": "LIMIT",
        "PARSED": "LIMIT 0",
        "JUMP": "LIMIT",
        "SLICE_END": "LIMIT",
        "LOCK": "ACCESS SHARE",  # with a lock_timeout
        "FETCH": "FETCH",
        "WITHOUT_ROW": "unnest",
        "WITH_ROW_BELOW": "unnest",
        "LAST_SEEN": "unnest",
        "RECENT": "",  # read through FETCH
        "HAS_RECENT": "LIMIT",
        "ESTIMATE": "EXPLAIN",
    }
    reads_table = {
        name for name, value in vars(sql).items() if name.isupper() and isinstance(value, str) and "{table}" in value
    }
    assert reads_table <= set(bounded)
    for name, word in bounded.items():
        assert word in getattr(sql, name)
