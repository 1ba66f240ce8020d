"""Every answer about groups, windows and sets against plain sets of Python, after records and sweeps in any order."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import product
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from query_service import groups as groups_module
from shared_models import declarations
from tests.query.driving import Query
from tests.query.grouped import FILE, SHARDED, World, declare
from tests.query.rolls_in_redis import Rolls
from tests.servers import started_valkey

NOW = datetime(2026, 11, 27, 22, 30, tzinfo=UTC)  # 23:30 in Berlin
TODAY = date(2026, 11, 27)
STATES = ["NY", "CA", "", 'a,"b', "😀"]
DAYS = [str(TODAY + timedelta(days=n)) for n in (-40, -7, -6, -1, 0, 1)]
MEMBERS = ["ann", "bob", "carl", "dora", "erika", "frank"]

members = st.sampled_from(MEMBERS)
# A row, and whether it comes or goes.
rows = st.tuples(st.booleans(), members, st.sampled_from(STATES), st.sampled_from(DAYS))
operations = st.lists(rows, max_size=40)


# With six shards, and fewer rows, `test_cluster` asks the same.
@pytest.fixture(
    params=[pytest.param(FILE, id="one shard"), pytest.param(SHARDED, id="six shards", marks=pytest.mark.long)]
)
def start_world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], World]:
    """A factory: an empty Redis with live counters."""
    declare(monkeypatch, request.param)
    monkeypatch.setattr(groups_module, "utc_now", lambda: NOW)

    def start() -> World:
        client: Redis = started_valkey().client()
        client.flushdb()
        world = World(Rolls(client))
        world.make_live()
        return world

    return start


def follow(world: World, rows: list[tuple[bool, str, str, str]]) -> None:
    """Let the rows come and go, as recording, departures and sweeps write it."""
    there: set[tuple[str, str, str]] = set()
    for comes, *row in rows:
        member, state, day = row
        derived = {
            "customers:state": (state,),
            "buyers:state": (state,),
            "customers:state,day(created_at)": (state, day),
            "customers:day(created_at)": (day,),
            "buyers": (),
        }
        if comes:
            there.add((member, state, day))
            for name, head in derived.items():
                world.record(name, (head, member))
            world.record("customers", ((day,), member))
        elif (member, state, day) in there:
            there.discard((member, state, day))
            heads = {name: {head_of(name, each) for each in there if each[0] == member} for name in derived}
            for name, head in derived.items():
                if head not in heads[name]:
                    world.sweep(name, head, member)
            days = [each[2] for each in there if each[0] == member]
            if world.last[member] not in days:
                world.sweep("customers", (world.last[member],), member, instead=max(days, default=""))


def head_of(name: str, row: tuple[str, str, str]) -> tuple[str, ...]:
    _, state, day = row
    of = {"customers:state,day(created_at)": (state, day), "customers:day(created_at)": (day,), "buyers": ()}
    return of.get(name, (state,))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=operations, most=st.integers(1, 7), limit=st.integers(1, 7), prefix=st.sampled_from(["", "a", "N", "😀"]))
def test_every_answer_is_that_of_plain_sets(
    query: Query,
    start_world: Callable[[], World],
    rows: list[tuple[bool, str, str, str]],
    most: int,
    limit: int,
    prefix: str,
) -> None:
    world = start_world()
    follow(world, rows)
    check_every_answer(query, world, most, limit, prefix)
    world.client.close()


def check_every_answer(query: Query, world: World, most: int, limit: int, prefix: str) -> None:
    """Ask every kind of question, and compare the answer with the sets."""

    def ask(path: str, **parameters: Any) -> Any:
        return query.read(f"/v1/counts/{path}?{urlencode(parameters, doseq=True)}")

    by_state = world.groups["customers:state"]
    for state in STATES:
        assert ask("customers", by="state", group=state)["count"] == len(by_state.get((state,), ()))
    for group in product(STATES[:2], DAYS):
        expected = world.groups["customers:state,day(created_at)"].get(group, ())
        assert ask("customers", by="state,day(created_at)", group=group)["count"] == len(expected)

    sizes = sorted(((-len(found), name.encode(), name) for (name,), found in by_state.items()))
    top = ask("customers", by="state", top=most)
    assert [(each["group"][0], each["count"]) for each in top["top"]] == [(name, -size) for size, _, name in sizes][
        :most
    ]
    assert top["sum_of_groups"] == sum(map(len, by_state.values()))
    assert (top["distinct"], top["cold_groups"]) == (len(world.last), [])
    # The parts of a counter do not know how many groups it has, unless all were read.
    is_told = len(declarations.COUNTERS[0].parts) == 1 or most > len(by_state)
    assert top["groups"] == len(by_state) or (top["groups"] is None and not is_told)

    for days in (1, 2, 7, 8, 41):
        first = str(TODAY - timedelta(days=days - 1))
        assert ask("customers", window=f"{days}d")["count"] == sum(day >= first for day in world.last.values())

    said = ask("customers", by="day", **{"from": DAYS[0], "to": DAYS[-1]})
    by_day = world.groups["customers:day(created_at)"]
    assert [each["count"] for each in said["groups"]] == [
        len(by_day.get((str(TODAY + timedelta(days=n)),), ())) for n in range(-40, 2)
    ]
    assert said["sum_of_groups"] == sum(map(len, by_day.values()))

    names: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(len(by_state) + 1):
        page = ask("customers/groups", by="state", prefix=prefix, limit=limit, **cursor)
        names += [each["group"][0] for each in page["groups"]]
        assert all(each["count"] == len(by_state[tuple(each["group"])]) for each in page["groups"])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert names == sorted((name for (name,) in by_state if name.startswith(prefix)), key=str.encode)

    for member in MEMBERS:
        assert query.get(f"/v1/counts/customers/member?email={member}").json == {"member": member in world.last}
    all_twice = {"members": [{"email": member} for member in MEMBERS * 2]}
    reply = query.post("/v1/counts/buyers/members", all_twice)
    assert reply.json == {"members": [member in world.members["buyers"] for member in MEMBERS * 2]}
    counts = query.read("/v1/counts")["counters"]
    assert (counts["customers"]["count"], counts["buyers"]["count"]) == (len(world.last), len(world.members["buyers"]))

    sets = {
        json.dumps({"counter": "buyers"}): world.members["buyers"],
        **{
            json.dumps({"counter": name, "by": "state", "group": [state]}): world.groups[f"{name}:state"].get(
                (state,), set()
            )
            for name, state in (("buyers", "NY"), ("customers", "CA"), ("customers", 'a,"b'))
        },
    }
    for many in (2, 3, 4):
        asked, found = list(sets)[-many:], list(sets.values())[-many:]
        for operation, expected in (
            ("intersection", set.intersection(*found)),
            ("union", set.union(*found)),
            ("difference", set.difference(*found)),
        ):
            body = {"operation": operation, "sets": [json.loads(each) for each in asked]}
            headers = {"cache_control": "no-cache"}
            reply = query.run(query.request("POST", "/v1/algebra", headers=headers, body=json.dumps(body).encode()))
            assert (reply.json["count"], [each["count"] for each in reply.json["sets"]]) == (
                len(expected),
                [len(each) for each in found],
            )
