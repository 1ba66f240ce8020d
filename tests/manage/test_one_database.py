"""Manage reads the primary itself (profile `single`), and that one crashes: xacts that left no trace are handed out again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psycopg2
import pytest

from compose.servers import Primary
from loadtest.chaos.rules import leave_out
from tests.manage.world import World
from tests.servers import FAST, free_port, servers_folder, sql, started_valkey, wait_for


@pytest.fixture(scope="module")
def only():
    """A Postgres of its own, whose log goes to the disk when somebody waits for it, and not sooner."""
    server = Primary(
        servers_folder() / "only", free_port(), settings={**FAST, "wal_writer_delay": "10s"}, dies_with_parent=True
    )
    server.start()
    subprocess.run(
        [sys.executable, "-m", "ingest_service", "migrate", "--verbosity=0", "--skip-checks"],
        env={**os.environ, "DATABASE_URL": server.url, "DJANGO_SETTINGS_MODULE": "ingest_service.settings"},
        check=True,
    )
    yield server
    server.stop()


@pytest.fixture
def alone(only):
    """A world with one database."""
    started_valkey()
    world = World(only, only, started_valkey())
    world.ask_primary("TRUNCATE message")
    world.redis.flushall()
    yield world
    world.close()


def crash(world):
    """SIGKILL to one backend: Postgres ends the others and recovers, and its postmaster lives on."""
    world.replica.close()
    world.database.close()
    victim = psycopg2.connect(world.primary.url)
    os.kill(victim.info.backend_pid, signal.SIGKILL)

    def recovered():
        try:
            return sql(world.primary, "SELECT true")
        except psycopg2.OperationalError:
            return False

    wait_for(lambda: not alive(victim), "the crash")
    wait_for(recovered, "the recovery")
    world.database = psycopg2.connect(world.primary.url)
    world.database.autocommit = True


def alive(connection):
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error:
        return False
    return True


def test_a_row_whose_xact_was_handed_out_before_is_counted_all_the_same(alone):
    alone.post("ann")
    alone.build()
    for _ in range(50):
        alone.ask_primary("SELECT pg_current_xact_id()")  # leaves no trace in the log
    alone.catch_up()
    ((burned,),) = alone.ask_primary("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    crash(alone)
    assert alone.store("bob").xact < burned, "it was handed out before"
    alone.catch_up()
    assert alone.exact(["users"]) and not alone.state().cold


def test_a_build_claims_no_xact_that_may_be_handed_out_again(alone):
    alone.store("ann")
    for _ in range(50):
        alone.ask_primary("SELECT pg_current_xact_id()")
    alone.build()
    crash(alone)
    alone.store("bob")
    alone.catch_up()
    assert alone.exact(["users"])


def test_a_row_that_is_shown_before_it_is_on_the_disk_moves_no_cursor(alone):
    alone.post("ann")
    alone.build()
    alone.catch_up()
    before = alone.state().cursor
    lost = psycopg2.connect(alone.primary.url)
    with lost.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute("INSERT INTO message (state, city, username, message) VALUES ('NY', 'Rome', 'lost', '')")
    lost.commit()
    alone.catch_up()
    assert b"lost" in alone.set() and alone.state().cursor == before
    crash(alone)
    if alone.ask_primary("SELECT true FROM message WHERE username = 'lost'"):
        pytest.fail("the log was written all the same: this test shows nothing")
    alone.store("bob")
    alone.catch_up()
    assert b"bob" in alone.set(), "it has the xact of the row that was lost"
    alone.reconcile("users")
    assert alone.exact(["users"])


def test_without_the_rule_the_row_is_not_counted(alone, monkeypatch):
    leave_out("durable cursor", monkeypatch.setattr)
    with pytest.raises(AssertionError):
        test_a_row_whose_xact_was_handed_out_before_is_counted_all_the_same(alone)
    assert not alone.state().cold and b"bob" not in alone.set(), "short, and live"
