"""Partitions that come and go: made ahead, retired, detached by hand; and `retain`, killed at each of its steps."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest

from manage_service.keeper.loop import Keeper
from manage_service.runs import registry
from shared_models import partitions
from shared_models.declarations import TABLES
from tests.manage.keepers import tick_until
from tests.manage.world import World
from tests.servers import started_primary, wait_for

MESSAGE = next(table for table in TABLES if table.name == "message")
JANUARY, FEBRUARY = "message_2025_01", "message_2025_02"
OLD = "INSERT INTO message (state, city, username, message, create_time) SELECT 'NY', 'Ithaca', unnest(%s), '', %s"
RETAIN = [sys.executable, "-u", "-m", "ingest_service", "retain", "message", "--older-than"]


def bounds_of(name: str) -> tuple[str, str]:
    month = name.removeprefix("message_").replace("_", "-")
    return f"{month}-01T00:00Z", f"2025-0{int(month[-1]) + 1}-01T00:00Z"


@pytest.fixture
def months(world: World) -> Iterator[World]:
    """Two months of long ago have partitions of their own, and there is no other past."""
    (until,) = (
        ends for _, _, name, _, _, ends in world.ask_primary(partitions.bounds("'message'")) if name == "message_past"
    )
    world.ask_primary("ALTER TABLE message DETACH PARTITION message_past")
    for name in (JANUARY, FEBRUARY):
        begins, ends = bounds_of(name)
        world.ask_primary(f"CREATE TABLE {name} PARTITION OF message FOR VALUES FROM ('{begins}') TO ('{ends}')")
    world.replay()
    yield world
    world.ask_primary(f"DROP TABLE IF EXISTS {JANUARY}, {FEBRUARY}")
    attach = f"ATTACH PARTITION message_past FOR VALUES FROM (MINVALUE) TO ('{until.isoformat()}')"
    world.ask_primary(f"ALTER TABLE message {attach}")


@pytest.fixture
def counted(months: World, keeper: Keeper) -> World:
    """ann and bob have rows in January, bob and cid in February, cid and dan today; all is counted and verified."""
    months.ask_primary(OLD, ["ann", "bob"], "2025-01-15T00:00Z")
    months.ask_primary(OLD, ["bob", "cid"], "2025-02-15T00:00Z")
    months.store("cid", "dan")
    months.replay()
    tick_until(keeper, lambda: is_settled(months), "the counters to be verified")
    return months


def is_settled(world: World) -> bool:
    """Whether all counters are verified, nothing withholds complete_through, and no run is open."""
    found = [world.state(name) for name in ("users", "cities")]
    return not registry.still_open(world.redis) and all(
        state.verified_at and state.changed_at == state.settled and state.left_through is not None for state in found
    )


def verified(world: World) -> list[Any]:
    return [world.state(name).verified_at for name in ("users", "cities")]


def retain(*more: str, days: int = 1) -> subprocess.Popen[str]:
    """The command, begun."""
    environment = {
        **os.environ,
        "DATABASE_URL": started_primary().url,
        "DJANGO_SETTINGS_MODULE": "ingest_service.settings",
    }
    return subprocess.Popen(
        [*RETAIN, f"{days}d", *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def follow(process: subprocess.Popen[str], keeper: Keeper) -> str:
    """Tick until the command has ended; what it said."""
    tick_until(keeper, lambda: process.poll() is not None, "the command to end")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def tables(world: World) -> set[str]:
    return {name for (name,) in world.ask_primary("SELECT relname FROM pg_class WHERE relname ~ '^message_2025_0.$'")}


def detach(world: World, name: str) -> None:
    world.ask_primary(f"ALTER TABLE message DETACH PARTITION {name} CONCURRENTLY")


@contextmanager
def seen(world: World, keeper: Keeper) -> Iterator[None]:
    """After the block, tick until the keeper has seen that the table has changed, also for each counter by itself."""
    before = [world.state(name).changed_at for name in ("users", "cities")]
    yield
    world.replay()
    tick_until(
        keeper,
        lambda: all(world.state(name).changed_at != was for name, was in zip(("users", "cities"), before, strict=True)),
        "the keeper to see the change",
    )


def test_members_of_retired_partitions_leave_and_nothing_is_reconciled(counted, keeper):
    before, runs = verified(counted), len(registry.latest(counted.redis, 100))
    dry, _ = retain("--dry-run").communicate()
    assert JANUARY in dry and FEBRUARY in dry and len(tables(counted)) == 2
    said = follow(retain(), keeper)
    assert f"{FEBRUARY}: dropped" in said and tables(counted) == set()
    assert counted.exact() and counted.set() == {b"cid", b"dan"}
    counted.store("eve")
    counted.replay()
    tick_until(keeper, counted.exact, "eve to be counted")
    assert counted.state().withheld == ""
    assert (verified(counted), len(registry.latest(counted.redis, 100))) == (before, runs)


def test_what_is_young_enough_stays(counted, keeper):
    (days,) = counted.ask_primary("SELECT (now()::date - '2025-02-01'::date)")[0]
    said = follow(retain(days=days), keeper)
    assert tables(counted) == {FEBRUARY} and f"{FEBRUARY} is next, on" in said
    assert counted.exact() and counted.set() == {b"bob", b"cid", b"dan"}


@pytest.mark.parametrize(
    "line",
    [
        f"{JANUARY}: detaching it",
        pytest.param(f"{JANUARY}: 2 members of users", marks=pytest.mark.long),
        pytest.param(f"{JANUARY}: the keeper has", marks=pytest.mark.long),
    ],
)
def test_it_goes_on_where_it_was_killed(counted, keeper, line):
    """The keeper stands still, so that the command waits for it in the end; and a reader holds up the detachment."""
    (days,) = counted.ask_primary("SELECT (now()::date - '2025-02-01'::date)")[0]
    with psycopg2.connect(counted.primary.url) as reader, reader.cursor() as cursor:
        if line.endswith("detaching it"):
            cursor.execute("SELECT count(*) FROM message")
        process = retain(days=days)
        assert process.stdout is not None
        for said in process.stdout:
            if said.startswith(line):
                break
        if line.endswith("detaching it"):
            wait_for(
                lambda: counted.ask_primary(
                    f"SELECT pid FROM pg_stat_activity WHERE query ~ 'DETACH PARTITION .*{JANUARY}' AND wait_event_type = 'Lock'"
                ),
                "it to wait for the reader",
            )
        process.send_signal(signal.SIGKILL)
        process.communicate()
    reader.close()
    wait_for(
        lambda: (
            not counted.ask_primary(
                "SELECT pid FROM pg_stat_activity WHERE query ~ '^ALTER TABLE .* DETACH' AND state = 'active'"
            )
        ),
        "the server to notice",
    )
    counted.replay()
    tick_until(keeper, lambda: counted.set() >= {b"bob", b"cid", b"dan"}, "the rows to be counted")
    said = follow(retain(days=days), keeper)
    assert f"{JANUARY}: dropped" in said and tables(counted) == {FEBRUARY}
    assert counted.exact() and counted.set() == {b"bob", b"cid", b"dan"}


def test_a_partition_that_is_detached_by_hand_is_reconciled_at_once(counted, keeper):
    before = verified(counted)
    with seen(counted, keeper):
        detach(counted, JANUARY)
    assert "table" in counted.state().withheld
    tick_until(keeper, lambda: is_settled(counted) and counted.exact(), "the reconcile")
    assert all(new > old for new, old in zip(verified(counted), before, strict=True))


def test_a_retired_partition_that_is_attached_again_is_read(counted, keeper):
    counted.ask_primary(f'COMMENT ON TABLE {JANUARY} IS \'{partitions.RETIRED} of "public"."message"\'')
    with seen(counted, keeper):
        detach(counted, JANUARY)
    assert counted.state().withheld == ""
    begins, ends = bounds_of(JANUARY)
    with seen(counted, keeper):
        counted.ask_primary(
            f"ALTER TABLE message ATTACH PARTITION {JANUARY} FOR VALUES FROM ('{begins}') TO ('{ends}')"
        )
    assert "table" in counted.state().withheld
    tick_until(keeper, lambda: is_settled(counted), "the reconcile")
    assert counted.exact()


def test_an_empty_partition_that_comes_needs_no_reconcile_and_one_with_rows_does(counted, keeper):
    before = verified(counted)
    made = "CREATE TABLE message_2025_03 (LIKE message INCLUDING DEFAULTS)"
    attach = "ALTER TABLE message ATTACH PARTITION message_2025_03 FOR VALUES FROM ('2025-03-01T00:00Z') TO ('2025-04-01T00:00Z')"
    try:
        with seen(counted, keeper):
            counted.ask_primary(f"{made}; {attach}")
        assert counted.state().withheld == "" and verified(counted) == before
        counted.ask_primary(OLD, ["fay"], "2025-03-15T00:00Z")
        counted.replay()
        tick_until(keeper, lambda: b"fay" in counted.set() and counted.exact(), "the row of the new partition")
        assert verified(counted) == before
        with seen(counted, keeper):
            detach(counted, "message_2025_03")
        with seen(counted, keeper):
            counted.ask_primary(
                f"INSERT INTO message_2025_03 SELECT 77, '2025-03-15T00:00Z', 1, 'NY', 'Ithaca', 'gil', ''; {attach}"
            )
        assert "table" in counted.state().withheld
        tick_until(keeper, lambda: is_settled(counted), "the reconcile")
        assert counted.exact() and b"gil" in counted.set()
    finally:
        counted.ask_primary("DROP TABLE message_2025_03")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_partition_is_retired_while_its_members_come_and_go_elsewhere(counted, keeper, seed):
    """Producers record rows of the same members, an eraser deletes some: the sets are exact then, and there was no run."""
    names = [f"user{number:03}" for number in range(300)]
    counted.ask_primary(OLD, names, "2025-01-15T00:00Z")
    counted.ask_primary(OLD, names[::2], "2025-02-15T00:00Z")
    counted.replay()
    tick_until(keeper, counted.exact, "the old rows to be counted")
    before, runs, draw = verified(counted), len(registry.latest(counted.redis, 100)), random.Random(seed)
    process = retain()
    while process.poll() is None:
        for _ in range(draw.randrange(4)):
            some = draw.sample(names, draw.randrange(1, 5))
            # Counted before the answer, or caught up because Redis failed.
            draw.choice((counted.post, counted.store))(*some)
        if draw.random() < 0.5:
            counted.erase(draw.choice(names))
        keeper.tick()
    assert process.wait() == 0 and tables(counted) == set()
    process.communicate()
    counted.replay()
    tick_until(keeper, counted.exact, "all that has left")
    assert (verified(counted), len(registry.latest(counted.redis, 100))) == (before, runs)


@pytest.mark.long
def test_a_table_that_becomes_partitioned_needs_no_reconcile(world, keeper):
    """It was one table before: a migration backwards has made it."""
    with world.database.cursor() as cursor:
        cursor.execute("BEGIN")
        for statement in partitions.swap_back(cursor, MESSAGE):
            cursor.execute(statement)
        cursor.execute("COMMIT")
    world.store("ann", "bob")
    world.replay()
    tick_until(keeper, lambda: is_settled(world), "the counters to be verified")
    before = verified(world)
    environment = {**os.environ, "DATABASE_URL": world.primary.url, "DJANGO_SETTINGS_MODULE": "ingest_service.settings"}
    with seen(world, keeper):
        subprocess.run(
            [sys.executable, "-m", "ingest_service", "partition", "message"],
            env=environment,
            check=True,
            capture_output=True,
        )
    assert world.ask_primary(partitions.ahead(MESSAGE)) == [(partitions.MONTHS_AHEAD,)]
    assert world.state().withheld == "" and verified(world) == before
    world.store("cid")
    world.replay()
    tick_until(keeper, world.exact, "the new row")
    assert verified(world) == before
