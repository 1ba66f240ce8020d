"""Random declarations of groups and days, random rows, updates and deletes, in any order with the keeper's work.

Whenever Redis is looked at, nothing may be missing of what a live counter's cursor claims; and once everybody is quiet, without a
reconcile wherever there is no damage, each counter has what SQL says.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from manage_service.protocol.catch_up import catch_up
from manage_service.protocol.departures import resolve_departures
from manage_service.protocol.groups import mend, watch
from manage_service.runs.registry import Mode
from shared_models import declarations
from shared_models.declarations import Counter, Storage, get_counter
from shared_models.nodes import only
from shared_models.protocol import elements, keys, states, steps
from tests.manage.grouped import adopted, differences, in_part, in_table
from tests.manage.world import World

TERMS = ["country", "shop", "day(created_at)", "week(created_at)", "month(due)", "day(due)"]
LINES = """
[tables.orders]
name = "shop.orders"
fields = {{email = "text", country = "text", shop = "integer", created_at = "timestamptz", due = "date"}}
[counters.customers]
table = "orders"
member = {member}
where = "{where}"
by = {by}
last_seen = "{last_seen}"
time_zone = "{zone}"
shards = {shards}
"""
TABLE = """
    DROP SCHEMA IF EXISTS shop CASCADE; CREATE SCHEMA shop;
    CREATE TABLE shop.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text COLLATE "C", country text,
        shop int, created_at timestamptz, due date, cancelled boolean NOT NULL DEFAULT false)
"""
BY = st.lists(
    st.lists(st.sampled_from(TERMS), min_size=1, max_size=2, unique=True), min_size=1, max_size=3, unique_by=tuple
)
# Few values, so that rows meet; days around a change of the clocks.
TIMES = [f"2024-03-{day} {hour}:30Z" for day in (9, 10, 11, 18) for hour in (4, 11)] + ["infinity"]
ROWS = st.fixed_dictionaries(
    {
        "email": st.sampled_from(["ann", "bob", "cid", None]),
        "country": st.sampled_from(["CA", "DE", "", None]),
        "shop": st.sampled_from([1, 2, None]),
        "created_at": st.sampled_from([*TIMES, None]),
        "due": st.sampled_from(["2024-02-29", "2024-03-10", "2024-03-11", "-infinity", None]),
        "cancelled": st.sampled_from([False, False, False, True]),
    }
)
COLUMNS = ("email", "country", "shop", "created_at", "due", "cancelled")
NUMBERS = st.integers(0, 10**6)


class Groupings(RuleBasedStateMachine):
    """One table, one declared counter, and everybody who touches them."""

    world: World
    patch: pytest.MonkeyPatch

    @initialize(
        member=st.sampled_from(['["email"]', '["email"]', '["country", "email"]']),
        by=BY,
        where=st.sampled_from(["", "NOT cancelled"]),
        last_seen=st.sampled_from(["created_at", "due", ""]),
        zone=st.sampled_from(["UTC", "America/New_York", "Pacific/Apia"]),
        shards=st.sampled_from([1, 1, 3]),
        rows=st.lists(ROWS, max_size=4),
    )
    def begin(self, member: str, by: Any, where: str, last_seen: str, zone: str, shards: int, rows: Any) -> None:
        lines = LINES.format(member=member, where=where, by=by, last_seen=last_seen, zone=zone, shards=shards)
        tables, counters = declarations.parse(lines)
        self.patch.setattr(declarations, "TABLES", tables)
        self.patch.setattr(declarations, "COUNTERS", counters)
        self.world.redis.flushall()
        for statement in (TABLE, *adopted()):
            self.world.ask_primary(statement.replace("%", "%%"))
        self.insert(rows)
        self.world.replay()
        self.marks: dict[str, str] = {}
        for counter in self.counters:
            self.world.build(counter.name)
            self.world.reconcile(counter.name)
        self.batches: dict[str, Any] = {}

    @property
    def counters(self) -> tuple[Counter, ...]:
        return declarations.derived()

    # -- the application

    @rule(rows=st.lists(ROWS, min_size=1, max_size=5))
    def insert(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self.world.ask_primary(
                f"INSERT INTO shop.orders ({', '.join(COLUMNS)}) VALUES (%s, %s, %s, %s, %s, %s)",
                *map(row.get, COLUMNS),
            )

    @rule(number=NUMBERS, row=ROWS, columns=st.sets(st.sampled_from(COLUMNS), min_size=1))
    def update(self, number: int, row: dict[str, Any], columns: set[str]) -> None:
        chosen = sorted(columns)
        self.world.ask_primary(
            f"UPDATE shop.orders SET {', '.join(f'{name} = %s' for name in chosen)} WHERE id %% 3 = %s",
            *(row[name] for name in chosen),
            number % 3,
        )

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        self.world.ask_primary("DELETE FROM shop.orders WHERE id %% 4 = %s", number % 4)

    @rule()
    def replay(self) -> None:
        self.world.replay()

    # -- ingest, and the keeper

    @rule(number=NUMBERS)
    def record(self, number: int) -> None:
        """As ingest does it: a row that is committed, and its elements with its xact."""
        ((xact, source),) = self.world.ask_primary(
            "INSERT INTO shop.orders (email, country, shop, created_at, due) VALUES (%s, 'CA', 1, %s, '2024-03-10')"
            " RETURNING xact, (SELECT system_identifier::text FROM pg_control_system()) || '/' || "
            "(SELECT oid FROM pg_database WHERE datname = current_database()) || '/1'",
            ["ann", "bob"][number % 2],
            TIMES[number % 8],
        )
        for counter in self.counters:
            columns = ", ".join(f"({term.sql()})::text" for term in counter.terms)
            rows = self.world.ask_primary(f"SELECT {columns} FROM shop.orders WHERE xact = %s", xact)
            for part, some in elements.by_part(counter, elements.encode_all(counter, rows)):
                try:
                    steps.record(self.world.redis, {part.name: some}, xact, source)
                except steps.TooLate:
                    pass

    @rule(number=NUMBERS, alone=st.booleans())
    def catch_up(self, number: int, alone: bool) -> None:
        parts = [self.chosen(number)] if alone else get_counter(self.chosen(number).whole).parts
        catch_up(parts, self.world.replica, only(self.world.passes()))

    @rule(number=NUMBERS)
    def depart(self, number: int) -> None:
        """A step of a batch of departures."""
        counter = self.chosen(number)
        batch = self.batches.pop(counter.name, None) or resolve_departures(
            counter, self.world.replica, self.world.passes()
        )
        if next(batch, None) is not None:
            self.batches[counter.name] = batch

    @rule(number=NUMBERS, mode=st.sampled_from([Mode.REPAIR, Mode.CHECK]))
    def reconcile(self, number: int, mode: Mode) -> None:
        self.world.replay()  # a run waits for the replica
        self.world.reconcile(self.chosen(number).whole, mode=mode)

    # -- somebody with a console

    @precondition(lambda self: any(each.storage is Storage.GROUPS for each in declarations.COUNTERS[0].groupings))
    @rule(number=NUMBERS, add=st.booleans())
    def damage(self, number: int, add: bool) -> None:
        parts = [part for part in declarations.parts() if part.storage is Storage.GROUPS]
        at = keys.of_counter(parts[number % len(parts)].name)
        for group in cast("list[bytes]", self.world.redis.zrange(at.members, 0, 0)):
            key = at.group(self.world.redis.hget(at.intake, "generation"), group)
            if self.world.redis.zscore(at.members, group) != self.world.redis.scard(key):
                continue  # what outweighs an earlier change is not found by sizes
            if add:
                self.world.redis.sadd(key, "mallory")
            else:
                self.world.redis.delete(key)

    @rule(number=NUMBERS)
    def look(self, number: int) -> None:
        self.look_at(self.chosen(number))

    def look_at(self, counter: Counter) -> None:
        for group, token in next(watch(counter, self.world.redis)).items():
            for progress in mend(counter, group, token, self.world.replica, self.world.passes()):
                if progress.waiting:
                    break

    def chosen(self, number: int) -> Counter:
        """A part."""
        return declarations.parts()[number % len(declarations.parts())]

    # -- what holds

    @invariant()
    def nothing_is_missing_below_the_cursor(self) -> None:
        for counter in declarations.parts():
            state = states.read_state(self.world.redis, counter.name)
            if state.cold or state.cursor is None or not hasattr(self, "batches"):
                continue
            all_owed = in_table(self.world, counter, below=state.cursor)
            owed = self.live_groups(
                counter, {each for each in all_owed if elements.shard_of(counter, each) == counter.shard}
            )
            found = in_part(self.world, counter, whole=False)
            if counter.storage is Storage.LAST_SEEN:
                days = {member: day for day, member in map(elements.split, found)}
                assert all(days.get(member, b"") >= day for day, member in map(elements.split, owed)), counter.name
            else:
                assert owed <= found, (counter.name, owed - found)

    def live_groups(self, counter: Counter, found: set[bytes]) -> set[bytes]:
        """Those elements whose group is live, as query looks at it."""
        if counter.storage is not Storage.GROUPS:
            return found
        at = keys.of_counter(counter.name)
        generation = self.world.redis.hget(at.intake, "generation")

        def is_live(group: bytes) -> bool:
            size = self.world.redis.zscore(at.members, group)
            count = self.world.redis.scard(at.group(generation, group))
            return not self.world.redis.hexists(at.broken, group) and (size is None or size == count)

        return {each for each in found if is_live(elements.split(each)[0])}

    def teardown(self) -> None:
        if not hasattr(self, "batches"):
            return
        self.world.replay()
        for counter in declarations.parts():
            for _ in range(4):
                self.look_at(counter)
                if states.read_state(self.world.redis, counter.name).lost:
                    self.world.build(counter.name)
                finished = False
                while not finished:
                    passes = catch_up([counter], self.world.replica, only(self.world.passes()))
                    finished = passes[counter.name].finished
                for progress in resolve_departures(counter, self.world.replica, self.world.passes()):
                    assert not progress.waiting, progress
            state = states.read_state(self.world.redis, counter.name)
            assert (not state.cold and state.left_through == state.cursor) or state.left_through is None, state
            if state.left_through is None:
                self.world.reconcile(counter.whole)
        assert not differences(self.world)


@pytest.mark.parametrize("stories", [8, pytest.param(150, marks=pytest.mark.long)])
def test_random_declarations_rows_and_deletes_end_where_sql_is(
    world: World, monkeypatch: pytest.MonkeyPatch, stories: int
) -> None:
    class Here(Groupings):
        pass

    Here.world, Here.patch = world, monkeypatch
    try:
        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=stories,
                stateful_step_count=25,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        world.ask_primary("DROP SCHEMA IF EXISTS shop CASCADE")
        world.replay()
