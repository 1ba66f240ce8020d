"""Groups, windows, lists of groups and sets: what they say, and that they never say a wrong number."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from jsonschema_rs import Draft202012Validator
from redis import Redis
from redis import from_url as redis_of
from redis.exceptions import NoPermissionError

from compose.local.servers import Valkey
from query_service import algebra, directories
from query_service import groups as groups_module
from query_service.questions import MOST_PERIODS
from query_service.trips import Trips
from shared_models import declarations
from shared_models.protocol import keys, states, steps
from tests.described import query_parameters
from tests.query.driving import Query, Reply
from tests.query.grouped import World, declare
from tests.query.rolls_in_redis import Rolls
from tests.servers import free_port, servers_folder, start

BY_STATE, BY_DAY, BY_BOTH = "customers:state", "customers:day(created_at)", "customers:state,day(created_at)"
TODAY = "2026-11-27"
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def world(rolls: Rolls, monkeypatch: pytest.MonkeyPatch) -> World:
    """The counters, live and empty, at noon."""
    declare(monkeypatch)
    monkeypatch.setattr(groups_module, "utc_now", lambda: NOON)
    monkeypatch.setattr(algebra, "utc_now", lambda: NOON)
    world = World(rolls)
    world.make_live()
    return world


def ask(query: Query, path: str, **parameters: Any) -> Any:
    """The document, read from Redis for this question."""
    return query.read(f"/v1/counts/{path}?{urlencode(parameters, doseq=True)}")


def refused(query: Query, path: str, **parameters: Any) -> Any:
    reply = query.get(f"/v1/counts/{path}?{urlencode(parameters, doseq=True)}", cache_control="no-cache")
    assert reply.headers["content-type"] == "application/problem+json", reply.body
    return reply.json


def compare(query: Query, **body: Any) -> Reply:
    return query.run(query.request("POST", "/v1/algebra", headers={"cache_control": "no-cache"}, body=encoded(body)))


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


class TestOneGroup:
    def test_it_says_its_count_and_how_good_it_is(self, query: Query, world: World) -> None:
        world.record(BY_STATE, (("NY",), "ann"), (("NY",), "bob"), (("CA",), "ann"))
        assert ask(query, "customers", by="state", group="NY") == {
            "counter": "customers",
            "by": ["state"],
            "group": ["NY"],
            "count": 2,
            "state": "live",
            "complete_through": "2026-11-23T12:00:01.200000Z",
            "verified_at": None,
            "drift": None,
            "repaired": False,
            "as_of": "2026-11-27T12:00:00Z",
        }

    def test_a_group_that_the_directory_does_not_name_has_nobody_whatever_set_is_there(
        self, query: Query, world: World
    ) -> None:
        world.client.sadd(world.set_of(BY_STATE, "TX"), "mallory")
        assert ask(query, "customers", by="state", group="TX")["count"] == 0
        assert compare(
            query, operation="union", sets=[{"counter": "buyers"}, {"counter": "customers", "by": "state", "group": ["TX"]}]
        ).json["count"] == 0  # fmt: skip

    @pytest.mark.parametrize(
        "name",
        [
            *("a,b", "a/b", "a&b=c#d", "😀" * 16, "", " ", "%", '["NY"]', '"', "\\", "x" * 1024, "\x01\x7f", "e\u0301"),
            *("{users}", ":", "*", "state:x", "\n", "a\r\nb"),
        ],
    )
    def test_a_name_may_be_any_text(self, query: Query, world: World, name: str) -> None:
        world.record(BY_STATE, ((name,), "ann"))
        world.record(BY_BOTH, ((name, TODAY), "ann"))
        assert ask(query, "customers", by="state", group=name)["count"] == 1
        assert ask(query, "customers", by="state", group=name + "\0")["count"] == 0
        assert ask(query, "customers", by="state,day(created_at)", group=[name, TODAY])["group"] == [name, TODAY]
        assert ask(query, "customers", by="state,day", group=[name, TODAY])["count"] == 1
        for by in ("state", "state,day"):
            listed = ask(query, "customers/groups", by=by, prefix=name[:1])
            assert [(each["group"][0], each["count"]) for each in listed["groups"]] == [(name, 1)]
        assert ask(query, "customers", by="state", top=1)["top"][0]["group"] == [name]

    def test_a_set_that_something_else_has_changed_makes_its_group_cold_and_no_other(
        self, query: Query, world: World, redis: Redis
    ) -> None:
        world.record(BY_STATE, (("NY",), "ann"), (("CA",), "ann"))
        damages: list[Callable[[bytes], object]] = [
            lambda key: redis.sadd(key, "by hand"),
            lambda key: redis.delete(key),
            lambda key: (redis.delete(key), redis.set(key, "another type")),
        ]
        for damage in damages:
            damage(world.set_of(BY_STATE, "NY"))
            problem = refused(query, "customers", by="state", group="NY")
            assert (problem["type"], problem["group"]) == ("urn:rollcall:counter-cold", ["NY"])
            assert "something other than Rollcall has changed it" in problem["detail"]
            assert ask(query, "customers", by="state", group="CA")["count"] == 1
            top = ask(query, "customers", by="state", top=10)
            assert (top["top"], top["cold_groups"]) == ([{"group": ["CA"], "count": 1}], [["NY"]])
            assert top["sum_of_groups"] is None
            listed = ask(query, "customers/groups", by="state")
            assert listed["groups"] == [{"group": ["CA"], "count": 1}, {"group": ["NY"], "count": None}]
            sets = [{"counter": "customers", "by": "state", "group": [state]} for state in ("NY", "CA")]
            reply = compare(query, operation="intersection", sets=sets)
            assert (reply.status, reply.json["group"]) == (503, ["NY"])

    def test_a_group_that_is_read_again_is_cold_though_its_size_is_right(self, query: Query, world: World) -> None:
        world.record(BY_STATE, (("NY",), "ann"), (("CA",), "ann"))
        world.client.sadd(world.set_of(BY_STATE, "NY"), "by hand")
        assert steps.drop_groups(world.client, BY_STATE, [b"NY"], "token")
        for recorded in (False, True):
            assert refused(query, "customers", by="state", group="NY")["group"] == ["NY"]
            top = ask(query, "customers", by="state", top=10)
            assert ([each["group"] for each in top["top"]], top["cold_groups"]) == ([["CA"]], [["NY"]])
            listed = ask(query, "customers/groups", by="state", limit=1)
            assert listed["groups"] == [{"group": ["CA"], "count": 1}]
            rest = ask(query, "customers/groups", by="state", limit=1, cursor=listed["next_cursor"])
            assert (rest["groups"], rest["next_cursor"]) == ([{"group": ["NY"], "count": None}], None)
            if not recorded:
                world.record(BY_STATE, (("NY",), "carl"))
        was = states.read_state(world.client, BY_STATE)
        assert steps.mend_group(world.client, BY_STATE, b"NY", "token", was)
        assert ask(query, "customers", by="state", group="NY")["count"] == 1

    def test_P4_a_cold_counter_gives_no_group(self, query: Query, world: World, redis: Redis) -> None:
        world.record(BY_STATE, (("NY",), "ann"))
        redis.delete(keys.of_counter(BY_STATE).members)
        for parameters in ({"group": "NY"}, {"top": 1}):
            problem = refused(query, "customers", by="state", **parameters)
            assert (problem["type"], problem["counter"], problem["by"]) == (
                "urn:rollcall:counter-cold",
                "customers",
                ["state"],
            )
        assert refused(query, "customers/groups", by="state")["by"] == ["state"]
        reply = compare(
            query,
            operation="union",
            sets=[{"counter": "buyers"}, {"counter": "customers", "by": "state", "group": ["NY"]}],
        )
        assert (reply.status, reply.json["by"]) == (503, ["state"])
        assert ask(query, "customers", by="day(created_at)", group=TODAY)["count"] == 0

    @pytest.mark.parametrize("key", ["members", "names", "broken", "intake", "state"])
    def test_a_key_of_another_type_makes_it_cold(self, query: Query, world: World, redis: Redis, key: str) -> None:
        world.record(BY_STATE, (("NY",), "ann"))
        at = getattr(keys.of_counter(BY_STATE), key)
        redis.delete(at)
        redis.set(at, "another type")
        assert refused(query, "customers/groups", by="state")["type"] == "urn:rollcall:counter-cold"
        if key != "names":
            assert refused(query, "customers", by="state", top=3)["type"] == "urn:rollcall:counter-cold"

    def test_a_counter_that_was_built_again_is_read_in_its_new_generation(self, query: Query, world: World) -> None:
        world.record(BY_STATE, (("NY",), "ann"))
        world.record("buyers:state", (("NY",), "ann"))
        sets = [{"counter": name, "by": "state", "group": ["NY"]} for name in ("customers", "buyers")]
        assert ask(query, "customers", by="state", group="NY")["count"] == 1
        world.fill(BY_STATE, [(("NY",), "ann"), (("NY",), "bob")])
        world.fill("buyers:state", [(("NY",), "ann"), (("NY",), "bob")])
        assert compare(query, operation="intersection", sets=sets).json["count"] == 2
        assert ask(query, "customers", by="state", group="NY")["count"] == 2
        assert ask(query, "customers", by="state", top=1)["top"] == [{"group": ["NY"], "count": 2}]

    @pytest.mark.parametrize("path", ["customers?by=state&top=1", "customers/groups?by=state"])
    def test_lists_follow_a_new_generation(self, query: Query, world: World, path: str) -> None:
        world.record(BY_STATE, (("NY",), "ann"))
        for members in (["ann", "bob"], ["ann", "bob", "carl"]):
            query.read(f"/v1/counts/{path}")
            world.fill(BY_STATE, [(("NY",), member) for member in members])
            said = query.read(f"/v1/counts/{path}")
            assert [each["count"] for each in said.get("top") or said["groups"]] == [len(members)]

    def test_a_broken_group_is_listed_in_its_place_and_once(self, query: Query, world: World) -> None:
        world.record(BY_STATE, *(((name,), "ann") for name in ("AZ", "CA", "NJ", "NY")))
        world.client.sadd(world.set_of(BY_STATE, "CA"), "by hand")
        assert steps.drop_groups(world.client, BY_STATE, [b"CA"], "token")
        found: list[tuple[str, int | None]] = []
        cursor: dict[str, str] = {}
        for _ in range(5):
            page = ask(query, "customers/groups", by="state", limit=1, **cursor)
            found += [(each["group"][0], each["count"]) for each in page["groups"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert found == [("AZ", 1), ("CA", None), ("NJ", 1), ("NY", 1)]
        for prefix, names in (("A", ["AZ"]), ("C", ["CA"]), ("N", ["NJ", "NY"])):
            page = ask(query, "customers/groups", by="state", prefix=prefix)
            assert [each["group"][0] for each in page["groups"]] == names


class TestTop:
    def test_the_largest_come_first_and_equal_ones_by_name(self, query: Query, world: World) -> None:
        for state, many in {"b": 3, "a": 3, "é": 5, "c": 3, "d": 1, "e": 1}.items():
            world.record(BY_STATE, *(((state,), f"{n}") for n in range(many)))
        world.record("customers", *(((TODAY,), f"{n}") for n in range(5)))
        for most in range(1, 8):
            top = ask(query, "customers", by="state", top=most)
            assert [each["group"][0] for each in top["top"]] == ["é", "a", "b", "c", "d", "e"][:most]
            assert [each["count"] for each in top["top"]] == [5, 3, 3, 3, 1, 1][:most]
            assert (top["distinct"], top["sum_of_groups"], top["groups"], top["cold_groups"]) == (5, 16, 6, [])

    def test_an_empty_counter_has_none(self, query: Query, world: World) -> None:
        top = ask(query, "customers", by="state", top=1000)
        assert (top["top"], top["distinct"], top["sum_of_groups"], top["groups"]) == ([], 0, 0, 0)

    def test_groups_that_change_while_they_are_read_are_read_again(
        self, query: Query, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.record(BY_STATE, (("old",), "ann"))
        rounds: list[int] = []
        ask_redis = Trips.ask

        async def grow(trips: Any, parts: Any, queue: Any) -> Any:
            replies = await ask_redis(trips, parts, queue)
            if len(rounds) < 2:
                state = f"new-{len(rounds)}"
                world.record(BY_STATE, *(((state,), f"{n}") for n in range(2 + len(rounds))))
            rounds.append(1)
            return replies

        monkeypatch.setattr(Trips, "ask", grow)
        assert ask(query, "customers", by="state", top=2)["top"] == [
            {"group": ["new-1"], "count": 3},
            {"group": ["new-0"], "count": 2},
        ]

    def test_the_total_may_be_cold_alone(self, query: Query, world: World, redis: Redis) -> None:
        world.record(BY_STATE, (("NY",), "ann"))
        redis.delete(keys.of_counter("customers").state)
        top = ask(query, "customers", by="state", top=1)
        assert (top["top"][0]["count"], top["distinct"]) == (1, None)

    def test_with_very_many_broken_groups_all_are_cold(
        self, query: Query, world: World, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(directories, "MOST_BROKEN", 3)
        redis.hset(keys.of_counter(BY_STATE).broken, mapping={f"{n}": "t" for n in range(4)})
        assert refused(query, "customers", by="state", top=1)["type"] == "urn:rollcall:counter-cold"
        assert refused(query, "customers/groups", by="state")["type"] == "urn:rollcall:counter-cold"


class TestDays:
    def test_every_day_of_the_range_is_there_also_those_with_nobody(self, query: Query, world: World) -> None:
        world.record(
            BY_DAY, (("2026-11-01",), "ann"), (("2026-11-03",), "ann"), (("2026-11-03",), "bob"), (("2026-11-04",), "x")
        )
        said = ask(query, "customers", by="day(created_at)", **{"from": "2026-11-01", "to": "2026-11-03"})
        assert [(each["group"], each["count"]) for each in said["groups"]] == [
            (["2026-11-01"], 1),
            (["2026-11-02"], 0),
            (["2026-11-03"], 2),
        ]
        assert (said["sum_of_groups"], said["cold_groups"], said["time_zone"]) == (3, [], "Europe/Berlin")

    @pytest.mark.parametrize(
        ("by", "first", "last", "expected"),
        [
            ("week", "2026-11-01", "2026-11-09", ["2026-10-26", "2026-11-02", "2026-11-09"]),
            ("month", "2025-12-31", "2026-02-01", ["2025-12-01", "2026-01-01", "2026-02-01"]),
            ("day", "9999-12-30", "9999-12-31", ["9999-12-30", "9999-12-31"]),
            ("month", "9999-12-30", "9999-12-31", ["9999-12-01"]),
            ("week", "0001-01-02", "0001-01-02", ["0001-01-01"]),
        ],
    )
    def test_weeks_and_months_are_those_that_the_days_lie_in(
        self, query: Query, world: World, by: str, first: str, last: str, expected: list[str]
    ) -> None:
        said = ask(query, "customers", by=by, **{"from": first, "to": last})
        assert [each["group"][0] for each in said["groups"]] == expected
        assert (said["from"], said["to"]) == (expected[0], expected[-1])

    def test_days_of_one_state(self, query: Query, world: World, redis: Redis) -> None:
        world.record(BY_BOTH, (("NY", "2026-11-02"), "ann"), (("CA", "2026-11-02"), "bob"))
        said = ask(query, "customers", by="state,day", group="NY", **{"from": "2026-11-01", "to": "2026-11-02"})
        assert [each["count"] for each in said["groups"]] == [0, 1]
        redis.sadd(world.set_of(BY_BOTH, "NY", "2026-11-02"), "by hand")
        said = ask(query, "customers", by="state,day", group="NY", **{"from": "2026-11-01", "to": "2026-11-02"})
        assert [each["count"] for each in said["groups"]] == [0, None]
        assert (said["sum_of_groups"], said["cold_groups"]) == (None, [["NY", "2026-11-02"]])


class TestWindow:
    def test_it_counts_members_seen_since_its_first_day_and_those_of_the_future(
        self, query: Query, world: World
    ) -> None:
        seen = {
            "today": "2026-11-27",
            "old": "2026-11-20",
            "edge": "2026-11-21",
            "future": "2027-01-01",
            "far": "9999-12-31",
        }
        world.record("customers", *(((day,), name) for name, day in seen.items()))
        for window, first, count in (
            ("today", "2026-11-27", 3),
            ("1d", "2026-11-27", 3),
            ("7d", "2026-11-21", 4),
            ("3660d", "2016-11-20", 5),
        ):
            said = ask(query, "customers", window=window)
            assert (said["from"], said["time_zone"], said["count"]) == (first, "Europe/Berlin", count)
        assert said["state"] == "live"

    @pytest.mark.parametrize(
        ("moment", "first"),
        [
            (datetime(2026, 11, 27, 22, 59, 59, tzinfo=UTC), "2026-11-27"),
            (datetime(2026, 11, 27, 23, 0, tzinfo=UTC), "2026-11-28"),  # midnight in Berlin, in winter
            (datetime(2026, 7, 1, 21, 59, 59, tzinfo=UTC), "2026-07-01"),
            (datetime(2026, 7, 1, 22, 0, tzinfo=UTC), "2026-07-02"),  # … and in summer
            (datetime(2026, 3, 29, 1, 0, tzinfo=UTC), "2026-03-29"),  # the hour that there is not
        ],
    )
    def test_today_is_that_of_the_counter(
        self, query: Query, world: World, monkeypatch: pytest.MonkeyPatch, moment: datetime, first: str
    ) -> None:
        monkeypatch.setattr(groups_module, "utc_now", lambda: moment)
        day = date.fromisoformat(first)
        world.record(
            "customers",
            ((first,), "ann"),
            ((str(day - timedelta(days=1)),), "bob"),
            ((str(day - timedelta(days=7)),), "x"),
        )
        assert (ask(query, "customers", window="today")["from"], ask(query, "customers", window="today")["count"]) == (
            first,
            1,
        )
        assert ask(query, "customers", window="7d")["count"] == 2

    @pytest.mark.parametrize(
        "damage", [("2026-11-27", "2"), ("2026-11-27", "-1"), ("2026-11-27", "many"), ("junk", "1")]
    )
    def test_P4_days_that_do_not_add_up_give_no_window(
        self, query: Query, world: World, redis: Redis, damage: tuple[str, str]
    ) -> None:
        world.record("customers", ((TODAY,), "ann"))
        redis.hset(keys.of_counter("customers").days, *damage)
        assert "do not add up" in refused(query, "customers", window="7d")["detail"]
        redis.delete(keys.of_counter("customers").days)
        redis.set(keys.of_counter("customers").days, "another type")
        assert refused(query, "customers", window="7d")["type"] == "urn:rollcall:counter-cold"

    def test_members_of_a_counter_with_last_seen_are_found(self, query: Query, world: World) -> None:
        world.record("customers", ((TODAY,), "ann"))
        assert query.get("/v1/counts/customers/member?email=ann").json == {"member": True}
        asked = [{"email": name} for name in ("bob", "ann", "bob")]
        assert query.post("/v1/counts/customers/members", {"members": asked}).json == {"members": [False, True, False]}
        assert ask(query, "customers")["count"] == 1


class TestListing:
    def test_a_group_that_comes_while_the_list_is_read_is_in_it(
        self, query: Query, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.record(BY_STATE, (("NY",), "ann"))
        ask(query, "customers/groups", by="state")
        ask_redis = Trips.ask
        rounds: list[int] = []

        async def grow(trips: Any, parts: Any, queue: Any) -> Any:
            replies = await ask_redis(trips, parts, queue)
            if not rounds:
                world.record(BY_STATE, (("CA",), "ann"))
                world.sweep(BY_STATE, ("NY",), "ann")
            rounds.append(1)
            return replies

        monkeypatch.setattr(Trips, "ask", grow)
        assert ask(query, "customers/groups", by="state")["groups"] == [{"group": ["CA"], "count": 1}]

    def test_pages_go_through_all_groups_in_the_order_of_their_bytes(self, query: Query, world: World) -> None:
        names = ["", "B", "a", "a,b", "ab", "b", "é", "😀", "x" * 1024]
        world.record(BY_STATE, *(((name,), "ann") for name in names))
        for limit in (1, 2, 8, 9, 100):
            found: list[str] = []
            cursor: dict[str, str] = {}
            for _ in range(len(names)):
                page = ask(query, "customers/groups", by="state", limit=limit, **cursor)
                assert len(page["groups"]) <= limit
                found += [each["group"][0] for each in page["groups"]]
                if page["next_cursor"] is None:
                    break
                cursor = {"cursor": page["next_cursor"]}
            assert found == sorted(names, key=str.encode)
        page = ask(query, "customers/groups", by="state", prefix="a")
        assert [each["group"][0] for each in page["groups"]] == ["a", "a,b", "ab"]

    def test_a_prefix_is_of_the_first_term(self, query: Query, world: World) -> None:
        world.record(
            BY_BOTH, (("N", TODAY), "ann"), (("NY", TODAY), "ann"), (('N"', TODAY), "ann"), (("CA", TODAY), "ann")
        )
        page = ask(query, "customers/groups", by="state,day", prefix="N")
        assert {each["group"][0] for each in page["groups"]} == {"N", "NY", 'N"'}
        assert [each["group"][0] for each in ask(query, "customers/groups", by="state,day", prefix='N"')["groups"]] == [
            'N"'
        ]

    def test_a_directory_without_its_names_is_cold(self, query: Query, world: World, redis: Redis) -> None:
        world.record(BY_STATE, (("NY",), "ann"))
        redis.zadd(keys.of_counter(BY_STATE).names, {"by hand": 0})
        assert "its names are not those of its groups" in refused(query, "customers/groups", by="state")["detail"]


class TestAlgebra:
    def test_what_it_answers(self, query: Query, world: World) -> None:
        world.record("customers:week(created_at)", (("2026-11-23",), "ann"), (("2026-11-23",), "carl"))
        world.record("buyers:state", (("NY",), "ann"), (("NY",), "bob"))
        sets = [
            {"counter": "buyers", "by": "state", "group": ["NY"]},
            {"counter": "customers", "by": "week", "group": ["2026-11-23"]},
        ]
        reply = compare(query, operation="intersection", sets=sets)
        assert reply.headers["cache-control"] == "no-store"
        assert reply.json == {
            "operation": "intersection",
            "count": 1,
            "sets": [
                {"counter": "buyers", "by": ["state"], "group": ["NY"], "count": 2},
                {"counter": "customers", "by": ["week(created_at)"], "group": ["2026-11-23"], "count": 2},
            ],
            "state": "live",
            "complete_through": "2026-11-23T12:00:01.200000Z",
            "as_of": "2026-11-27T12:00:00Z",
        }

    def test_too_much_work_is_refused_with_the_set_and_the_limit(
        self, start_query: Callable[..., Query], world: World
    ) -> None:
        query = start_query(algebra_members=5)
        world.record("buyers", *(((), f"{n}") for n in range(9)))
        world.record("buyers:state", *((("NY",), f"{n}") for n in range(6)), *((("CA",), f"{n}") for n in range(3)))
        total, ny, ca = (
            {"counter": "buyers"},
            *({"counter": "buyers", "by": "state", "group": [each]} for each in ("NY", "CA")),
        )
        assert compare(query, operation="intersection", sets=[total, ca]).json["count"] == 3
        reply = compare(query, operation="intersection", sets=[total, ny])
        assert (reply.status, reply.json["type"]) == (422, "urn:rollcall:sets-too-large")
        assert (reply.json["set"], reply.json["members"], reply.json["limit"]) == (1, 6, 5)
        assert compare(query, operation="union", sets=[total, ca, ca]).status == 422  # 3 + 3 + 3 + 3
        assert compare(query, operation="difference", sets=[ca, total]).json["count"] == 0

    def test_a_set_that_comes_while_the_sizes_are_looked_at_is_counted(
        self, query: Query, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask_redis = Trips.ask
        rounds: list[int] = []
        sets = [{"counter": "buyers"}, {"counter": "buyers", "by": "state", "group": ["NY"]}]
        assert compare(query, operation="intersection", sets=sets).json["count"] == 0  # and the generation is known

        async def grow(trips: Any, parts: Any, queue: Any) -> Any:
            replies = await ask_redis(trips, parts, queue)
            if not rounds:
                world.record("buyers:state", (("NY",), "ann"))
                world.record("buyers", ((), "ann"))
            rounds.append(1)
            return replies

        monkeypatch.setattr(Trips, "ask", grow)
        assert compare(query, operation="intersection", sets=sets).json["count"] == 1

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"operation": "union", "sets": [{"counter": "buyers"}]}, "length >= 2"),
            ({"operation": "union", "sets": [{"counter": "buyers"}] * 5}, "length <= 4"),
            ({"operation": "union", "sets": [{"counter": "buyers"}, {"counter": "shops"}]}, "members of shop (integer)"),
            ({"operation": "union", "sets": [{"counter": "buyers"}, {"counter": "customers"}]}, "last_seen"),
            ({"operation": "union", "sets": [{"counter": "buyers"}, {"counter": "buyers", "by": "shop"}]}, "declared by state and"),
            ({"operation": "union", "sets": [{"counter": "buyers"}, {"counter": "buyers", "by": "state"}]}, "1 needed here"),
            ({"operation": "union", "sets": [{"counter": "buyers"}, {"counter": "buyers", "group": ["NY"]}]}, "group needs by"),
            ({"operation": "xor", "sets": []}, "Invalid enum value"),
            ({"operation": "union", "sets": [{"counter": "buyers", "where": 1}]}, "unknown field"),
            ([], "Expected `object`"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_compared_is_refused_with_the_reason(
        self, query: Query, world: World, body: Any, words: str
    ) -> None:
        reply = query.post("/v1/algebra", body)
        assert reply.status == 400
        assert words in reply.json["detail"]
        assert query.post("/v1/algebra", {"operation": "union", "sets": [{"counter": "nobody"}] * 2}).status == 404


WRONG = [
    ("customers", {"by": "email", "group": "x"}, "by", "not counted by 'email'; it is declared by state and by day(created_at)"),
    ("customers", {"by": "day(created_at),state", "group": "x"}, "by", "not counted by"),
    ("shops", {"by": "day", "group": "x"}, "by", "it has no groups"),
    ("customers", {"by": "state"}, "group", "say which groups: group=<state>, or top=10"),
    ("customers", {"group": "NY"}, "by", "group needs by"),
    ("customers", {"top": "3"}, "by", "top needs by"),
    ("customers", {"by": "state", "group": ["NY", "CA"]}, "group", "2 given, and 1 needed here"),
    ("customers", {"by": "state,day", "group": "NY"}, "group", "1 given, and 2 needed here: group=<state>&group=<day(created_at)>"),
    ("customers", {"by": "day", "group": "yesterday"}, "group", "'yesterday' is no date"),
    ("customers", {"by": "day", "group": "2026-02-30"}, "group", "is no date"),
    ("customers", {"by": "week", "group": "2026-11-24"}, "group", "lies in the week 2026-11-23: a week is named by its Monday"),
    ("customers", {"by": "month", "group": "2026-11-24"}, "group", "lies in the month 2026-11-01"),
    ("customers", {"by": "shop", "group": "007"}, "group", "no whole number"),
    ("customers", {"by": "state", "top": "0"}, "top", "from 1 to 1000"),
    ("customers", {"by": "state", "top": "1001"}, "top", "from 1 to 1000"),
    ("customers", {"by": "state", "top": "ten"}, "top", "'ten'"),
    ("customers", {"by": "state", "top": "10", "group": "NY"}, "group", "group goes without top"),
    ("customers", {"by": "state", "from": "2026-11-01", "to": "2026-11-02"}, "from", "for days, weeks and months"),
    ("customers", {"by": "day", "from": "2026-11-01"}, "to", "to is missing"),
    ("customers", {"by": "day", "from": "2026-11-01", "to": "tomorrow"}, "to", "'tomorrow'"),
    ("customers", {"by": "day", "from": "2026-11-02", "to": "2026-11-01"}, "to", "lies before"),
    ("customers", {"by": "day", "from": "2025-01-01", "to": "2026-11-01"}, "from", "at most 400 days"),
    ("customers", {"by": "day", "from": "2026-11-01", "to": "2026-11-01", "group": "NY"}, "group", "0 needed here"),
    ("customers", {"by": "day", "from": "2026-11-01", "to": "2026-11-01", "top": "1"}, "top", "top goes without"),
    ("customers", {"window": "0d"}, "window", "from 1d to 3660d"),
    ("customers", {"window": "3661d"}, "window", "from 1d to 3660d"),
    ("customers", {"window": "7"}, "window", "write today, or a number of days"),
    ("customers", {"window": "7d", "by": "state"}, "window", "window goes alone"),
    ("buyers", {"window": "7d"}, "window", "its declaration has no last_seen"),
    ("customers/groups", {}, "by", "say by what"),
    ("customers/groups", {"by": "state", "limit": "1001"}, "limit", "from 1 to 1000"),
    ("customers/groups", {"by": "state", "cursor": "!"}, "cursor", "none that was given"),
    ("customers/groups", {"by": "state", "cursor": "é"}, "cursor", "none that was given"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "parameters", "parameter", "words"), WRONG)
def test_a_wrong_question_is_refused_with_the_parameter_and_what_there_is(
    query: Query, world: World, path: str, parameters: dict[str, Any], parameter: str, words: str
) -> None:
    problem = refused(query, path, **parameters)
    assert (problem["status"], problem["type"]) == (400, "urn:rollcall:wrong-question")
    assert (problem["parameter"], words in problem["detail"]) == (parameter, True), problem["detail"]


@pytest.mark.parametrize(
    ("query_string", "words"),
    [
        ("by=state&by=day&group=x", "'by' is given 2 times"),
        ("by=state&country=DE", "unknown query parameter 'country'"),
        ("by=state&group=%ff", "not UTF-8"),
        ("by=state&" + "&".join("group=x" for _ in range(101)), "more than 100"),
    ],
)
def test_a_query_string_that_cannot_be_understood_is_refused(
    query: Query, world: World, query_string: str, words: str
) -> None:
    reply = query.get(f"/v1/counts/customers?{query_string}")
    assert (reply.status, reply.json["type"], words in reply.json["detail"]) == (
        400,
        "urn:rollcall:invalid-query",
        True,
    )


def test_of_two_days_that_are_declared_day_does_not_say_which(
    query: Query, rolls: Rolls, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = '[tables.t]\nname = "t"\nfields = {m = "text", a = "date", b = "date"}\n'
    lines = table + '[counters.c]\ntable = "t"\nmember = ["m"]\nby = '
    for by, problem in (('["day(a)", "day(b)"]', "'day' may be day(a) or day(b)"), ('["a"]', "not counted by 'day'")):
        monkeypatch.setattr(declarations, "COUNTERS", declarations.parse(lines + by)[1])
        assert problem in refused(query, "c", by="day", group=TODAY)["detail"]


def test_only_declared_counters_are_listed_and_named(query: Query, world: World) -> None:
    assert set(query.read("/v1/counts")["counters"]) == {"customers", "buyers", "shops"}
    reply = query.get(f"/v1/counts/{quote(BY_STATE)}")
    assert (reply.status, reply.json["detail"].endswith("there are: customers, buyers, shops")) == (404, True)
    assert query.get(f"/v1/counts/{quote(BY_STATE)}/member?email=ann").status == 404
    assert query.get(f"/v1/stream?counters={quote(BY_STATE)}").status == 404


class TestSharing:
    def test_who_asks_the_same_at_the_same_moment_shares_a_read(
        self, start_query: Callable[..., Query], world: World, redis: Redis
    ) -> None:
        query = start_query(refresh_seconds=30.0)
        world.record(BY_STATE, (("NY",), "ann"))
        ask(query, "customers", by="state", group="NY")  # so that the generation is known
        query.application.shared.keep_seconds = 0.0
        paths = [f"/v1/counts/customers?by=state&group={state}" for state in ("NY", "CA")]

        async def together(**headers: str) -> list[Reply]:
            asked = [query.request("GET", path, headers=headers) for path in paths for _ in range(25)]
            return await asyncio.gather(*asked)

        for headers in ({}, {"cache_control": "no-cache"}):
            redis.config_resetstat()
            assert sorted(reply.json["count"] for reply in query.run(together(**headers))) == [0] * 25 + [1] * 25
            assert redis.info("commandstats")["cmdstat_exec"]["calls"] <= 3
        assert query.application.shared.kept_bytes < 2_000

    def test_an_answer_is_kept_for_a_moment_and_P2_a_fresh_one_is_never_older_than_its_question(
        self, start_query: Callable[..., Query], world: World
    ) -> None:
        query = start_query(refresh_seconds=30.0)
        path = "/v1/counts/customers?by=state&group=NY"
        assert query.get(path).json["count"] == 0
        for n in range(5):
            world.record(BY_STATE, (("NY",), f"{n}"))
            assert query.get(path).json["count"] == n
            assert query.read(path)["count"] == n + 1

    def test_P2_a_fresh_question_never_shares_a_read_that_began_before_it(
        self, query: Query, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        has_read, may_end = asyncio.Event(), asyncio.Event()
        ask_redis = Trips.ask
        path, headers = "/v1/counts/customers?by=state&group=NY", {"cache_control": "no-cache"}
        assert query.read(path)["count"] == 0  # the generation is known: from now on this is one round trip

        async def read_and_wait(trips: Any, parts: Any, queue: Any) -> Any:
            replies = await ask_redis(trips, parts, queue)
            has_read.set()
            await may_end.wait()
            return replies

        async def scenario() -> list[Reply]:
            monkeypatch.setattr(Trips, "ask", read_and_wait)
            first = asyncio.create_task(query.request("GET", path, headers=headers))
            await has_read.wait()
            monkeypatch.setattr(Trips, "ask", ask_redis)
            world.record(BY_STATE, (("NY",), "counted now"))
            asked = [asyncio.create_task(query.request("GET", path, headers=headers)) for _ in range(5)]
            await asyncio.sleep(0)
            may_end.set()
            await first
            return await asyncio.gather(*asked)

        assert [reply.json["count"] for reply in query.run(scenario())] == [1] * 5

    def test_what_is_kept_is_bounded(self, query: Query, world: World) -> None:
        shared = query.application.shared
        shared.keep_seconds, shared._most_bytes = 60.0, 5_000
        for n in range(100):
            ask(query, "customers", by="state", group=f"{n}")
        assert 0 < shared.kept_bytes <= 5_000
        assert shared.kept_bytes == sum(len(each.given.answer.whole.body) for each in shared._kept.values())

    def test_an_unchanged_answer_is_a_304(self, query: Query, world: World) -> None:
        for path in ("?by=state&group=NY", "?by=state&top=3", "?window=7d", "/groups?by=state"):
            first = query.get(f"/v1/counts/customers{path}", cache_control="no-cache")
            assert (first.headers["cache-control"], first.headers["rollcall-state"]) == ("no-cache", "fresh")
            again = query.get(
                f"/v1/counts/customers{path}", if_none_match=first.headers["etag"], cache_control="no-cache"
            )
            assert (again.status, again.body) == (304, b"")
            head = query.run(query.request("HEAD", f"/v1/counts/customers{path}"))
            assert (head.status, head.body) == (200, b"")
        world.record("customers", ((TODAY,), "ann"))
        etag = first.headers["etag"]
        assert query.get("/v1/counts/customers?window=7d", if_none_match=etag, cache_control="no-cache").status == 200

    def test_without_redis_there_is_no_answer(
        self, start_query: Callable[..., Query], world: World, second_valkey: Callable[..., Any]
    ) -> None:
        valkey = second_valkey()
        query = start_query(valkey.url)
        valkey.stop()
        for path in ("?by=state&group=NY", "?by=state&top=3", "?window=7d", "/groups?by=state"):
            assert query.get(f"/v1/counts/customers{path}").json["type"] == "urn:rollcall:redis-unavailable"
        assert query.post("/v1/algebra", {"operation": "union", "sets": [{"counter": "buyers"}] * 2}).status == 503


def test_the_user_of_redis_that_query_has_may_read_what_it_needs_and_write_nothing(
    start_query: Callable[..., Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch)
    valkey = Valkey(
        servers_folder() / "locked", free_port(), locked=True, dies_with_parent=True, appendonly="no", save=""
    )
    start(valkey)
    with valkey.client() as client:
        world = World(Rolls(client))
        world.make_live()
        world.record("customers", ((TODAY,), "ann"))
        for name in (BY_STATE, "buyers:state"):
            world.record(name, ((":state",), "ann"), (("NY",), "ann"))
        steps.drop_groups(client, BY_STATE, [b"NY"], "token")
        query = start_query(valkey.url_of("query"))
        assert ask(query, "customers", by="state", group=":state")["count"] == 1
        assert ask(query, "customers", by="state", top=1)["top"] == [{"group": [":state"], "count": 1}]
        assert len(ask(query, "customers/groups", by="state")["groups"]) == 2
        assert ask(query, "customers", window="3660d")["count"] == 1
        assert ask(query, "customers", by="day", **{"from": TODAY, "to": TODAY})["sum_of_groups"] == 0
        assert query.get("/v1/counts/customers/member?email=ann").json == {"member": True}
        assert query.get("/v1/counts/customers/history").status == query.get("/v1/counts").status == 200
        group = {"counter": "buyers", "by": "state", "group": ["NY"]}
        assert compare(query, operation="intersection", sets=[group, group]).json["count"] == 1
        at = keys.of_counter(BY_STATE)
        with redis_of(valkey.url_of("query")) as user:
            for command in (
                ("SREM", world.set_of(BY_STATE, ":state"), "ann"),
                ("ZADD", at.names, 0, "x"),
                ("ZREM", at.members, "NY"),
                ("HDEL", at.broken, "NY"),
                ("HSET", keys.of_counter("customers").days, TODAY, 2),
                ("HGETALL", keys.of_counter("customers").members),
                ("SMEMBERS", world.set_of(BY_STATE, ":state")),
                ("HGET", at.suspects, "x"),
            ):
                with pytest.raises(NoPermissionError):
                    user.execute_command(*command)
    valkey.stop()


def test_the_description_has_what_the_declared_counters_can_be_asked(query: Query, world: World) -> None:
    document = query.get("/openapi.json").json
    described = query_parameters(document)
    assert described["GET /v1/counts/{counter}"] == ("by", "group", "window", "top", "from", "to")
    assert described["GET /v1/counts/{counter}/groups"] == ("by", "prefix", "limit", "cursor")
    shapes = document["paths"]["/v1/counts/{counter}"]["get"]["responses"]["200"]["content"]["application/json"][
        "schema"
    ]
    names = [each["$ref"].rpartition("/")[2] for each in shapes["oneOf"]]
    assert names == ["NamedCount", "OfAGroup", "TopGroups", "OfDays", "OfAWindow"]
    components = document["components"]
    day = {"from": TODAY, "to": TODAY}
    questions: tuple[dict[str, Any], ...] = (
        {},
        {"by": "state", "group": "NY"},
        {"by": "state", "top": 1},
        {"by": "day", **day},
        {"window": "7d"},
    )
    for name, asked in zip(names, questions, strict=True):
        schema = {**components["schemas"][name], "components": components}
        Draft202012Validator(schema).validate(ask(query, "customers", **asked))
    schema = {**components["schemas"]["Groups"], "components": components}
    Draft202012Validator(schema).validate(ask(query, "customers/groups", by="state"))
    body = document["paths"]["/v1/algebra"]["post"]["requestBody"]["content"]["application/json"]["example"]
    reply = compare(query, **body)
    Draft202012Validator({**components["schemas"]["OfSets"], "components": components}).validate(reply.json)


def test_the_example_of_sets_is_one_that_there_is(query: Query, rolls: Rolls, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = '{m = "text", d = "date", n = "integer", b = "boolean", u = "uuid", e = "enum"}'
    lines = f'[tables.t]\nname = "t"\nfields = {fields}\n[counters.c]\ntable = "t"\nmember = ["m"]\nlast_seen = "d"\n'
    for by in ([], ["e"], [["n", "b"]], [["u", "week(d)"]], ["month(d)"], ["d"]):
        counters = declarations.parse(f"{lines}by = {json.dumps(by)}")[1]
        monkeypatch.setattr(declarations, "COUNTERS", counters)
        for counter in (counters[0], *counters[0].groupings):
            rolls.make_live(counter.name, [])
        paths = query.get("/openapi.json").json["paths"]
        assert ("/v1/algebra" in paths) is bool(by)
        if by:
            body = paths["/v1/algebra"]["post"]["requestBody"]["content"]["application/json"]["example"]
            assert compare(query, **body).json["count"] == 0


def test_the_metrics_say_how_questions_were_answered(query: Query, world: World) -> None:
    ask(query, "customers", by="state", group="NY")
    text = query.get("/metrics").body.decode()
    assert 'rollcall_query_questions_total{answer="read",kind="group"}' in text
    assert 'rollcall_query_question_seconds_count{kind="group"}' in text


class TestBadges:
    def test_a_count_is_a_picture_and_a_page_for_a_frame(self, start_query: Callable[..., Query], world: World) -> None:
        query = start_query(badges=1)
        world.record("customers", *(((TODAY,), f"{n}") for n in range(1234)))
        world.record(BY_STATE, (("<&>\x01" + "x" * 100,), "ann"))
        name = quote("<&>\x01" + "x" * 100)
        for path, shown in (
            ("customers", "customers: 1,234"),
            ("customers?window=7d", "customers in 7 days: 1,234"),
            (f"customers?by=state&group={name}", "customers (&lt;&amp;&gt;�" + "x" * 36 + "…): 1"),
        ):
            counter, _, asked = path.partition("?")
            picture = query.get(f"/v1/badge/{counter}.svg?{asked}")
            assert (picture.status, picture.headers["content-type"]) == (200, "image/svg+xml")
            assert f"<title>{shown}</title>" in picture.body.decode()
            again = query.get(f"/v1/badge/{counter}.svg?{asked}", if_none_match=picture.headers["etag"])
            assert again.status == 304
            frame = query.get(f"/embed/{path}")
            assert (frame.status, len(frame.body) < 700) == (200, True)
            assert f"<b>{shown.rpartition(': ')[2]}</b>" in frame.body.decode()
            assert "frame-ancestors *" in frame.headers["content-security-policy"]
            assert "x-frame-options" not in frame.headers

    def test_a_count_that_is_not_known_is_shown_as_such(
        self, start_query: Callable[..., Query], world: World, redis: Redis
    ) -> None:
        query = start_query(badges=1)
        redis.delete(keys.of_counter("customers").state)
        for path in ("/v1/badge/customers.svg", "/v1/badge/customers.svg?window=7d", "/embed/customers"):
            reply = query.get(path)
            assert (reply.status, b"not known now" in reply.body) == (503, True)
        assert query.get("/v1/badge/nobody.svg").status == 404
        assert query.get("/v1/badge/customers.svg?by=state&top=3").json["parameter"] == "by"

    def test_without_the_setting_there_are_none(self, query: Query, world: World) -> None:
        assert query.get("/v1/badge/customers.svg").status == query.get("/embed/customers").status == 404


def test_the_limit_of_periods_is_one_that_is_taken(query: Query, world: World) -> None:
    last = date(2026, 1, 1) + timedelta(days=MOST_PERIODS - 1)
    said = ask(query, "customers", by="day", **{"from": "2026-01-01", "to": str(last)})
    assert len(said["groups"]) == MOST_PERIODS
