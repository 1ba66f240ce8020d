"""Manage reads the primary directly (profile `single`), and that server crashes.

A primary shows commits before its log is on its disk, and gives the xacts that a crash has taken from the log out again. Here
the log writer sleeps for ten seconds, so that a crash takes whatever nobody has waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psycopg2
import pytest

from compose.local.servers import Primary
from manage_service.protocol.build import build
from manage_service.replica import snapshots, sql
from shared_models.declarations import get_counter
from tests import servers
from tests.manage.world import INSERT, World
from tests.servers import wait_for

USERS = get_counter("users")


class Site(World):
    """A world whose only database is read itself."""

    def replay(self) -> None:
        """There is nothing to wait for, but the disk."""
        self.ask_primary("SELECT pg_logical_emit_message(true, 'a commit', 'that is waited for')")

    def build(self, *names: str) -> None:
        """A read tidies pages up, and logs that: where nobody flushes, each step may have to wait."""
        for _ in range(20):
            self.replay()
            try:
                return super().build(*names)
            except snapshots.NotOnDisk:
                continue
        pytest.fail("the build was not done in 20 attempts")

    def follow(self) -> None:
        """Catch up for as long as somebody commits now and then: also here a read tidies up, and logs that."""
        for _ in range(20):
            if self.catch_up().behind == "":
                return
            self.replay()
        pytest.fail("the counter was not caught up in 20 attempts")

    def quietly(self, statement: str, *parameters: object) -> None:
        """Commit without waiting for the disk."""
        self.ask_primary("SET synchronous_commit = off")
        self.ask_primary(statement, *parameters)
        self.ask_primary("RESET synchronous_commit")

    def next_xact(self) -> int:
        return servers.sql(self.primary, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0]

    def crash(self, how: str) -> None:
        if how == "the server is killed":
            self.primary.kill()
            self.primary.start()
        else:
            # Kill one of its processes: the server ends the others, and resets its memory.
            os.kill(self.database.info.backend_pid, signal.SIGKILL)
            wait_for(self.is_back, "the server to have recovered")
        self.database.close()
        self.database = psycopg2.connect(self.primary.url)
        self.database.autocommit = True
        self.replica.close()

    def is_back(self) -> bool:
        try:
            with self.database.cursor() as cursor:
                cursor.execute("SELECT 1")
            return False
        except psycopg2.Error:
            return self.primary.why_not_ready() is None


@pytest.fixture(scope="module")
def only_database() -> Iterator[Primary]:
    settings = {**servers.FAST, "wal_writer_delay": "10s"}
    server = Primary(servers.servers_folder() / "only", servers.free_port(), settings=settings, dies_with_parent=True)
    servers.start(server)
    subprocess.run(
        [sys.executable, "-m", "ingest_service", "migrate", "--verbosity=0", "--skip-checks"],
        env={**os.environ, "DATABASE_URL": server.url, "DJANGO_SETTINGS_MODULE": "ingest_service.settings"},
        check=True,
    )
    yield server
    server.stop()


@pytest.fixture
def site(only_database, valkey) -> Iterator[Site]:
    site = Site(only_database, only_database, valkey)
    site.empty()
    yield site
    site.close()


@pytest.fixture(params=["the log is flushed", "its flush is waited for"])
def flushing(request, monkeypatch) -> None:
    """As with Postgres 17 and later, and as with those before."""
    if request.param == "its flush is waited for":
        monkeypatch.setattr(sql, "FLUSHES_FROM_VERSION", 99_00_00)
        monkeypatch.setattr(snapshots, "FLUSH_WAIT_SECONDS", 0.1)


@pytest.fixture(params=["the server is killed", "a process of the server is killed"])
def crash(request, flushing) -> str:
    return request.param


def test_xacts_that_wrote_nothing_are_not_claimed_before_a_crash_gives_them_out_again(site, crash):
    site.build()
    site.post("ann")
    for _ in range(50):
        site.ask_primary("SELECT pg_current_xact_id()")
    site.catch_up()
    site.crash(crash)
    assert site.next_xact() >= site.state().cursor
    site.store("bob")
    site.follow()
    assert site.exact(["users"])


def test_a_row_that_a_crash_takes_is_not_claimed_before(site, crash):
    site.build()
    site.post("ann")
    site.quietly(INSERT, "Ithaca", "lost")
    site.catch_up()
    site.crash(crash)
    site.store("bob")
    site.follow()
    assert b"bob" in site.set() and site.exact(["users"])


def test_a_member_whose_deletion_a_crash_takes_back_is_not_swept_before(site, crash):
    site.post("ann", "bob")
    site.build()
    site.quietly("DELETE FROM message WHERE username = 'ann'")
    site.reconcile("users", wait_seconds=0.2)
    site.crash(crash)
    site.follow()
    assert site.exact(["users"]) and not site.state().cold


def test_a_build_does_not_pass_over_a_row_whose_deletion_a_crash_takes_back(site, crash, monkeypatch):
    monkeypatch.setattr(sql, "CHUNK_ROWS", 1)
    site.ask_primary("VACUUM")  # or the first reader prunes the catalog, which writes to the log and does not flush it
    site.store("ann", "bob", "cid")
    steps = build(USERS, site.replica, site.passes())
    next(steps)
    site.quietly("DELETE FROM message WHERE username = 'bob'")
    try:
        for _ in steps:
            pass
    except snapshots.NotOnDisk:
        assert site.state().cold
    site.crash(crash)
    if site.state().cold:
        site.build("users")
    site.follow()
    assert site.exact(["users"])


def test_a_transaction_that_is_left_open_holds_up_nobody_who_needs_the_log_on_the_disk(site):
    site.build()
    before = site.state().complete_through
    with psycopg2.connect(site.primary.url) as connection, connection.cursor() as cursor:
        cursor.execute(INSERT, ("Ithaca", "later"))
        assert site.catch_up().behind == ""
        assert site.state().complete_through > before
    connection.close()


def test_a_server_that_flushes_by_itself_only_is_waited_for_and_the_reason_is_said(site, monkeypatch):
    monkeypatch.setattr(sql, "FLUSHES_FROM_VERSION", 99_00_00)
    site.build()
    cursor = site.state().cursor
    monkeypatch.setattr(snapshots, "FLUSH_WAIT_SECONDS", 0.1)
    site.quietly(INSERT, "Ithaca", "ann")
    assert "not on its disk yet" in site.catch_up().behind
    assert site.state().cursor == cursor
    site.store("bob")  # a commit that is waited for takes all before it along
    site.follow()
    assert site.exact(["users"])


def test_the_start_of_a_page_of_the_log_is_not_waited_for(site, monkeypatch):
    monkeypatch.setattr(sql, "FLUSHES_FROM_VERSION", 99_00_00)
    monkeypatch.setattr(snapshots, "FLUSH_WAIT_SECONDS", 0.0)
    site.store("ann")
    site.ask_primary("SELECT pg_switch_wal()")
    ((ahead,),) = servers.sql(site.primary, "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()")
    assert ahead
    site.build("users")
    assert site.exact(["users"])


def test_manages_own_role_may_have_the_log_flushed(site):
    site.quietly(INSERT, "Ithaca", "ann")
    reader = snapshots.Replica(site.primary.url_of("manage"))
    with reader.snapshot(USERS) as snapshot:
        assert snapshot.read_members(USERS, None, jumping=False) == [("ann",)]
        assert servers.sql(site.primary, "SELECT pg_current_wal_flush_lsn() = pg_current_wal_insert_lsn()") == [(True,)]
    reader.close()
