"""Counters by group, and last seen: built, caught up, left, reconciled, damaged; each time compared with Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.core.management import call_command
from msgspec import UNSET
from psycopg2.sql import SQL, Composed, Literal

from manage_service.protocol import bucket_filter
from manage_service.protocol.build import begin_fill
from manage_service.protocol.groups import forget_generations, mend, watch, within
from manage_service.replica import snapshots, sql
from manage_service.runs import registry
from manage_service.runs.registry import Mode
from manage_service.site.metrics import Facts
from manage_service.status.judging import Limits
from manage_service.status.report import read_status
from shared_models import declarations, triggers
from shared_models.declarations import Storage, get_counter
from shared_models.nodes import only
from shared_models.protocol import elements, keys, steps, storages
from shared_models.protocol.timeline import SOURCE_SQL
from tests.manage.grouped import SMALL, differences, in_redis, in_table, index_of, is_exact, orders
from tests.manage.keepers import keeper_at_work, tick_until
from tests.manage.world import World

INSERT = "INSERT INTO shop.orders (email, country, shop, created_at, due) "
# In St. John's, until 2011, a minute after midnight was once more an hour before it.
FIRST = f"""
    {INSERT} VALUES
        ('ann', 'CA', 1, '2024-03-01 12:00Z', '2024-03-01'), ('ann', 'CA', 1, '2024-02-28 23:00Z', '2024-12-31'),
        ('ann', 'DE', 2, '2010-11-07 02:30:30Z', '2010-11-07'), ('bob', 'DE', 2, '2010-11-07 02:31:30Z', '-infinity'),
        ('bob', 'DE', NULL, 'infinity', 'infinity'), ('cid', NULL, 3, NULL, NULL), (NULL, 'DE', 3, now(), now()),
        ('dee', '', -4, '0044-03-15 00:00Z BC', '0044-03-15 BC'),
        ('dee', 'Å, "x" %', 2147483647, '2024-03-01 03:29Z', '12345-06-07'),
        ('', '["a"]', 0, '2024-03-01 03:31Z', '2024-02-29')
"""
MORE = f"""
    {INSERT} VALUES ('ann', 'CA', 1, '2024-03-05 12:00Z', '2023-01-01'), ('eve', 'US', 9, '2024-03-05 12:00Z', '2024-03-05'),
        ('bob', 'DE', 2, '2009-01-01 00:00Z', '2025-01-01')
"""


@pytest.fixture
def shop(world: World) -> Iterator[World]:
    with orders(world):
        yield world


def write(world: World, *statements: str) -> None:
    """As the application, shown by the replica."""
    for statement in statements:
        world.ask_primary(statement.replace("%", "%%"))
    world.replay()


def test_everything_a_row_can_do_is_in_the_groups_and_the_days(shop: World) -> None:
    write(shop, FIRST)
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: is_exact(shop), "the builds")
        for statement in (
            MORE,
            "UPDATE shop.orders SET country = 'FR' WHERE email = 'ann' AND country = 'CA'",
            "UPDATE shop.orders SET created_at = created_at - interval '3 days' WHERE email = 'ann' AND created_at > '2024-03-01'",
            "UPDATE shop.orders SET due = due + 40 WHERE email IN ('ann', 'eve')",
            "DELETE FROM shop.orders WHERE created_at = (SELECT max(created_at) FROM shop.orders WHERE email = 'ann')",
            "UPDATE shop.orders SET cancelled = true WHERE country = 'DE'",
            "DELETE FROM shop.orders WHERE due > '2024-01-01' OR due = '-infinity'",
            "UPDATE shop.orders SET cancelled = false, email = upper(email)",
            f"{INSERT} SELECT 'user ' || i % 700, 'country ' || i % 300, i % 7,"
            " timestamptz '2024-01-01 00:00Z' + i * interval '37 min', date '2024-01-01' + i % 90"
            " FROM generate_series(1, 3000) AS i",
            "DELETE FROM shop.orders WHERE shop = 3 OR email LIKE 'user 1%'",
            "TRUNCATE shop.orders",
        ):
            write(shop, statement)
            try:
                tick_until(keeper, lambda: is_exact(shop), statement)
            except BaseException:
                print(differences(shop), keeper.unresolved, [shop.state(c.name) for c in declarations.derived()])
                raise
    assert not in_redis(shop, get_counter("customers:country"))


def test_a_day_that_was_lowered_comes_from_the_last_row_that_is_left(small: World) -> None:
    with keeper_at_work() as keeper:
        at = keys.of_counter("customers")
        assert small.redis.hget(at.members, "ann") == b"2024-03-05"
        write(small, "DELETE FROM shop.orders WHERE created_at IN ('2024-03-05 12:00Z', '2024-03-01 12:00Z')")
        tick_until(keeper, lambda: small.redis.hget(at.members, "ann") == b"2024-02-28", "the departure")
        tick_until(keeper, lambda: is_exact(small), "the rest")
        assert small.redis.hlen(at.departing) == 0


def limit_groups(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """As if MAX_GROUPS were this number."""
    few = {
        key: steps.Script(each.text.replace(f"MAX_GROUPS = {storages.MAX_GROUPS}", f"MAX_GROUPS = {most}"))
        for key, each in steps.SCRIPTS.items()
    }
    monkeypatch.setattr(steps, "SCRIPTS", few)


def count(world: World) -> World:
    """Count the first rows."""
    write(world, FIRST, MORE)
    for counter in declarations.derived():
        world.build(counter.name)
    world.reconcile(*(counter.name for counter in declarations.derived()))
    assert not differences(world)
    return world


@pytest.fixture
def counted(shop: World) -> World:
    """The table with its first rows, counted."""
    return count(shop)


@pytest.fixture
def small(world: World) -> Iterator[World]:
    """The same, with few counters."""
    with orders(world, SMALL):
        yield count(world)


def test_what_was_put_there_by_hand_or_taken_away_is_found_by_a_reconcile(counted: World) -> None:
    """The sizes fit: what was done outweighs itself, and nothing but a comparison with the table finds it."""
    steps.record(
        counted.redis,
        {
            "customers:country": [b"CA\0nobody", b"ZZ\0ann", b"junk\0\xff"],
            "customers": [b"2031-01-01\0ann", b"2000-01-01\0nobody"],
            "baskets": [b"2000-01-01\0not an array"],
            "baskets:shop": [b'x\0["DE","bob"]'],
        },
    )
    take = {"customers:day(created_at)": b"2024-03-05\0eve", "baskets": b'2024-03-05\0["US","eve"]'}
    for name, element in take.items():
        steps.mark(counted.redis, name, "token", [element])
        gone, _ = steps.sweep(counted.redis, name, "token", {element: b""}, counted.state(name).changed_at)
        assert gone == [element]
    run = counted.reconcile(*(each.name for each in declarations.derived()))
    assert run.status == "done", run.detail
    found = {name: (each.missing, each.extra) for name, each in run.findings.items() if each.missing or each.extra}
    assert found == {
        "customers": (0, 2),
        "customers:country": (0, 3),
        "customers:day(created_at)": (1, 0),
        "baskets": (1, 1),
        "baskets:shop": (0, 1),
    }
    assert not differences(counted)
    again = counted.reconcile(*(each.name for each in declarations.derived()))
    assert not any(each.missing or each.extra for each in again.findings.values())


def test_a_check_finds_the_same_and_changes_nothing(counted: World) -> None:
    steps.record(counted.redis, {"customers:country": [b"CA\0nobody"], "customers": [b"2031-01-01\0ann"]})
    before = {each.name: in_redis(counted, each) for each in declarations.derived()}
    run = counted.reconcile("customers", "customers:country", mode=Mode.CHECK)
    assert {name: each.extra for name, each in run.findings.items()} == {"customers": 1, "customers:country": 1}
    assert {each.name: in_redis(counted, each) for each in declarations.derived()} == before


DAMAGES = {
    "a set is gone": lambda redis, at, group: redis.delete(group),
    "a member is gone": lambda redis, at, group: redis.srem(group, "bob"),
    "a member was added": lambda redis, at, group: redis.sadd(group, "mallory"),
    "another type": lambda redis, at, group: redis.delete(group) and redis.set(group, "x"),
    "another size": lambda redis, at, group: redis.zincrby(at.members, 3, "DE"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_group_that_was_changed_by_hand_is_cold_alone_and_is_read_again(small: World, damage: str) -> None:
    name = "customers:country"
    at = keys.of_counter(name)
    DAMAGES[damage](small.redis, at, at.group(small.redis.hget(at.intake, "generation"), b"DE"))
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: small.redis.hexists(at.broken, "DE"), "the group to be dropped")
        assert not small.state(name).cold
        assert small.redis.zscore(at.members, "CA") == 1
        tick_until(keeper, lambda: not small.redis.exists(at.broken), "the group to be read again")
        tick_until(keeper, lambda: is_exact(small), "all to be exact")


def test_many_groups_that_were_changed_by_hand_are_dropped_together(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of all groups is made once, and not once for each."""
    name = "customers:country"
    at = keys.of_counter(name)
    monkeypatch.setattr(storages, "SCAN_COUNT", 50)
    write(small, f"{INSERT} SELECT 'ann', 'country ' || i, 1, now(), now() FROM generate_series(1, 150) AS i")
    small.catch_up(name)
    groups = [group for sizes in storages.scan_groups(small.redis, at) for group in sizes]
    for group in groups:
        small.redis.delete(at.group(small.redis.hget(at.intake, "generation"), group))
    before = called(small, "zrange")
    broken = next(watch(get_counter(name), small.redis))
    assert set(broken) == set(groups) and called(small, "zrange") == before + 1
    assert small.redis.hmget(at.intake, "size", "elements") == [b"0", b"0"]
    passes = small.passes()
    for group, token in broken.items():
        for _ in mend(get_counter(name), group, token, small.replica, passes):
            pass
    assert in_redis(small, get_counter(name)) == in_table(small, get_counter(name))


def called(world: World, command: str) -> int:
    """How often Redis has run this command."""
    found = world.redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
    return int(found["calls"])


def test_a_departure_from_a_group_whose_size_was_lowered_by_hand_does_not_take_the_other_members_with_it(
    small: World,
) -> None:
    """The size is 1 then, for two members: with the one who leaves it is 0, and the group would be gone without a trace."""
    name = "customers:country"
    at = keys.of_counter(name)
    assert small.redis.zincrby(at.members, -1, "DE") == 1
    steps.mark(small.redis, name, "token", [b"DE\0ann"])
    steps.sweep(small.redis, name, "token", {b"DE\0ann": b""}, small.state(name).changed_at)
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: small.redis.hexists(at.broken, "DE"), "the group to be dropped")
        tick_until(keeper, lambda: is_exact(small), "all to be exact")


def test_members_put_there_by_hand_that_leave_with_the_others_are_not_taken_off_the_sum_of_all_groups(
    small: World,
) -> None:
    """The group is gone before anybody has looked at its size."""
    name = "customers:country"
    at, everybody = keys.of_counter(name), [b"DE\0ann", b"DE\0bob", b"DE\0mallory", b"DE\0eve"]
    of_others = int(small.redis.hget(at.intake, "elements") or 0) - int(small.redis.zscore(at.members, "DE") or 0)
    small.redis.sadd(at.group(small.redis.hget(at.intake, "generation"), b"DE"), "mallory", "eve")
    steps.mark(small.redis, name, "token", everybody)
    steps.sweep(small.redis, name, "token", dict.fromkeys(everybody, b""), small.state(name).changed_at)
    assert small.redis.zscore(at.members, "DE") is None
    assert int(small.redis.hget(at.intake, "elements") or 0) == of_others


def test_a_group_is_read_again_from_a_replica_that_shows_what_was_recorded_into_it(counted: World) -> None:
    counter = get_counter("customers:country")
    at = keys.of_counter(counter.name)
    with counted.replay_paused():
        ((xact, source),) = counted.ask_primary(
            f"{INSERT} VALUES ('zoe', 'DE', 1, now(), now()) RETURNING xact, ({SOURCE_SQL})".replace("%", "%%")
        )
        steps.record(counted.redis, {counter.name: [b"DE\0zoe"]}, xact, source)
        counted.redis.delete(at.group(counted.redis.hget(at.intake, "generation"), b"DE"))
        assert steps.drop_groups(counted.redis, counter.name, [b"DE"], "token")
        mending = mend(counter, b"DE", "token", counted.replica, counted.passes())
        waited = [progress.waiting for progress, _ in zip(mending, range(3), strict=False)]
        assert len(waited) == 3 and all(waited) and counted.redis.hexists(at.broken, "DE")
    counted.replay()
    assert all(not progress.waiting for progress in mending) and not counted.redis.exists(at.broken)
    assert in_redis(counted, counter) == in_table(counted, counter)


LOSSES = {
    "the directory": lambda redis, at: redis.delete(at.members),
    "directory and names": lambda redis, at: redis.delete(at.members, at.names),
    "a name": lambda redis, at: redis.zrem(at.names, "DE"),
    "a group of the directory": lambda redis, at: redis.zrem(at.members, "DE"),
    "the intake": lambda redis, at: redis.delete(at.intake),
    "the days": lambda redis, at: redis.delete(at.days),
    "a day": lambda redis, at: redis.hincrby(at.days, "2024-03-05", 1),
    "a number that is none": lambda redis, at: redis.hset(at.days, "2024-03-05", "many"),
    "members": lambda redis, at: redis.delete(at.members),
    "one member": lambda redis, at: redis.hdel(at.members, "ann"),
    "another type": lambda redis, at: redis.set(at.days, "x"),
}
OF_DAYS = ("the days", "a day", "a number that is none", "members", "one member", "another type")


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_lost_as_a_whole_is_cold_and_built_again(small: World, loss: str) -> None:
    name = "customers" if loss in OF_DAYS else "customers:country"
    build, at = small.state(name).build, keys.of_counter(name)
    LOSSES[loss](small.redis, at)
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: small.state(name).build != build and is_exact(small), "the build")
    known = [at.group(small.redis.hget(at.intake, "generation"), b""), f"{at.members}:days".encode()]
    for key in small.redis.scan_iter(f"{at.members}:*"):
        assert key.startswith(known[0]), "a set that nobody counts"


@pytest.mark.parametrize("day", [b"", b"many", b"\xff", b"9\0x", b"9999-99-99"])
def test_a_last_day_that_is_none_is_found_by_a_run_and_stops_nothing(small: World, day: bytes) -> None:
    build, at = small.state("customers").build, keys.of_counter("customers")
    small.redis.hset(at.members, "ann", day)
    write(small, f"{INSERT} VALUES ('ann', 'DE', 1, '2024-03-04 12:00Z', now()), ('zoe', 'DE', 1, now(), now())")
    run = small.ask("customers")
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: not registry.get(small.redis, run.id).open, "the run")
        # The numbers of members by day do not add up any longer.
        tick_until(keeper, lambda: small.state("customers").build != build and is_exact(small), "the build")
    assert small.redis.hget(at.members, "ann") == b"2024-03-05"


def test_a_run_removes_no_member_with_a_row_because_of_its_day_and_each_without_one(small: World) -> None:
    """Until the keeper has looked at the numbers of members by day, query answers with the number of members."""
    at = keys.of_counter("customers")
    everybody = small.redis.hlen(at.members)
    impossible = [b"many", b"9\0x", b"9999-99-99", b"infinity", b""]
    for member, day in zip(small.redis.hkeys(at.members), impossible, strict=True):
        small.redis.hset(at.members, member, day)
    small.reconcile("customers")
    assert small.redis.hlen(at.members) == everybody and not small.state("customers").cold
    assert {each for some in storages.scan(small.redis, at, 100) for each in some} == in_table(
        small, get_counter("customers")
    )
    for day in (b"", b"many"):
        small.redis.hset(at.members, "ann", day)
        steps.mark(small.redis, "customers", "token", [b"2024-03-05\0ann"])
        steps.sweep(small.redis, "customers", "token", {b"2024-03-05\0ann": b""}, small.state("customers").changed_at)
        assert not small.redis.hexists(at.members, "ann")


def test_a_build_that_ends_late_leaves_the_sets_of_the_next_one(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keeper was stopped, and another keeper has begun another generation."""
    counter = get_counter("customers:country")
    at, redis = keys.of_counter(counter.name), small.passes()
    old, scan = at.group(small.redis.hget(at.intake, "generation"), b"DE"), redis.scan_iter

    def scan_late(*asked: Any, **more: Any) -> Iterator[bytes]:
        small.redis.delete(at.members)
        with small.replica.snapshot(counter) as snapshot:
            begin_fill(counter, snapshot, small.redis)
        steps.record(small.redis, {counter.name: [b"DE\0bob"]})
        yield from scan(*asked, **more)

    monkeypatch.setattr(redis, "scan_iter", scan_late)
    forget_generations(counter, redis)
    assert small.redis.smembers(at.group(small.redis.hget(at.intake, "generation"), b"DE")) == {b"bob"}
    assert not small.redis.exists(old)


@pytest.mark.parametrize("number", ["many", "002"])
def test_a_day_whose_number_is_none_does_not_stop_the_keeper(small: World, number: str) -> None:
    """Rows of this day come before it looks at the days. Redis does not add to a number with zeros before it."""
    build, at = small.state("customers").build, keys.of_counter("customers")
    small.redis.hset(at.days, "2024-03-05", number)
    write(small, f"{INSERT} VALUES ('zoe', 'DE', 1, '2024-03-05 12:00Z', now())")
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: small.state("customers").build != build and is_exact(small), "the build")


@pytest.mark.parametrize("size", [float("inf"), float("-inf"), -0.5])
def test_a_size_of_a_group_that_is_none_does_not_stop_the_keeper(small: World, size: float) -> None:
    """Rows of this group come before it looks at the sizes."""
    at = keys.of_counter("customers:country")
    small.redis.zadd(at.members, {"DE": size})
    write(small, f"{INSERT} VALUES ('zoe', 'DE', 1, now(), now()), ('zoe', 'FR', 1, now(), now())")
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: small.redis.hexists(at.broken, "DE"), "the group to be dropped")
        tick_until(keeper, lambda: is_exact(small), "all to be exact")


@pytest.mark.parametrize("group", [b"no number", b"\xff", b"99999999999"])
def test_a_group_that_no_row_can_have_is_done_at_once(counted: World, group: bytes) -> None:
    """Postgres could not be asked for it."""
    name = "baskets:shop"
    at = keys.of_counter(name)
    counted.redis.zadd(at.members, {group: 2})
    counted.redis.zadd(at.names, {group: 0})
    counted.redis.hincrby(at.intake, "size", 1)
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: counted.redis.zscore(at.members, group) is None, "the group to be dropped")
        tick_until(keeper, lambda: not counted.redis.exists(at.broken), "it to be done")
        assert keeper.unmended.get(name, "") == ""


def test_a_group_with_a_row_that_the_condition_fails_for_is_not_taken_for_an_empty_one(world: World) -> None:
    """And only the counters with this condition stand still."""
    lines = (
        SMALL.replace("NOT cancelled", "10 / (length(email) - 4) < 100")
        + """
        [counters.countries]
        table = "orders"
        member = ["country"]
    """
    )
    with orders(world, lines):
        # An index with this condition would not take the row.
        for counter in (get_counter("customers"), get_counter("customers:country")):
            world.ask_primary(f'DROP INDEX shop."{index_of(counter).name}"')
            for statement in index_of(replace(counter, where="")).statements():
                world.ask_primary(statement)
        count(world)
        at = keys.of_counter("customers:country")
        write(world, f"{INSERT} VALUES ('fred', 'DE', 1, now(), now()), ('ann', 'FR', 1, now(), now())")
        world.redis.delete(at.group(world.redis.hget(at.intake, "generation"), b"DE"))
        with keeper_at_work() as keeper:
            tick_until(keeper, lambda: keeper.unmended.get("customers:country"), "the group to be refused")
            assert "DivisionByZero" in keeper.unmended["customers:country"]
            assert world.redis.hexists(at.broken, "DE")
            tick_until(keeper, lambda: b"FR" in world.set("countries"), "the other counter to go on")


def test_a_group_that_has_been_read_again_is_not_read_once_more(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look that found it may be older than its reading."""
    counter = get_counter("customers:country")
    at, passes = keys.of_counter(counter.name), small.passes()
    small.redis.delete(at.group(small.redis.hget(at.intake, "generation"), b"DE"))
    ((group, token),) = next(watch(counter, small.redis)).items()
    assert [progress.read for progress in mend(counter, group, token, small.replica, passes)] == [2]
    assert not small.redis.exists(at.broken)
    assert list(mend(counter, group, token, small.replica, passes)) == []


def test_a_group_that_there_is_no_room_for_waits_for_it_alone(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was dropped, another group has taken its place."""
    name = "customers:country"
    at = keys.of_counter(name)
    limit_groups(monkeypatch, small.redis.zcard(at.members))
    small.redis.delete(at.group(small.redis.hget(at.intake, "generation"), b"DE"))
    assert steps.drop_groups(small.redis, name, [b"DE"], "token")
    steps.record(small.redis, {name: [b"XX\0nobody"]})
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: "MAX_GROUPS" in keeper.unmended.get(name, ""), "the group to be refused")
        assert small.redis.hexists(at.broken, "DE") and not small.state(name).cold
        steps.mark(small.redis, name, "token", [b"XX\0nobody"])
        steps.sweep(small.redis, name, "token", {b"XX\0nobody": b""}, small.state(name).changed_at)
        tick_until(keeper, lambda: not small.redis.exists(at.broken) and is_exact(small), "room again")


def test_a_group_that_waits_for_the_replica_keeps_no_job_from_its_work(small: World) -> None:
    at = keys.of_counter("customers:country")
    with small.replay_paused():
        ((xact, source),) = small.ask_primary(
            f"{INSERT} VALUES ('zoe', 'DE', 1, now(), now()) RETURNING xact, ({SOURCE_SQL})".replace("%", "%%")
        )
        steps.record(small.redis, {"customers:country": [b"DE\0zoe"]}, xact, source)
        small.redis.delete(at.group(small.redis.hget(at.intake, "generation"), b"DE"))
        with keeper_at_work() as keeper:
            tick_until(keeper, lambda: keeper.mending, "the group to be read")
            run = small.ask("customers")
            tick_until(keeper, lambda: not registry.get(small.redis, run.id).open, "the run")
            assert small.redis.exists(at.broken)
            small.ask_primary("SELECT 1")
    small.replay()


@pytest.mark.parametrize("which", ["intake", "broken", "names", "members", "state"])
def test_a_key_of_another_type_is_found_by_the_look_at_the_groups_and_stops_nothing_else(
    small: World, which: str
) -> None:
    """Also if the keeper does not come to the build before it looks: it is busy with a run, or starts over."""
    name = "customers:country"
    build, at = small.state(name).build, keys.of_counter(name)
    small.redis.delete(getattr(at, which))
    small.redis.set(getattr(at, which), "?")
    with keeper_at_work() as keeper:
        keeper.leading = keeper.lease.acquire()
        keeper.looks_at_all = True
        keeper.look_at_groups()
        tick_until(keeper, lambda: small.state(name).build != build and is_exact(small), "the build")


def test_a_group_of_another_type_among_many_does_not_stop_the_keeper(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run meets it, and fails, before the look has come there; and would again and again."""
    monkeypatch.setattr("manage_service.protocol.groups.GROUPS_AT_ONCE", 1)
    monkeypatch.setattr(storages, "SCAN_COUNT", 50)
    write(small, f"{INSERT} SELECT 'ann', 'country ' || i, 1, now(), now() FROM generate_series(1, 150) AS i")
    for counter in declarations.derived():
        small.catch_up(counter.name)
        assert steps.make_cold(small.redis, counter.name, small.state(counter.name))
        small.build(counter.name)
    name = "customers:country"
    at = keys.of_counter(name)
    *_, last = filter(None, storages.scan_groups(small.redis, at))  # a piece of a scan may be empty
    group = at.group(small.redis.hget(at.intake, "generation"), next(iter(last)))
    small.redis.delete(group)
    small.redis.set(group, "?")
    with keeper_at_work() as keeper:
        monkeypatch.setattr("manage_service.keeper.loop.PAUSE_AFTER_FAILURE_SECONDS", 0)
        tick_until(keeper, lambda: small.state(name).verified_at is not None and is_exact(small), "the run")


@pytest.mark.parametrize("loss", ["the directory", "directory and names", "a group of the directory", "one member"])
def test_a_run_settles_no_loss_of_a_directory_or_of_days(small: World, loss: str) -> None:
    """It finds members in sets that the directory does not name, and what it adds to such a group removes its set."""
    name = "customers" if loss in OF_DAYS else "customers:country"
    at = keys.of_counter(name)
    for group in (b"DE", b"CA"):
        small.redis.srem(at.group(small.redis.hget(at.intake, "generation"), group), "bob")
    LOSSES[loss](small.redis, at)
    run = small.reconcile(name)
    assert run.status == "failed" and small.state(name).cold, run.detail
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: is_exact(small), "the build")


def test_a_later_day_that_comes_during_a_run_hides_no_extra_member(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its day, the earlier element would leave room for the extra one in its bucket: they are chosen to be in the same one."""
    monkeypatch.setattr(bucket_filter, "MASK", 1)
    day = small.redis.hget(keys.of_counter("customers").members, "ann")
    assert isinstance(day, bytes)

    def bucket(element: bytes) -> int:
        return hash(element) & 1

    old = bucket(day + b"\0ann")
    later = next(each for n in range(1, 29) if bucket((each := f"2025-01-{n:02}".encode()) + b"\0ann") != old)
    extra = next(each for n in range(99) if bucket(each := b"2000-01-01\0nobody%d" % n) == old)
    steps.record(small.redis, {"customers": [extra]})
    run = small.ask("customers")
    for progress in small.steps(run):
        if progress.phase == "missing" and progress.read and later:
            write(small, f"{INSERT} VALUES ('ann', 'CA', 1, '{later.decode()} 12:00Z', NULL)")
            small.catch_up("customers")
            later = b""
    assert run.findings["customers"].extra == 1 and not differences(small)


def test_more_groups_than_there_may_be_are_refused_by_name_and_the_others_go_on(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_groups(monkeypatch, 20)
    write(small, f"{INSERT} SELECT 'ann', 'country ' || i, 1, now(), now() FROM generate_series(1, 30) AS i")
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: small.state("customers:country").condition == "refused", "the refusal")
        assert "MAX_GROUPS" in small.state("customers:country").why_cold
        tick_until(keeper, lambda: not small.state("customers").cold)
        assert in_redis(small, get_counter("customers")) == in_table(small, get_counter("customers"))
        write(small, "DELETE FROM shop.orders WHERE country LIKE 'country%'")
        keeper.refused.clear()  # a minute later
        tick_until(keeper, lambda: is_exact(small), "room again")


def test_a_build_that_was_refused_begins_again_without_the_groups_of_before(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All room is taken by groups that the table no longer has, and the others come after the fill's position."""
    limit_groups(monkeypatch, 20)
    monkeypatch.setattr(steps, "CHUNK_OF_GROUPS", 5)
    write(small, f"{INSERT} SELECT 'ann', 'country ' || i, 1, now(), now() FROM generate_series(1, 60) AS i")
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: small.state("customers:country").condition == "refused", "the refusal")
        write(
            small,
            "DELETE FROM shop.orders WHERE country LIKE 'country%'",
            f"{INSERT} SELECT 'ann', 'last ' || i, 1, now(), now() FROM generate_series(1, 10) AS i",
        )
        keeper.refused.clear()  # a minute later
        tick_until(keeper, lambda: is_exact(small), "room again")


def test_what_is_read_is_read_by_the_index_in_its_order(shop: World) -> None:
    """However large the table is, a chunk takes milliseconds."""
    write(
        shop,
        f"{INSERT} SELECT 'user ' || i, 'country ' || i % 30, i % 7, timestamptz '2024-01-01 00:00Z' + i * interval '1 min',"
        " date '2024-01-01' + i % 90 FROM generate_series(1, 3000) AS i",
        "ANALYZE shop.orders",
    )
    for counter in declarations.derived():
        is_last_seen = counter.storage is Storage.LAST_SEEN
        marks = ["1"] * len(counter.fields if is_last_seen else counter.terms)
        marks = [
            "2024-03-01" if each.type == "date" else mark for each, mark in zip(counter.terms, marks, strict=False)
        ]
        arrays = [["1"] if each.type != "date" else ["2024-03-01"] for each in counter.terms]
        behind, limit = sql.fill_in(sql.BEHIND, counter), Literal(1_000)
        asked: list[tuple[Composed, list[Any]]] = [
            (sql.fill_in(sql.SCAN, counter, behind=behind, limit=limit), marks),
            (sql.fill_in(sql.JUMP, counter, behind=behind, limit=limit), marks),
            (sql.fill_in(sql.WITHOUT_ROW, counter), arrays),
        ]
        if len(counter.by) == 1:  # a group that is read again
            group = elements.split(min(in_table(shop, counter)))[0].decode()
            alone = within(counter, (group,))
            asked.append((sql.fill_in(sql.SCAN, alone, behind=behind, limit=limit), marks))
        with shop.replica.snapshot(counter) as snapshot, snapshot._connection.cursor() as cursor:
            for statement, values in asked:
                cursor.execute(SQL("EXPLAIN (COSTS OFF) ") + statement, values)
                plan = "\n".join(line for (line,) in cursor.fetchall())
                # At most a chunk of what the index gives may be sorted once more.
                read = plan.partition("Limit")[2] or plan
                assert not [word for word in ("Seq Scan", "Sort", "Hash") if word in read], (counter.name, plan)
                assert "Index Cond" in read, (counter.name, plan)
                # An index of days has the column in INCLUDE. Beside the others there is an index without the condition.
                if any(each.is_made for each in counter.terms):
                    assert "Index Only Scan" in read, (counter.name, plan)


def test_the_last_day_of_a_member_is_read_by_one_descent_of_its_index(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        shop,
        f"{INSERT} SELECT 'user ' || i, 'country ' || i % 30, 1, timestamptz '2024-01-01 00:00Z' + i * interval '1 min',"
        " date '2024-01-01' + i % 90 FROM generate_series(1, 3000) AS i",
        "ANALYZE shop.orders",
    )
    ask, plans = snapshots.ask, list[str]()

    def explain(connection: Any, statement: Composed, parameters: Any) -> list[Any]:
        plans.append(
            "\n".join(line for (line,) in ask(connection, SQL("EXPLAIN (COSTS OFF) ") + statement, parameters))
        )
        return []

    for counter in declarations.COUNTERS:
        with shop.replica.snapshot(counter) as snapshot, monkeypatch.context() as patch:
            patch.setattr(snapshots, "ask", explain)
            snapshot.last_seen(counter, [("DE", "ann")[-len(counter.fields) :]])
        plan = plans.pop()
        assert "Index Only Scan Backward" in plan and "Index Cond" in plan, (counter.name, plan)
        assert not [word for word in ("Seq Scan", "Sort", "Hash") if word in plan], (counter.name, plan)


def test_an_index_of_the_days_of_a_column_with_a_quote_in_its_name_is_known(world: World) -> None:
    lines = (
        """[tables.events]\nname = "quoted.events"\nfields = {email = "text", 'the "hour"' = "timestamptz"}\n"""
        """[counters.mails]\ntable = "events"\nmember = ["email"]\nby = ['day(the "hour")', 'month(the "hour")']\n"""
    )
    _, (mails,) = declarations.parse(lines)
    world.ask_primary("CREATE SCHEMA quoted")
    try:
        world.ask_primary(
            'CREATE TABLE quoted.events (email text COLLATE "C", "the ""hour""" timestamptz, xact bigint)'  # as `adopt` adds it
        )
        for counter in mails.groupings:
            for statement in triggers.index("quoted", "events", counter.terms).statements():
                world.ask_primary(statement.replace("%", "%%"))
        world.replay()
        for counter in mails.groupings:
            with world.replica.snapshot(counter) as snapshot:
                assert not [each for each in snapshot.misfits(counter) if "begins with" in each]
    finally:
        world.ask_primary("DROP SCHEMA quoted CASCADE")
        world.replay()


def test_every_storage_is_there(shop: World) -> None:
    assert {each.storage for each in declarations.derived()} == {Storage.GROUPS, Storage.LAST_SEEN}


def test_the_status_the_metrics_and_runs_know_each_derived_counter(counted: World) -> None:
    status = read_status(only(counted.redis), counted.replica, Limits.of(1.0, 3600.0))
    names = [each.name for each in declarations.derived()]
    assert list(status.counters) == names
    by_country = status.counters["customers:country"]
    elements = in_table(counted, get_counter("customers:country"))
    assert (by_country.count, by_country.groups) == (
        len(elements),
        len({each.partition(b"\0")[0] for each in elements}),
    )
    assert status.counters["customers"].groups is UNSET
    at = keys.of_counter("customers:country")
    counted.redis.delete(at.group(counted.redis.hget(at.intake, "generation"), b"DE"))
    next(watch(get_counter("customers:country"), counted.redis))
    again = read_status(only(counted.redis), counted.replica, Limits.of(1.0, 3600.0)).counters["customers:country"]
    assert (again.broken_groups, again.state) == (1, "live")

    said = {
        (sample.name, sample.labels["counter"]): sample.value
        for metric in Facts(only(counted.redis)).collect()
        for sample in metric.samples
        if "counter" in sample.labels
    }
    assert said["rollcall_counter_groups", "customers:country"] == (by_country.groups or 0) - 1
    assert said["rollcall_counter_broken_groups", "customers:country"] == 1
    assert said["rollcall_counter_members", "customers"] == status.counters["customers"].count
    assert ("rollcall_counter_groups", "customers") not in said


def test_a_counter_that_is_named_stands_for_its_groupings_too(counted: World) -> None:
    with pytest.raises(SystemExit) as ended:
        call_command("reconcile", "baskets", "customers:country")
    assert ended.value.code == 0
    (run,) = registry.latest(counted.redis, 1)
    assert run.counters == ["baskets", "baskets:country", "baskets:shop", "customers:country"]
    assert set(run.findings) == set(run.counters)
