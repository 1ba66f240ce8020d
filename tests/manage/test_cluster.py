"""The keeper on a Redis Cluster: counters with parts on all servers, and what happens to them when a server fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from redis import Redis, RedisError
from redis.crc import key_slot

from compose.local.redis_cluster import Cluster, Node
from manage_service.keeper.loop import Keeper
from manage_service.management.terminal import Follower, show_run
from manage_service.protocol import catch_up, groups
from manage_service.runs.registry import Mode
from manage_service.site.health import look_at_redis
from manage_service.status.judging import Limits
from manage_service.status.report import read_status
from manage_service.stores import connect_for_passes
from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.nodes import Nodes, ask_server
from shared_models.protocol import elements, keys, states, steps
from shared_models.protocol.timeline import SOURCE_SQL
from tests.manage.grouped import SMALL, differences, is_exact, orders
from tests.manage.keepers import keeper_at_work, tick_until
from tests.manage.world import World
from tests.servers import started_cluster, wait_for

SHARDED = SMALL + "shards = 16\n"
ROWS = """
    INSERT INTO shop.orders (email, country, created_at)
    SELECT 'user ' || i %% 700, 'country ' || i %% 30, timestamptz '2024-01-01 00:00Z' + i * interval '37 min'
    FROM generate_series(1, 2000) AS i
"""


@pytest.fixture
def cluster() -> Cluster:
    """The cluster of this process, without keys. A test leaves it whole."""
    cluster = started_cluster()
    cluster.form()
    for node in cluster.nodes:
        if node.is_primary:
            node.ask("FLUSHALL")
    return cluster


@pytest.fixture
def spread(world: World, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An adopted table whose counters have 16 parts in the cluster."""
    monkeypatch.setattr("django.conf.settings.REDIS_URL", cluster.url)
    world.nodes = Nodes(cluster.url, ask_server)
    with orders(world, SHARDED):
        world.ask_primary(ROWS)
        world.replay()
        yield world
    for client in world.nodes.forget_all():
        client.close()


@pytest.fixture
def keeper(spread: World) -> Iterator[Keeper]:
    """A keeper that has built everything."""
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: is_exact(spread), "the builds")
        yield keeper


def record(world: World, email: str, country: str) -> bool:
    """As ingest: a row, and its elements in the parts; whether all servers took them."""
    ((xact, source),) = world.ask_primary(
        f"INSERT INTO shop.orders (email, country, created_at) VALUES (%s, %s, '2024-05-05 12:00Z') RETURNING xact, ({SOURCE_SQL})",
        email,
        country,
    )
    values = {"email": email, "country": country, "created_at": "2024-05-05"}
    counted = True
    for counter in declarations.derived():
        row = tuple(values[each.column] for each in counter.terms)
        for part, some in elements.by_part(counter, elements.encode_all(counter, [row])):
            try:
                steps.record(world.redis_of(part), {part.name: some}, xact, source)
            except RedisError:
                world.nodes.look_again()
                counted = False
    return counted


def node_of(cluster: Cluster, world: World, number: int) -> Node:
    """The server that holds a part."""
    part = declarations.COUNTERS[0].parts[number]
    port = int(world.nodes.where(keys.home_of(part)).rpartition(":")[2].partition("/")[0])
    return next(node for node in cluster.nodes if node.port == port)


def test_parts_lie_on_all_servers_and_add_up(spread: World, keeper: Keeper) -> None:
    servers = {spread.nodes.where(keys.home_of(part)) for part in declarations.parts()}
    assert len(servers) == 3 and len(declarations.parts()) == 32
    assert record(spread, "zoe", "DE")
    spread.ask_primary("DELETE FROM shop.orders WHERE email = 'user 7'")
    spread.ask_primary("UPDATE shop.orders SET country = 'FR' WHERE email LIKE 'user 1%%'")
    spread.replay()
    tick_until(keeper, lambda: is_exact(spread), "departures")
    status = read_status(spread.nodes, spread.replica, Limits.of(1.0, 3600.0))
    assert status.counters["customers"].count == 700 and not differences(spread)


def test_a_run_looks_at_all_parts_and_says_one_result(
    spread: World, keeper: Keeper, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two extra members, in parts of different servers."""
    for number in (0, 9):
        part = declarations.COUNTERS[0].parts[number]
        member = next(
            b"extra %d" % n for n in range(1_000) if elements.shard_of(part, b"2024-01-01\0extra %d" % n) == number
        )
        steps.record(spread.redis_of(part), {part.name: [b"2024-01-01\0" + member]})
    run = spread.reconcile("customers", mode=Mode.CHECK)
    assert (run.status, run.by_counter["customers"].extra, len(run.findings)) == ("done", 2, 16)
    with Follower(run, quiet=True) as follower:
        follower.show(run)
    show_run(run)
    assert next(line.split()[:3] for line in capsys.readouterr().out.splitlines()) == [
        "customers",
        "missing=0",
        "extra=2",
    ]
    assert spread.reconcile("customers").by_counter["customers"].extra == 2
    assert not differences(spread)


def test_all_parts_of_a_counter_are_looked_at_in_its_turn(spread: World, keeper: Keeper) -> None:
    """Otherwise a group that was changed by hand would wait the longer the more parts there are."""
    (counter,) = declarations.COUNTERS[0].groupings
    damaged: dict[str, bytes] = {}
    for part in counter.parts[::5]:
        at, redis = keys.of_counter(part.name), spread.redis_of(part)
        (damaged[part.name],) = cast("list[bytes]", redis.zrange(at.members, 0, 0))
        redis.delete(at.group(redis.hget(at.intake, "generation"), damaged[part.name]))
    for _ in declarations.derived():
        keeper.look_at_groups()
    assert {name: [*broken] for name, broken in keeper.broken.items() if broken} == {
        name: [group] for name, group in damaged.items()
    }
    tick_until(keeper, lambda: not keeper.mending and not any(keeper.broken.values()), "the groups to be read again")
    assert is_exact(spread)


def test_a_look_at_everything_looks_at_each_part_once(
    spread: World, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking on until the largest possible counter would have been seen took longer than the keeper's lease, again and again."""
    looked: list[str] = []
    whole = groups.is_whole

    def is_whole(part: Counter, redis: Redis) -> bool:
        looked.append(part.name)
        return whole(part, redis)

    monkeypatch.setattr(groups, "is_whole", is_whole)
    keeper.looks_at_all = True
    keeper.look_at_groups()
    assert sorted(looked) == sorted(part.name for part in declarations.parts())


def test_a_primary_that_dies_costs_its_parts_until_its_replica_is_promoted(
    spread: World, keeper: Keeper, cluster: Cluster
) -> None:
    victim = node_of(cluster, spread, 0)
    assert look_at_redis() is None
    victim.kill()
    try:
        spread.ask_primary(ROWS.replace("user ", "later "))
        spread.ask_primary("DELETE FROM shop.orders WHERE email LIKE 'user 2%%'")
        spread.replay()
        of_others = [part for part in declarations.COUNTERS[0].parts if not part.shard <= 5]
        ((xact,),) = spread.ask_primary("SELECT max(xact) FROM shop.orders")

        def others_are_caught_up() -> bool:
            return all(
                (int(spread.redis_of(part).hget(keys.home_of(part), "cursor") or 0)) > xact for part in of_others
            )

        tick_until(keeper, others_are_caught_up, "the parts of the other servers")

        def is_exact_again() -> bool:
            try:
                return is_exact(spread)
            except RedisError:
                spread.nodes.look_again()
                return False

        tick_until(keeper, is_exact_again, "the promoted replica")
        assert look_at_redis() is None, "manage asks the promoted one"
    finally:
        victim.start()
        wait_for(cluster.serves, "the cluster to be whole")


def test_a_shard_that_is_away_with_its_replica_does_not_hide_the_rest_of_the_status(
    spread: World, cluster: Cluster
) -> None:
    of_runs = spread.nodes.where(keys.RUNS)
    victim = next(
        node_of(cluster, spread, each.shard)
        for each in declarations.COUNTERS[0].parts
        if spread.nodes.where(keys.home_of(each)) != of_runs
    )
    replicas = [node for node in cluster.nodes if not node.is_primary and node.ask("ROLE")[2] == victim.port]
    for node in (*replicas, victim):
        node.kill()
    try:
        status = read_status(spread.nodes, spread.replica, Limits.of(1.0, 3600.0))
        found = status.counters["customers"]
        assert found.state == "cold" and str(victim.port) in found.reason
    finally:
        for node in (victim, *replicas):
            node.start()
        wait_for(cluster.serves, "the cluster to be whole")


def test_a_manual_failover_loses_nothing(spread: World, keeper: Keeper, cluster: Cluster) -> None:
    replica = next(node for node in cluster.nodes if not node.is_primary)
    for number in range(40):
        record(spread, f"during {number}", "DE")
        if number == 10:
            replica.ask("CLUSTER", "FAILOVER")
        keeper.tick()
    wait_for(lambda: replica.is_primary, "the failover")
    spread.replay()
    spread.nodes.look_again()
    tick_until(keeper, lambda: is_exact(spread), "all to be exact")


def test_a_pass_does_not_claim_what_was_lost_while_its_slots_were_elsewhere(
    spread: World, keeper: Keeper, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server, its connection and all that it compares are the same before and after."""
    counter = declarations.COUNTERS[0]
    part = next(each for each in counter.parts if elements.shard_of_member(counter, b"zoe") == each.shard)
    at, here = keys.of_counter(part.name), node_of(cluster, spread, part.shard)
    there = next(node for node in cluster.nodes if node.is_primary and node is not here)
    slot = key_slot(at.state.encode())
    spread.ask_primary("INSERT INTO shop.orders (email, country, created_at) VALUES ('zoe', 'DE', '2024-05-05 12:00Z')")
    spread.replay()
    whole = steps.record

    def record(redis: Redis, members: Any, *args: Any, **options: Any) -> int:
        """What the pass adds is the last that the other server gets, and a failover there loses it."""
        monkeypatch.setattr(steps, "record", whole)
        before = redis.dump(at.members), redis.dump(at.days), redis.dump(at.intake)
        added = whole(redis, members, *args, **options)
        move(slot, here, there)
        with there.client() as other:
            for key, value in zip((at.members, at.days, at.intake), before, strict=True):
                other.restore(key, 0, cast("bytes", value), replace=True)
        move(slot, there, here)
        return added

    monkeypatch.setattr(steps, "record", record)
    cursor = states.read_state(spread.redis_of(part), part.name).cursor
    did = catch_up.catch_up([part], spread.replica, nodes := Nodes(cluster.url, connect_for_passes))[part.name]
    assert (did.added, did.behind) == (1, catch_up.CHANGED)
    assert states.read_state(spread.redis_of(part), part.name).cursor == cursor
    for client in nodes.forget_all():
        client.close()
    tick_until(keeper, lambda: is_exact(spread), "the next pass")


def move(slot: int, here: Node, there: Node) -> None:
    """Move a slot, and wait until both servers know it."""
    name = there.ask("CLUSTER", "MYID")
    here.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", name)

    def knows(node: Node) -> bool:
        return any(first <= slot <= last and to[2] == name for first, last, to, *_ in node.ask("CLUSTER", "SLOTS"))

    wait_for(lambda: knows(here) and knows(there), "the slot to be moved")
