"""Months that are made ahead; a row without a partition; and a table of rows that becomes partitioned while rows come in."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from django.apps import apps
from django.db import connection
from django.db.migrations.state import ProjectState
from django.db.models import Index

from ingest_service import metrics
from ingest_service.catalog import read_collections
from ingest_service.management.commands.retain import age
from ingest_service.writing import recording
from ingest_service.writing.pulse import Pulse
from ingest_service.writing.transactions import NoPartition
from shared_models import partitions, triggers
from shared_models.declarations import TABLES
from shared_models.operations import AddIndexOfPartitions
from tests.servers import database_of_its_own, sql, started_primary, wait_for

MESSAGE = next(table for table in TABLES if table.name == "message")
COLUMNS = "state, city, username, message"
ROWS = f"INSERT INTO message ({COLUMNS}) SELECT 'NY', 'Ithaca', 'user' || n, '' FROM generate_series(1, %s) AS n"


def run(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return sql(started_primary(), statement, *parameters)


def month(ahead: int) -> tuple[str, str]:
    """The partition of a month, and its bounds."""
    begins, ends = (partitions.first_of_month(datetime.now(UTC), ahead + n) for n in (0, 1))
    return f"message_{begins:%Y_%m}", f"FROM ('{begins.isoformat()}') TO ('{ends.isoformat()}')"


@pytest.fixture
def without_months() -> Iterator[None]:
    """There is no partition for this month, and none for later ones."""
    run("TRUNCATE message")
    for ahead in range(partitions.MONTHS_AHEAD + 1):
        run(f"DROP TABLE {month(ahead)[0]}")
    yield
    run(f"SELECT {partitions.function_name(MESSAGE)}")


def pulse() -> bool:
    return Pulse(pulse_seconds=0, keep_hours=48).one_tick()


def test_a_row_without_a_partition_is_not_stored_and_the_pulse_makes_one(without_months) -> None:
    collection = read_collections()["messages"]
    row = collection.decoder.decode(b'{"state": "NY", "city": "Troy", "username": "ann", "message": ""}')
    with pytest.raises(NoPartition, match=r'no partition of relation "message".*create_time'):
        recording.record_one(collection, row)
    assert run(partitions.ahead(MESSAGE)) == [(-1,)]
    assert pulse() and run(partitions.ahead(MESSAGE)) == [(partitions.MONTHS_AHEAD,)]
    assert metrics.MONTHS_AHEAD.labels("messages")._value.get() == partitions.MONTHS_AHEAD
    recording.record_one(collection, row)
    assert run(f"SELECT username FROM {month(0)[0]}") == [("ann",)]


def test_several_workers_make_them_at_once(without_months) -> None:
    began = threading.Barrier(4)

    def make() -> None:
        began.wait()
        run(f"SELECT {partitions.function_name(MESSAGE)}")

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(partitions.ahead(MESSAGE)) == [(partitions.MONTHS_AHEAD,)]


def test_a_new_partition_is_like_the_others(without_months) -> None:
    """Its indexes, triggers and rights: `adopt` finds nothing to do, and the roles may do what they may do with the table."""
    pulse()
    name = month(3)[0]
    of = "SELECT regexp_replace(pg_get_indexdef(indexrelid), 'INDEX .* USING', 'USING') FROM pg_index WHERE indrelid = %s::regclass"
    assert sorted(run(of, name)) == sorted(run(of, "message_past")) and len(run(of, name)) == 4
    fires = "SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal ORDER BY tgname"
    assert run(fires, name) == run(fires, "message_past") and len(run(fires, name)) == 5
    command = [sys.executable, "-m", "ingest_service", "adopt", "message"]
    assert "all is there already" in subprocess.run(command, check=True, capture_output=True, text=True).stderr
    may = "SELECT has_table_privilege(%s, %s, 'SELECT'), has_table_privilege(%s, %s, 'INSERT')"
    roles = {
        role: run(may, f"rollcall_{role}", name, f"rollcall_{role}", name)[0] for role in ("manage", "admin", "ingest")
    }
    assert roles == {"manage": (True, False), "admin": (True, False), "ingest": (False, False)}
    calls = "SELECT has_function_privilege(%s, %s, 'EXECUTE')"
    function = partitions.function_name(MESSAGE)
    assert [run(calls, f"rollcall_{role}", function)[0][0] for role in ("ingest", "manage", "admin")] == [
        True,
        False,
        False,
    ]


@pytest.fixture(scope="module")
def migrated_late() -> Iterator[str]:
    """A database that was migrated when `message` had rows: it is not partitioned."""
    with database_of_its_own("migrated_late") as url:
        ingest(url, "migrate", "--verbosity=0", "--skip-checks", "shared_models", "0003")
        ask(url, ROWS, 500)
        ingest(url, "migrate", "--verbosity=0", "--skip-checks")
        yield "migrated_late"


@pytest.fixture
def earlier(migrated_late: str) -> Iterator[str]:
    """The URL of a copy of it."""
    with database_of_its_own("of_rows", template=migrated_late) as url:
        yield url


def ingest(url: str, *arguments: str) -> str:
    done = subprocess.run([*COMMAND, *arguments], env=environment(url), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMAND = [sys.executable, "-u", "-m", "ingest_service"]


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": url}


def ask(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def kind(url: str) -> str:
    return str(ask(url, "SELECT relkind FROM pg_class WHERE oid = 'message'::regclass")[0][0])


def test_a_table_of_rows_becomes_partitioned_while_rows_come_in(earlier) -> None:
    """Nothing is lost, no row moves, ids go on, and the command can be killed anywhere."""
    dry = ingest(earlier, "partition", "message", "--dry-run")
    assert "ATTACH PARTITION" in dry and kind(earlier) == "r"
    file = ask(earlier, "SELECT pg_relation_filenode('message')")
    stop, stored = threading.Event(), list[int]()

    def write() -> None:
        while not stop.is_set():
            stored.append(ask(earlier, ROWS.replace("%s", "1") + " RETURNING id")[0][0])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for line in ("CREATE UNIQUE INDEX", "ALTER TABLE"):
            process = subprocess.Popen(
                [*COMMAND, "partition", "message"], env=environment(earlier), stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            assert any(said.startswith(line) for said in process.stdout)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        ingest(earlier, "partition", "message")
        count = len(stored)
        wait_for(lambda: len(stored) > count, "rows to come in afterwards")
    finally:
        stop.set()
        writer.join()
    assert kind(earlier) == "p" and ask(earlier, "SELECT pg_relation_filenode('message_past')") == file
    ids = [number for (number,) in ask(earlier, "SELECT id FROM message ORDER BY id")]
    assert len(ids) == len(set(ids)) == 500 + len(stored) and set(stored) <= set(ids)
    assert ask(earlier, partitions.ahead(MESSAGE)) == [(partitions.MONTHS_AHEAD,)]
    checks = "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0 AND conrelid::regclass::text LIKE 'message%'"
    assert ask(earlier, checks) == []
    assert "is partitioned" in ingest(earlier, "partition", "message")
    assert (
        "all is there already"
        in subprocess.run(
            [*COMMAND, "adopt", "message"], env=environment(earlier), capture_output=True, text=True, check=True
        ).stderr
    )
    ask(earlier, f"TRUNCATE {triggers.DEPARTURE}")
    ask(earlier, "DELETE FROM message WHERE username = 'user7'")
    noted = ask(earlier, f"SELECT DISTINCT element FROM {triggers.DEPARTURE} WHERE counter LIKE 'users:%%'")
    assert noted == [([["user7"]],)]


@pytest.mark.parametrize(("days", "stays"), [(6, False), (20, True)])
def test_what_nobody_ended_refuses_no_row(earlier, days, stays) -> None:
    """Somebody has stopped the command: the constraint is dropped days before it would refuse a row."""
    until = (datetime.now(UTC) + timedelta(days=days)).isoformat()
    check = f"ADD CONSTRAINT {partitions.PAST_CHECK} CHECK (create_time < '{until}') NOT VALID"
    ask(earlier, f"ALTER TABLE message {check}")
    ask(earlier, f"SELECT {partitions.function_name(MESSAGE)}")
    assert bool(ask(earlier, partitions.has_past_check(MESSAGE))) == stays


def test_a_view_of_the_table_is_named(earlier) -> None:
    ask(earlier, "CREATE VIEW seen AS SELECT username FROM message")
    done = subprocess.run(
        [*COMMAND, "partition", "message"], env=environment(earlier), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "in use by the view public.seen" in done.stderr and kind(earlier) == "r"


def test_an_age_is_a_number_of_days() -> None:
    assert age("400d").days == 400
    for text in ("400", "0d", "1y", "-3d"):
        with pytest.raises(argparse.ArgumentTypeError, match="write 400d"):
            age(text)


def test_a_migration_backwards_keeps_the_rows(earlier) -> None:
    """The table has no partitions then, and the migration forwards leaves it alone, because it has rows."""
    ingest(earlier, "partition", "message")
    ask(earlier, ROWS, 10)
    for to in ("0003", "0004"):
        ingest(earlier, "migrate", "--verbosity=0", "--skip-checks", "shared_models", to)
        assert kind(earlier) == "r" and ask(earlier, "SELECT count(*) FROM message") == [(510,)]
    assert ask(earlier, ROWS.replace("%s", "1") + " RETURNING id") == [(511,)]
    tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname LIKE 'message%%' ORDER BY 1"
    assert [name for (name,) in ask(earlier, tables)] == [
        "message",
        "message_id_seq",
        "message_pkey",
        "message_state_city",
        "message_username",
        "message_xact",
    ]
    said = ingest(earlier, "partition", "message")
    assert "is partitioned" in said and kind(earlier) == "p"


def test_an_index_of_a_partitioned_table_is_made_by_partition() -> None:
    """Also if it was interrupted: one is left invalid, and another one is made and not attached."""
    operation = AddIndexOfPartitions("message", Index(fields=["city"], name="message_city"))
    before = ProjectState.from_apps(apps)
    after = before.clone()
    operation.state_forwards("shared_models", after)
    indexes = "SELECT count(*) FROM pg_index WHERE indisvalid AND pg_get_indexdef(indexrelid) LIKE '%%(city)'"
    try:
        with connection.schema_editor(atomic=False) as editor:
            operation.database_forwards("shared_models", editor, before, after)
        parts = partitions.MONTHS_AHEAD + 2
        assert run(indexes) == [(parts + 1,)]
        broken = run("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'message_city'::regclass")[0][
            0
        ]
        run("DROP INDEX message_city")
        run(f"CREATE INDEX {broken} ON {month(0)[0]} (city)")
        run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", broken)
        with connection.schema_editor(atomic=False) as editor:
            operation.database_forwards("shared_models", editor, before, after)
        assert run(indexes) == [(parts + 1,)]
    finally:
        with connection.schema_editor(atomic=False) as editor:
            operation.database_backwards("shared_models", editor, after, before)
    assert run(indexes) == [(0,)]
