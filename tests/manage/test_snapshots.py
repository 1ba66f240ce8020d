"""Reading the table: its cost, and conflicts on a standby."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2.errors import QueryCanceled, UndefinedTable
from psycopg2.sql import SQL, Literal

from compose.local.servers import ROLES_SQL
from manage_service import stores
from manage_service.replica import snapshots, sql
from manage_service.replica.sql import BEHIND, JUMP, SCAN, fill_in
from shared_models.declarations import get_counter
from tests import servers
from tests.servers import wait_for

CITIES, USERS = get_counter("cities"), get_counter("users")


@pytest.fixture(scope="module")
def many_rows(primary, replica):
    """The replica of 200,000 rows of 200 cities and 100,000 users, analyzed: what the planner's choice is asked about."""
    servers.sql(primary, "TRUNCATE message")
    servers.sql(
        primary,
        """INSERT INTO message (state, city, username, message)
           SELECT 'S' || n % 10, 'C' || n % 200, 'U' || n % 100000, '' FROM generate_series(1, 200000) AS n""",
    )
    servers.sql(primary, "VACUUM ANALYZE message")
    servers.wait_until_replayed(primary, replica)
    many = stores.connect_replica()
    yield many
    many.close()


def plan(snapshot, template, counter):
    """The plan that Postgres makes for this statement, somewhere in the middle of the table, as text."""
    statement = fill_in(template, counter, behind=fill_in(BEHIND, counter), limit=Literal(1000))
    with snapshot._connection.cursor() as cursor:
        cursor.execute(SQL("EXPLAIN (FORMAT JSON) ") + statement, ("S1", "C1")[: len(counter.fields)])
        return json.dumps(cursor.fetchone()[0])


def test_a_counter_with_few_members_in_a_large_table_is_read_by_jumping(many_rows):
    with many_rows.snapshot() as snapshot:
        estimate = snapshot.estimate(CITIES)
        assert estimate.jumping_pays and 150 <= estimate.members <= 250
        shape = plan(snapshot, JUMP, CITIES)
    assert "Recursive Union" in shape and "Index Only Scan" in shape and "_state_city" in shape
    assert "Seq Scan" not in shape and '"Sort"' not in shape and "Hash" not in shape


def test_a_counter_with_many_members_is_read_by_an_index_only_scan(many_rows):
    with many_rows.snapshot() as snapshot:
        assert not snapshot.estimate(USERS).jumping_pays
        shape = plan(snapshot, SCAN, USERS)
    assert "Index Only Scan" in shape and "_username" in shape
    assert "Seq Scan" not in shape and '"Sort"' not in shape and "Hash" not in shape


@pytest.mark.parametrize("jumping", [True, False])
@pytest.mark.parametrize("counter", [CITIES, USERS], ids=lambda counter: counter.name)
def test_both_ways_of_reading_give_every_member_once_and_in_order(primary, many_rows, counter, jumping, monkeypatch):
    monkeypatch.setattr(sql, "CHUNK_ROWS", 999)
    monkeypatch.setattr(sql, "CHUNK_JUMPS", 999)
    members: list[Any] = []
    after = None
    while True:
        with many_rows.snapshot() as snapshot:
            chunk = snapshot.read_members(counter, after, jumping=jumping)
        if not chunk:
            break
        members, after = members + chunk, chunk[-1]
        if len(members) > 3_000:
            break
    assert len(members) >= 200 and members == sorted(set(members))
    fields = ", ".join(counter.fields)
    expected = servers.sql(primary, f"SELECT DISTINCT {fields} FROM message ORDER BY {fields} LIMIT {len(members)}")
    assert members == expected


def test_a_table_that_was_never_analyzed_is_not_guessed_about(world):
    servers.sql(world.primary, "CREATE TABLE IF NOT EXISTS fresh AS SELECT 'a'::text AS username, 1::bigint AS xact")
    servers.wait_until_replayed(world.primary, world.replica_server)
    with world.replica.snapshot() as snapshot, snapshot._connection.cursor() as cursor:
        cursor.execute(sql.ANALYZED, ("public.fresh", "public.fresh"))
        assert cursor.fetchall() == []
    servers.sql(world.primary, "DROP TABLE fresh")


def test_recent_rows_are_found_by_their_index(many_rows):
    with many_rows.snapshot() as snapshot, snapshot._connection.cursor() as cursor:
        recent = fill_in(sql.RECENT, USERS, narrowed=SQL(""))
        cursor.execute(SQL("EXPLAIN (FORMAT JSON) ") + recent, (snapshot.horizon - 1,))
        assert "_xact" in json.dumps(cursor.fetchone()[0])


def test_a_chunk_cancelled_by_a_recovery_conflict_is_read_again_and_the_run_goes_on(world, monkeypatch):
    """A real one: the replica may not wait, and replays a lock on the table that the snapshot is snapshots."""
    world.post(*(f"user{n:03}" for n in range(100)))
    world.replay()
    world.build()
    read, positions, cancelled = snapshots.Snapshot.read_members, [], []

    def read_slowly(self, counter, after, *, jumping):
        positions.append(after)
        if len(positions) == 3:  # in the middle of the table, a snapshot open
            read(self, counter, after, jumping=jumping)
            servers.sql(world.primary, "BEGIN; LOCK TABLE message IN ACCESS EXCLUSIVE MODE; COMMIT")
            world.replay()
            with pytest.raises(psycopg2.Error) as conflict:
                read(self, counter, after, jumping=jumping)
            cancelled.append(after)
            raise conflict.value
        return read(self, counter, after, jumping=jumping)

    monkeypatch.setattr(sql, "CHUNK_ROWS", 10)
    monkeypatch.setattr(snapshots.Snapshot, "read_members", read_slowly)
    with standby_that_does_not_wait(world):
        run = world.reconcile("users")
    assert run.status == "done" and cancelled and positions[3] == cancelled[0], "taken up again where it was"
    conflicts = "SELECT confl_lock FROM pg_stat_database_conflicts WHERE datname = current_database()"
    wait_for(lambda: servers.sql(world.replica_server, conflicts)[0][0] > 0, "the replica to tell of the conflict")
    assert world.exact(["users"])


@contextmanager
def standby_that_does_not_wait(world):
    servers.sql(world.replica_server, "ALTER SYSTEM SET max_standby_streaming_delay = 0")
    servers.sql(world.replica_server, "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        servers.sql(world.replica_server, "ALTER SYSTEM RESET max_standby_streaming_delay")
        servers.sql(world.replica_server, "SELECT pg_reload_conf()")


def test_a_snapshot_knows_its_facts_and_leaves_no_transaction_open(world):
    world.store("ann")
    world.replay()
    with world.replica.snapshot() as snapshot:
        system, database, timeline = snapshot.source.split("/")
        assert int(system) > 10**15 and int(database) > 1 and timeline == "1"
        assert snapshot.horizon > 1 and snapshot.lsn > 0 and snapshot.committed_through.tzinfo is not None
        pid = snapshot._connection.info.backend_pid
    idle = "SELECT state FROM pg_stat_activity WHERE pid = %s"
    assert servers.sql(world.replica_server, idle, pid) == [("idle",)]
    with pytest.raises(RuntimeError), world.replica.snapshot():
        raise RuntimeError("something else")
    assert servers.sql(world.replica_server, idle, pid) == [("idle",)]


def test_a_connection_that_was_cut_is_made_anew(world):
    with world.replica.snapshot() as snapshot:
        pid = snapshot._connection.info.backend_pid
    servers.sql(world.replica_server, "SELECT pg_terminate_backend(%s)", pid)
    with pytest.raises(psycopg2.OperationalError), world.replica.snapshot():
        pass
    with world.replica.snapshot() as snapshot:
        assert snapshot.horizon


def test_the_timeline_that_is_received_is_asked_by_the_function_as_soon_as_the_replica_shows_it(world):
    """roles.sql may have made it after this connection was opened, or the replica may lag."""
    timeline = (
        "CREATE OR REPLACE FUNCTION rollcall_internal.received_timeline() RETURNS integer LANGUAGE sql AS 'SELECT 99'"
    )
    reader = stores.connect_replica(world.replica_server.url_of("manage"))

    def seen() -> str:
        world.replay()
        with reader.snapshot() as snapshot:
            return snapshot.source.split("/")[2]

    try:
        servers.sql(world.primary, "DROP SCHEMA rollcall_internal CASCADE")
        assert seen() == "1"
        servers.sql(world.primary, ROLES_SQL.read_text())
        assert seen() == "1"
        servers.sql(world.primary, timeline)
        assert seen() == "99", "the connection is the same, and asks the function"
        servers.sql(world.primary, "DROP FUNCTION rollcall_internal.received_timeline()")
        with pytest.raises(psycopg2.errors.UndefinedFunction):
            seen()
        assert seen() == "1"
    finally:
        reader.close()
        servers.sql(world.primary, ROLES_SQL.read_text())


def test_a_replica_that_is_away_is_no_fault_of_a_counter():
    assert snapshots.is_away(psycopg2.OperationalError("server closed the connection unexpectedly"))
    assert not snapshots.is_away(UndefinedTable("relation does not exist"))
    assert not snapshots.is_away(QueryCanceled("canceling statement due to statement timeout"))


def test_a_server_that_is_too_old_is_refused_with_the_version_that_is_needed(world, monkeypatch):
    monkeypatch.setattr(snapshots, "LEAST_VERSION", 99_00_00)
    old = stores.connect_replica(world.replica_server.url)
    with pytest.raises(psycopg2.NotSupportedError, match="15 or later"), old.snapshot():
        pass
    assert old._connection is None
