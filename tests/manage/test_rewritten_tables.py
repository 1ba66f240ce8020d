"""A table that gets a new file under a snapshot: ALTER TABLE … TYPE, and TRUNCATE with a reload in one transaction.

Postgres does not keep the old file for a snapshot from before. Here manage reads the primary itself, so that a test can
see whether the rewrite waits for the snapshot's lock, or goes through.
"""

from __future__ import annotations

import threading

import psycopg2
import pytest
from psycopg2.errors import LockNotAvailable

from loadtest.chaos.rules import leave_out
from manage_service import stores
from manage_service.protocol import build
from manage_service.replica import snapshots
from manage_service.replica import sql as statements
from manage_service.runs.registry import Status
from shared_models.declarations import get_counter
from shared_models.protocol import keys
from tests.manage.world import pass_over
from tests.servers import sql, wait_for

USERS = get_counter("users")

ALTER = "ALTER TABLE message ALTER COLUMN message TYPE text USING message || ''"
RELOAD = """
    CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT * FROM message;
    TRUNCATE message;
    INSERT INTO message OVERRIDING SYSTEM VALUE SELECT * FROM kept
"""


class Armed(snapshots.Replica):
    """What is read next is followed by a rewrite, if it is armed."""

    armed = False


@pytest.fixture(params=[ALTER, RELOAD], ids=["alter", "reload"])
def rewriting(request, world, monkeypatch):
    """A replica object that reads the primary; right behind its next snapshot, the table is rewritten, or waits for it."""
    replica = Armed(world.primary.url)
    horizon, rewrites = statements.HORIZON, []
    ask = snapshots.ask

    def rewrite():
        with psycopg2.connect(world.primary.url) as connection, connection.cursor() as cursor:
            cursor.execute(request.param)
        connection.close()

    def ask_and_rewrite(connection, statement, parameters=()):
        answer = ask(connection, statement, parameters)
        if statement == horizon and replica.armed and connection.info.transaction_status != 0:
            replica.armed = False
            rewrites.append(threading.Thread(target=rewrite))
            rewrites[0].start()
            waiting = "SELECT true FROM pg_locks WHERE relation = 'message'::regclass AND NOT granted"
            wait_for(
                lambda: not rewrites[0].is_alive() or sql(world.primary, waiting), "the rewrite to wait, or to be done"
            )
        return answer

    monkeypatch.setattr(snapshots, "ask", ask_and_rewrite)
    yield replica
    for thread in rewrites:
        thread.join()
    replica.close()
    assert rewrites, "the table was rewritten"


def test_a_pass_does_not_advance_over_rows_that_it_did_not_see(world, rewriting):
    world.build()
    world.store("ann", "bob")
    world.replay()
    rewriting.armed = True
    pass_over(USERS, rewriting, world.passes())
    assert world.set() == {b"ann", b"bob"}
    pass_over(USERS, rewriting, world.passes())
    assert world.exact(["users"]) and not world.state().cold


def test_a_build_does_not_go_live_with_a_part(world, rewriting, monkeypatch):
    monkeypatch.setattr(statements, "CHUNK_ROWS", 10)
    world.store(*(f"user{number:02}" for number in range(50)))
    world.replay()
    steps = build.build(USERS, rewriting, world.passes())
    next(steps)
    rewriting.armed = True
    for _ in steps:
        pass
    assert not world.state().cold and world.exact(["users"])


def test_a_sweep_takes_out_no_member_that_has_a_row(world, rewriting, monkeypatch):
    world.post("ann", "bob")
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "nobody")
    world.replica.close()
    world.replica = rewriting
    steps = world.steps(world.ask("users"))
    while next(steps).phase != "mark":
        pass
    rewriting.armed = True
    for _ in steps:
        pass
    assert world.exact(["users"]) and world.set() == {b"ann", b"bob"}


def test_a_table_that_somebody_is_about_to_change_is_waited_for_and_the_others_are_not(world, monkeypatch):
    world.post("ann")
    world.replay()
    world.build()
    replica = stores.connect_replica(world.primary.url)
    world.store("bob")
    with psycopg2.connect(world.primary.url) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE message IN ACCESS EXCLUSIVE MODE")
        assert "holds a lock" in pass_over(USERS, replica, world.passes()).behind
        with pytest.raises(LockNotAvailable):
            next(build.build(USERS, replica, world.passes()))
        world.replica.close()
        world.replica = replica
        run = world.reconcile("users", wait_seconds=0.3)
        assert run.status is Status.FAILED and "lock timeout" in run.detail
    connection.close()
    assert pass_over(USERS, replica, world.passes()).behind == "" and world.exact(["users"])


def test_a_table_that_hides_rows_is_an_error_and_not_a_table_with_fewer_rows(world):
    """Row-level security, switched on by the owner of the table, for a role that has no policy."""
    world.post("ann", "bob")
    world.replay()
    world.build()
    database = world.primary.url.rsplit("/", 1)[1]
    sql(world.primary, f"CREATE ROLE narrow LOGIN PASSWORD 'narrow'; GRANT CONNECT ON DATABASE {database} TO narrow")
    sql(world.primary, "GRANT USAGE ON SCHEMA public TO narrow; GRANT SELECT ON message TO narrow")
    try:
        sql(world.primary, "ALTER TABLE message ENABLE ROW LEVEL SECURITY")
        replica = stores.connect_replica(as_role(world.primary, "narrow"))
        world.store("cid")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            pass_over(USERS, replica, world.passes())
        world.replica.close()
        world.replica = replica
        run = world.reconcile("users")
        assert run.status is Status.FAILED and "superuser run ALTER ROLE narrow BYPASSRLS" in run.detail
        assert world.set() == {b"ann", b"bob"} and world.state().verified_at is None
    finally:
        sql(world.primary, "ALTER TABLE message DISABLE ROW LEVEL SECURITY")
        sql(world.primary, "DROP OWNED BY narrow; DROP ROLE narrow")


def as_role(server, role):
    """The URL of a server for another role, whose password is its name."""
    return f"postgres://{role}:{role}@127.0.0.1:{server.port}/{server.url.rsplit('/', 1)[1]}"


def test_without_the_lock_these_tests_fail(world, rewriting, monkeypatch):
    leave_out("lock first", monkeypatch.setattr)
    with pytest.raises(AssertionError):
        test_a_pass_does_not_advance_over_rows_that_it_did_not_see(world, rewriting)
    assert not world.state().cold, "short, and live"
