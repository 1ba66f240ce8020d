"""Rows that come in through ingest are in their groups, and on their days, before the answer is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ingest_service.partitioning.retiring import unresolved
from shared_models import declarations
from shared_models.protocol import elements, keys, steps, storages
from tests.ingest.producing import Producer, message
from tests.servers import sql, started_primary

# No day is the same in both zones, ever.
EAST, WEST = "Pacific/Kiritimati", "Etc/GMT+12"
LINES = f"""
[tables.message]
name = "public.message"
fields = {{state = "varchar", city = "varchar", username = "varchar", create_time = "timestamptz"}}
ingest = true
[counters.users]
table = "message"
member = ["username"]
by = ["state", "day(create_time)", ["state", "city"], ["month(create_time)", "state"]]
last_seen = "create_time"
time_zone = "{EAST}"
[counters.cities]
table = "message"
member = ["state", "city"]
by = ["state", "week(create_time)"]
last_seen = "create_time"
time_zone = "{WEST}"
"""


@pytest.fixture(autouse=True)
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, counters = declarations.parse(LINES)
    monkeypatch.setattr(declarations, "TABLES", tables)
    monkeypatch.setattr(declarations, "COUNTERS", counters)


def assert_counted(producer: Producer) -> None:
    """Each derived counter that is kept has what SQL says."""
    for counter in declarations.kept():
        columns = ", ".join(f"({term.sql()})::text" for term in counter.terms)
        rows = sql(started_primary(), f"SELECT DISTINCT {columns} FROM message")
        expected = set(elements.encode_all(counter, rows))
        for part in counter.parts:
            at = keys.of_counter(part.name)
            found = {element for some in storages.scan(producer.redis, at, 100) for element in some}
            assert found == {each for each in expected if elements.shard_of(part, each) == part.shard}, part.name


def test_single_messages_and_batches_are_in_their_groups_and_days(producer: Producer) -> None:
    assert producer.send(message("ann", "NY", "Ithaca")).json()["counted"]
    assert producer.send(message("ann", "TX", "Austin")).json()["counted"]
    batch = [message(f"u{number % 40}", f"s{number % 7}", f"c{number % 11}") for number in range(300)]
    assert producer.send_batch(*batch).json()["counted"]
    assert_counted(producer)
    east, west = (sql(started_primary(), f"SELECT (timezone('{zone}', now()))::date::text") for zone in (EAST, WEST))
    assert producer.redis.hgetall(keys.of_counter("users").days) == {east[0][0].encode(): b"41"}
    assert set(producer.redis.hgetall(keys.of_counter("cities").days)) == {west[0][0].encode()}


def test_rows_are_counted_with_both_numbers_of_shards(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = LINES.replace('table = "message"\n', 'table = "message"\nshards = 2\nnext_shards = 3\n')
    monkeypatch.setattr(declarations, "COUNTERS", declarations.parse(lines)[1])
    assert producer.send(message("ann", "NY", "Ithaca")).json()["counted"]
    batch = [message(f"u{number % 40}", f"s{number % 7}", f"c{number % 11}") for number in range(300)]
    assert producer.send_batch(*batch).json()["counted"]
    assert len(declarations.kept()) == 2 * len(declarations.derived())
    assert_counted(producer)


def test_a_partition_is_dropped_only_when_both_numbers_of_shards_have_resolved_it(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declarations, "COUNTERS", (replace(declarations.COUNTERS[0], next_shards=2),))
    users = declarations.COUNTERS[0]
    producer.redis.hset(keys.of_counter("users").state, "left_through", 8)
    said = list(unresolved([users], 7))
    assert [each.split()[0] for each in said] == ["users@2#00", "users@2#01"]


def test_a_replay_does_not_say_counted_because_nobody_knows_its_day(producer: Producer) -> None:
    first = producer.send(message("ann"), Idempotency_Key="k").json()
    again = producer.send(message("ann"), Idempotency_Key="k").json()
    assert (first["counted"], again) == (True, {**first, "counted": False})
    group = producer.send_batch(message("bob"), Idempotency_Key="b").json()
    assert producer.send_batch(message("bob"), Idempotency_Key="b").json() == {**group, "counted": False}
    assert_counted(producer)


def test_where_there_are_too_many_groups_rows_are_stored_and_not_called_counted(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {
        key: steps.Script(each.text.replace(f"MAX_GROUPS = {storages.MAX_GROUPS}", "MAX_GROUPS = 3"))
        for key, each in steps.SCRIPTS.items()
    }
    monkeypatch.setattr(steps, "SCRIPTS", few)
    answers = [producer.send(message("ann", f"s{number}")).json()["counted"] for number in range(5)]
    assert answers == [True, True, True, False, False]
    assert len(producer.rows()) == 5
