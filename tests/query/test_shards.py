"""Counters with several shards, on one server: what is not as with one shard. `test_groups_stateful` shows that all else is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from redis import Redis

from query_service import tops
from query_service.trips import Trips
from shared_models import declarations
from shared_models.declarations import get_counter
from shared_models.protocol import keys, steps
from tests.query.driving import Query, Reply
from tests.query.grouped import FILE, SHARDED, World, by_part, declare
from tests.query.rolls_in_redis import Rolls

BY_STATE = "customers:state"
NY = (("NY",), "ann")
TOP = "/v1/counts/customers?by=state&top="


@pytest.fixture
def world(rolls: Rolls, monkeypatch: pytest.MonkeyPatch) -> World:
    """The counters, live and empty."""
    declare(monkeypatch, SHARDED)
    world = World(rolls)
    world.make_live()
    return world


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions went to Redis: a number for each."""
    asked: list[int] = []
    ask_redis = Trips.ask

    async def ask(trips: Any, parts: Any, queue: Any) -> Any:
        asked.append(len(parts))
        return await ask_redis(trips, parts, queue)

    monkeypatch.setattr(Trips, "ask", ask)
    return asked


def refused(query: Query, path: str) -> Any:
    reply = query.get(path, cache_control="no-cache")
    assert reply.headers["content-type"] == "application/problem+json", reply.body
    return reply.json


def compare(query: Query, operation: str, *sets: Any) -> Reply:
    return query.post("/v1/algebra", {"operation": operation, "sets": list(sets)})


def fill(world: World, sizes: dict[str, int]) -> None:
    """Groups with so many members each."""
    world.record(BY_STATE, *(((name,), f"{name}-{n}") for name, size in sizes.items() for n in range(size)))


def test_P4_a_counter_is_cold_if_one_of_its_parts_is(query: Query, world: World, redis: Redis) -> None:
    world.record("buyers", ((), "ann"), ((), "bob"))
    redis.delete(keys.of_counter(get_counter("buyers").parts[4].name).state)
    counts = query.read("/v1/counts")["counters"]
    assert (counts["buyers"]["state"], counts["buyers"]["count"]) == ("cold", None)
    assert counts["customers"]["state"] == "live"
    assert refused(query, "/v1/counts/buyers")["detail"].startswith(
        "counter 'buyers' cannot be counted now: it has not been built"
    )
    asked = {"members": [{"email": f"{n}"} for n in range(20)]}
    assert query.post("/v1/counts/buyers/members", asked).json["counter"] == "buyers"
    assert compare(query, "union", {"counter": "buyers"}, {"counter": "buyers"}).json["counter"] == "buyers"

    redis.delete(keys.of_counter(get_counter(BY_STATE).parts[0].name).intake)
    for path in ("customers?by=state&group=NY", "customers?by=state&top=1", "customers/groups?by=state"):
        assert refused(query, f"/v1/counts/{path}")["by"] == ["state"]
    redis.delete(keys.of_counter(get_counter("customers").parts[5].name).intake)
    assert refused(query, "/v1/counts/customers?window=7d")["counter"] == "customers"


def test_what_is_claimed_is_what_all_parts_claim(query: Query, world: World) -> None:
    first, *rest = get_counter("buyers").parts
    earlier = datetime.now(UTC) - timedelta(seconds=30)
    for part in rest:
        world.rolls.advance(part.name, earlier + timedelta(seconds=20))
    world.rolls.advance(first.name, earlier)
    assert datetime.fromisoformat(query.read("/v1/counts/buyers")["complete_through"]) == earlier


def test_a_group_is_cold_if_its_set_was_changed_in_one_part(query: Query, world: World, redis: Redis) -> None:
    world.record(BY_STATE, NY, (("NY",), "bob"), (("CA",), "ann"))
    ((part, _),) = by_part(BY_STATE, [NY])
    at = keys.of_counter(part.name)
    redis.sadd(at.group(redis.hget(at.intake, "generation"), b"NY"), "by hand")
    for read_again in (False, True):
        assert refused(query, "/v1/counts/customers?by=state&group=NY")["group"] == ["NY"]
        top = query.read(TOP + "10")
        assert (top["top"], top["cold_groups"]) == ([{"group": ["CA"], "count": 1}], [["NY"]])
        assert top["sum_of_groups"] is None
        listed = query.read("/v1/counts/customers/groups?by=state")
        assert listed["groups"] == [{"group": ["CA"], "count": 1}, {"group": ["NY"], "count": None}]
        if not read_again:
            assert steps.drop_groups(redis, part.name, [b"NY"], "token")


def test_the_largest_groups_are_exact_and_found_at_once_the_next_time(
    query: Query, world: World, trips: list[int]
) -> None:
    random = Random(17)
    sizes = {f"state-{n}": 1 + int(random.paretovariate(1.2)) % 60 for n in range(150)}
    fill(world, sizes)
    ranked = sorted(sizes.items(), key=lambda each: (-each[1], each[0].encode()))
    for most in (1, 5, 20, 149, 150, 1000):
        found = query.read(f"{TOP}{most}")
        assert [(each["group"][0], each["count"]) for each in found["top"]] == ranked[:most]
        assert found["sum_of_groups"] == sum(sizes.values())
        trips.clear()
        assert query.read(f"{TOP}{most}")["top"] == found["top"]
        assert trips == [6]
    assert (query.read(f"{TOP}1")["groups"], found["groups"]) == (None, 150)


def test_a_group_that_becomes_the_largest_is_found(query: Query, world: World, trips: list[int]) -> None:
    fill(world, {f"state-{n}": 3 for n in range(30)})
    query.read(f"{TOP}2")
    fill(world, {"new": 9})
    assert query.read(f"{TOP}2")["top"] == [{"group": ["new"], "count": 9}, {"group": ["state-0"], "count": 3}]
    for member in range(9):
        world.sweep(BY_STATE, ("new",), f"new-{member}")
    assert [each["group"] for each in query.read(f"{TOP}2")["top"]] == [["state-0"], ["state-1"]]


def test_groups_that_are_too_many_alike_are_refused(
    query: Query, world: World, trips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tops, "MOST_NAMES", 100)
    fill(world, {f"state-{n:03}": 1 for n in range(120)})
    problem = refused(query, f"{TOP}3")
    assert (problem["type"], problem["status"], problem["limit"]) == ("urn:rollcall:top-too-even", 422, 100)
    assert "'customers' by state" in problem["detail"]
    fill(world, {"large": 40, "larger": 50})
    trips.clear()
    assert refused(query, f"{TOP}4")["limit"] == 100
    assert not trips, "nobody tries this again for a while"
    assert [each["group"] for each in query.read(f"{TOP}2")["top"]] == [["larger"], ["large"]]


def test_the_page_says_that_there_are_more(query: Query, world: World) -> None:
    fill(world, {f"state-{n}": 20 - n for n in range(18)})
    body = query.get("/").body.decode()
    assert "more" in body and "None" not in body


def test_sets_need_the_same_number_of_shards(query: Query, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SHARDED.replace(
        "[counters.buyers]", '[counters.few]\ntable = "orders"\nmember = ["email"]\n\n[counters.buyers]'
    )
    declare(monkeypatch, text)
    reply = compare(query, "union", {"counter": "buyers"}, {"counter": "few"})
    assert (reply.status, reply.json["type"], reply.json["parameter"]) == (400, "urn:rollcall:wrong-question", "sets")
    assert "sets[1] is of a counter with shards = 1, and sets[0] of one with shards = 6" in reply.json["detail"]


def test_the_limit_of_work_holds_for_each_shard(start_query: Callable[..., Query], world: World) -> None:
    members = [((), f"{n}") for n in range(60)]
    world.record("buyers", *members)
    most = max(len(some) for _, some in by_part("buyers", members))
    sets = [{"counter": "buyers"}, {"counter": "buyers"}]
    assert compare(start_query(algebra_members=most), "intersection", *sets).json["count"] == 60
    reply = compare(start_query(algebra_members=most - 1), "intersection", *sets)
    assert (reply.status, reply.json["members"], reply.json["limit"]) == (422, most, most - 1)


def test_the_history_is_that_of_the_whole_counter(query: Query, world: World) -> None:
    now = datetime.now(UTC)
    world.rolls.note("buyers", (now, 7))
    assert [count for _, count in query.get("/v1/counts/buyers/history").json["samples"]] == [7]


def test_the_description_names_what_only_shards_can_answer(
    query: Query, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "urn:rollcall:top-too-even" in query.get("/openapi.json").body.decode()
    declare(monkeypatch, FILE)
    assert all(each.shards == 1 for each in declarations.COUNTERS)
    assert "urn:rollcall:top-too-even" not in query.get("/openapi.json").body.decode()
