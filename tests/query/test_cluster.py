"""Query on a Redis Cluster: counters with parts on all servers, and what it says when a server fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.crc import key_slot

from compose.local.redis_cluster import Cluster, Node
from compose.local.servers import HOST
from query_service import groups as groups_module
from shared_models import nodes as nodes_module
from shared_models.declarations import get_counter
from shared_models.nodes import Nodes, ask_server, read_cluster
from shared_models.protocol import keys
from shared_models.web.rate_limits import RateLimit
from tests.query.driving import Query, Reply, eventually
from tests.query.grouped import SHARDED, World, declare
from tests.query.rolls_in_redis import Rolls
from tests.query.test_groups_stateful import DAYS, MEMBERS, NOW, STATES, check_every_answer, follow
from tests.servers import started_cluster, wait_for

# Emails of both counters are in the same slots; shops are in others.
TAGGED = SHARDED.replace("shards = 6", 'shards = 6\ntag = "people"')


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
def spread(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Live counters, whose parts are on all servers."""
    declare(monkeypatch, TAGGED)
    monkeypatch.setattr(groups_module, "utc_now", lambda: NOW)
    nodes = Nodes(cluster.url, ask_server)
    world = World(Rolls(nodes.of("any")), nodes)
    world.make_live()
    yield world
    for client in nodes.forget_all():
        client.close()


@pytest.fixture
def query(cluster: Cluster, start_query: Callable[..., Query]) -> Query:
    """The service over the cluster."""
    return start_query(cluster.url)


def compare(query: Query, *sets: Any) -> Reply:
    return query.post("/v1/algebra", {"operation": "intersection", "sets": list(sets)})


def node_of(cluster: Cluster, world: World, name: str, number: int = 0) -> Node:
    """The server that holds a part of a counter."""
    assert world.nodes is not None
    port = int(world.nodes.where(keys.home_of(get_counter(name).parts[number])).rpartition(":")[2].partition("/")[0])
    return next(node for node in cluster.nodes if node.port == port)


def test_every_answer_is_that_of_plain_sets(query: Query, spread: World) -> None:
    assert spread.nodes is not None
    assert len({spread.nodes.where(keys.home_of(part)) for part in get_counter("customers").parts}) == 3
    random = Random(17)
    for _ in range(3):
        rows = [
            (random.random() < 0.7, random.choice(MEMBERS), random.choice(STATES), random.choice(DAYS))
            for _ in range(60)
        ]
        spread.empty()
        follow(spread, rows)
        check_every_answer(query, spread, most=random.randint(1, 6), limit=random.randint(1, 6), prefix="")


def test_sets_in_other_slots_are_refused_by_name(query: Query, spread: World, monkeypatch: pytest.MonkeyPatch) -> None:
    emails = [{"counter": "customers", "by": "state", "group": ["NY"]}, {"counter": "buyers"}]
    assert compare(query, *emails).json["count"] == 0
    declare(monkeypatch, SHARDED)
    spread.make_live()
    reply = compare(query, *emails)
    assert (reply.status, reply.json["type"], reply.json["parameter"]) == (400, "urn:rollcall:wrong-question", "sets")
    assert "sets[1] is of counter 'buyers', and sets[0] of 'customers'" in reply.json["detail"]
    assert reply.json["detail"].endswith("declare both with the same tag")


def test_a_server_that_is_gone_costs_the_counters_that_have_parts_there(
    query: Query, spread: World, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.REDIS_URL", cluster.url)
    assert query.get("/readyz").json["checks"] == {"redis": "ok"}
    spread.record("customers", *(((DAYS[0],), f"{n}") for n in range(40)))
    spread.record("shops", ((), "7"))
    home = node_of(cluster, spread, "shops")
    victim = next(node for number in range(6) if (node := node_of(cluster, spread, "customers", number)) is not home)
    assert query.read("/v1/counts/customers")["count"] == 40
    others = [node for node in cluster.nodes if node is not victim]
    for node in others:
        node.ask("CONFIG", "SET", "cluster-replica-no-failover", "yes")
    victim.kill()
    try:
        ready = query.get("/readyz").json
        assert (ready["ready"], ready["degraded"], ready["checks"]["redis"]) == (True, True, "ok")
        assert ready["checks"]["redis_servers"].startswith("1 of 3 servers of Redis cannot be read (")
        counts = query.read("/v1/counts")["counters"]
        assert (counts["shops"]["state"], counts["shops"]["count"]) == ("live", 1)
        assert (counts["customers"]["state"], counts["customers"]["count"]) == ("unavailable", None)
        assert "the server that holds a part of it does not answer" in counts["customers"]["reason"]
        problem = query.get("/v1/counts/customers").json
        assert problem["type"] == "urn:rollcall:redis-unavailable" and "'customers'" in problem["detail"]
        assert str(victim.port) not in str(problem) + str(counts), "no address is for clients"
        assert query.get("/v1/counts/customers?window=7d").json["type"] == "urn:rollcall:redis-unavailable"
        assert query.get("/v1/counts/shops/member?shop=7").json == {"member": True}

        for node in others:
            node.ask("CONFIG", "SET", "cluster-replica-no-failover", "no")

        async def until_promoted() -> None:
            query.counts.ask()
            await eventually(
                lambda: query.counts.describe()["counters"]["customers"]["count"] == 40, "the promoted replica", 20.0
            )

        query.run(until_promoted())
        assert query.read("/v1/counts/customers/groups?by=state")["groups"] == []
    finally:
        for node in others:
            node.ask("CONFIG", "SET", "cluster-replica-no-failover", "no")
        victim.start()
        wait_for(cluster.serves, "the cluster to be whole")


def test_a_failover_that_is_over_is_not_noticed(
    query: Query, spread: World, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first read after it gets MOVED, reads the map again, and asks the new primary."""
    monkeypatch.setattr(nodes_module, "LOOK_SECONDS", 0.0)  # the map of this test is a few milliseconds old
    spread.record("customers:state", (("NY",), "ann"))
    question = "/v1/counts/customers?by=state&group=NY"
    assert query.read(question)["count"] == 1
    replica = next(node for node in cluster.nodes if not node.is_primary)
    replica.ask("CLUSTER", "FAILOVER")

    def is_known_to_all() -> bool:
        maps = [read_cluster(urlsplit(cluster.url), HOST, node.port) for node in cluster.nodes]
        return all(any(place.url.endswith(f":{replica.port}/0") for place in each) for each in maps)

    wait_for(is_known_to_all, "the failover")
    assert query.read(question)["count"] == 1
    assert query.read("/v1/counts/customers")["state"] == "live"
    wait_for(cluster.serves, "the cluster to be whole")


def test_the_rate_limit_counts_on_the_server_of_each_second(
    query: Query, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = RateLimit("ingest", cluster.url, 3)

    async def count() -> list[int]:
        found = []
        for second in range(4):
            monkeypatch.setattr("shared_models.web.rate_limits.time.time", lambda second=second: 1_800_000_000 + second)
            found += [await rate.count("one") for _ in range(2)]
        await rate._nodes.aclose()
        return found

    assert query.run(count()) == [1, 2] * 4
    slots = {key_slot(keys.of_rate("ingest", "one", 1_800_000_000 + second).encode()) // 5_462 for second in range(4)}
    assert len(slots) > 1, "the seconds are on several servers"
