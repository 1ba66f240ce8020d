"""The plans of manage's statements over a table of 36 months: each partition by its index, and nothing is sorted or read whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg2.sql import SQL, Composable, Literal

from manage_service.replica import sql
from manage_service.replica.snapshots import Snapshot
from shared_models import partitions
from shared_models.declarations import Counter, get_counter
from tests.manage.world import World

CITIES, USERS = get_counter("cities"), get_counter("users")
MONTHS = 36
MADE = [f"message_{2020 + n // 12}_{n % 12 + 1:02}" for n in range(MONTHS)]
ROWS = """
    INSERT INTO message (state, city, username, message, create_time)
    SELECT 'S' || n %% 5, 'C' || n %% 50, 'U' || n %% 9000, '', '2020-01-01T00:00Z'::timestamptz + n * interval '78 minutes'
    FROM generate_series(0, 19999) AS n
"""


@pytest.fixture(scope="module")
def months(primary, replica, valkey) -> Iterator[World]:
    """20,000 rows over 36 months, 50 cities and 9,000 users; replayed, and analyzed as autovacuum does."""
    world = World(primary, replica, valkey)
    world.empty()
    (until,) = (
        ends for _, _, name, _, _, ends in world.ask_primary(partitions.bounds("'message'")) if name == "message_past"
    )
    world.ask_primary("ALTER TABLE message DETACH PARTITION message_past")
    for name, after in zip(MADE, [*MADE[1:], "message_2023_01"], strict=True):
        begins, ends = (f"{each.removeprefix('message_').replace('_', '-')}-01T00:00Z" for each in (name, after))
        world.ask_primary(f"CREATE TABLE {name} PARTITION OF message FOR VALUES FROM ('{begins}') TO ('{ends}')")
        # As the function of the owner makes them: with their own statistics.
        world.ask_primary(f"CREATE STATISTICS (ndistinct) ON state, city FROM {name}")
    world.ask_primary(ROWS)
    for name in MADE:
        world.ask_primary(f"VACUUM (ANALYZE) {name}")
    world.replay()
    yield world
    world.ask_primary(f"DROP TABLE {', '.join(MADE)}")
    attach = f"ATTACH PARTITION message_past FOR VALUES FROM (MINVALUE) TO ('{until.isoformat()}')"
    world.ask_primary(f"ALTER TABLE message {attach}")
    world.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", []):
        yield from nodes(each)


def explained(snapshot: Snapshot, statement: Composable, parameters: tuple[object, ...]) -> list[dict[str, Any]]:
    with snapshot._connection.cursor() as cursor:
        cursor.execute(SQL("EXPLAIN (FORMAT JSON) ") + statement, parameters)
        (((document,),),) = cursor.fetchall()
        return list(nodes(document["Plan"]))


def reads_by_index(found: list[dict[str, Any]], index: str) -> bool:
    """Whether each of the months is read by this index, and nothing is sorted, hashed or read whole."""
    # One of the members of a chunk may be sorted: those are few.
    kinds = {each["Node Type"] for each in found}
    scanned = [each.get("Index Name", "") for each in found if "Scan" in each["Node Type"] and "Relation Name" in each]
    of_months = [name for name in scanned if name.startswith(tuple(MADE))]
    return (
        not kinds & {"Seq Scan", "Bitmap Heap Scan", "Hash Join", "Merge Join"}
        and len(of_months) >= MONTHS
        and all(name.endswith(index) for name in of_months)
    )


@pytest.mark.parametrize(
    ("template", "counter", "index", "joins"),
    [
        (sql.SCAN, USERS, "username_idx", {"Merge Append"}),
        (sql.JUMP, CITIES, "state_city_idx", {"Merge Append", "Recursive Union"}),
        (sql.WITHOUT_ROW, USERS, "username_idx", {"Nested Loop", "Append"}),
        (sql.WITHOUT_ROW, CITIES, "state_city_idx", {"Nested Loop", "Append"}),
    ],
    ids=["scan", "jump", "without a row: users", "without a row: cities"],
)
def test_each_partition_is_read_by_its_index(months, template, counter: Counter, index, joins):
    after: tuple[object, ...] = ("S1", "C1")[: len(counter.fields)]
    if template is sql.WITHOUT_ROW:
        statement, after = sql.fill_in(template, counter), tuple([value] for value in after)
    else:
        statement = sql.fill_in(template, counter, behind=sql.fill_in(sql.BEHIND, counter), limit=Literal(1000))
    with months.replica.snapshot(counter) as snapshot:
        found = explained(snapshot, statement, after)
    kinds = {each["Node Type"] for each in found}
    assert reads_by_index(found, index) and joins <= kinds, json.dumps(found)[:2_000]


def test_what_is_new_is_found_by_the_index_of_each_partition(months):
    with months.replica.snapshot(USERS) as snapshot:
        new = sql.fill_in(sql.HAS_RECENT, USERS, unread=SQL("true"), limit=Literal(0))
        assert reads_by_index(explained(snapshot, new, (snapshot.horizon - 1, snapshot.xmax)), "xact_idx")
        recent = sql.fill_in(sql.RECENT, USERS, narrowed=SQL("AND xact < %s"))
        assert reads_by_index(explained(snapshot, recent, (snapshot.horizon - 1, snapshot.xmax)), "xact_idx")


def test_jumping_has_to_pay_for_the_descents_in_each_partition(months, monkeypatch):
    """50 cities in 20,000 rows would be jumped through in one table: 400 rows each. In 36 months each is there 36 times."""
    with months.replica.snapshot(CITIES) as snapshot:
        estimate = snapshot.estimate(CITIES)
        assert estimate is not None and 0.8 < estimate.members / (50 * MONTHS) < 1.2 and estimate.rows == 20_000
        assert not estimate.jumping_pays
    monkeypatch.setattr(sql, "CHUNK_JUMPS", 500)
    with months.replica.snapshot(CITIES) as snapshot:
        chunk = snapshot.read_members(CITIES, None, jumping=True)
        ((leaves,),) = months.ask_primary(sql.LEAVES, "message")
        assert len(chunk) == 500 // leaves
        everything = {(f"S{n % 5}", f"C{n % 50}") for n in range(50)}
        while more := snapshot.read_members(CITIES, chunk[-1], jumping=True):
            chunk += more
    assert chunk == sorted(everything)
