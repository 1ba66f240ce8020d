"""Pruning departures: it adds a departure that means "all", with the highest pruned xact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection

from ingest_service.writing import departures
from ingest_service.writing.pulse import Pulse
from tests.servers import sql, started_primary

TABLE = "rollcall_triggers.departure"


@pytest.fixture
def noted() -> Iterator[None]:
    sql(
        started_primary(),
        f"""CREATE SCHEMA IF NOT EXISTS rollcall_triggers;
        CREATE TABLE IF NOT EXISTS {TABLE} (
            counter text NOT NULL, element text[], xact bigint NOT NULL, create_time timestamptz NOT NULL DEFAULT now());
        TRUNCATE {TABLE};
        INSERT INTO {TABLE} SELECT 'users:1', ARRAY['ann'], n, now() - interval '25 hours' FROM generate_series(1, 50) AS n;
        INSERT INTO {TABLE} SELECT 'cities:1', ARRAY['NY', 'Troy'], 7, now() - interval '25 hours';
        INSERT INTO {TABLE} SELECT 'users:1', ARRAY['bob'], n, now() - n * interval '1 second' FROM generate_series(90, 99) AS n""",
    )
    yield
    sql(started_primary(), "TRUNCATE rollcall_triggers.departure")


def left() -> set[tuple[str, str | None, int]]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT counter, element[1], xact FROM {TABLE}")
        return set(cursor.fetchall())


def test_what_is_old_goes_and_leaves_one_of_each_counter_that_means_all(noted, monkeypatch) -> None:
    monkeypatch.setattr(departures, "PRUNE_ROWS", 20)
    assert Pulse(pulse_seconds=0, keep_hours=48).prune() == 51
    marks = {row for row in left() if row[1] is None}
    assert ("users:1", None, 50) in marks and ("cities:1", None, 7) in marks and len(marks) <= 4
    assert left() - marks == {("users:1", "bob", n) for n in range(90, 100)}
    assert Pulse(pulse_seconds=0, keep_hours=48).prune() == 0


def test_what_is_too_much_goes_the_oldest_first(noted, monkeypatch) -> None:
    ((size,),) = sql(started_primary(), "SELECT pg_column_size(element) FROM (SELECT ARRAY['bob']) AS one (element)")
    monkeypatch.setattr(departures, "KEEP_BYTES", 4 * (100 + size))
    assert Pulse(pulse_seconds=0, keep_hours=48).prune() == 57
    assert {row for row in left() if row[1]} == {("users:1", "bob", n) for n in range(90, 94)}
    assert ("users:1", None, 99) in left()


def test_what_it_may_not_prune_is_left_alone(noted, monkeypatch) -> None:
    monkeypatch.setattr(departures, "MAY_PRUNE", "SELECT true WHERE false")
    assert Pulse(pulse_seconds=0, keep_hours=48).prune() == 0
