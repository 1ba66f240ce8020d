"""The standing answers: what they contain, and what they never contain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from query_service import counts as counts_module
from query_service.reads import Reading, read_counters
from query_service.trips import Trips
from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.protocol import keys, steps
from tests.described import query_parameters, refuses
from tests.query.driving import Query, Reply
from tests.query.rolls_in_redis import THROUGH, Rolls

VERIFIED = datetime(2026, 11, 23, 11, 58, tzinfo=UTC)


def test_a_live_counter_says_its_count_and_how_good_it_is(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()
    rolls.verify("users", VERIFIED, missing=1, extra=2)
    asked_at = datetime.now(UTC)

    reply = query.get("/v1/counts")

    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    as_of = datetime.fromisoformat(reply.json["as_of"])
    assert asked_at <= as_of <= datetime.now(UTC)
    assert reply.json["as_of"].endswith("Z")
    assert reply.json["counters"] == {
        "cities": {
            "count": 3,
            "state": "live",
            "complete_through": "2026-11-23T12:00:01.200000Z",
            "verified_at": None,
            "drift": None,
            "repaired": False,
        },
        "users": {
            "count": 2,
            "state": "live",
            "complete_through": "2026-11-23T12:00:01.200000Z",
            "verified_at": "2026-11-23T11:58:00Z",
            "drift": {"missing": 1, "extra": 2},
            "repaired": True,
        },
    }


def test_P7_every_number_says_how_good_it_is(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()
    before = query.read("/v1/counts/users")
    assert (before["verified_at"], before["drift"]) == (None, None)

    rolls.advance("users", THROUGH + timedelta(seconds=1))
    rolls.verify("users", VERIFIED)

    after = query.read("/v1/counts/users")
    assert (after["state"], after["complete_through"]) == ("live", "2026-11-23T12:00:02.200000Z")
    assert (after["verified_at"], after["drift"]) == ("2026-11-23T11:58:00Z", {"missing": 0, "extra": 0})
    assert after["as_of"] > before["as_of"]


def test_one_counter_stands_by_itself_too(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()
    document = query.get("/v1/counts/users").json
    assert next(iter(document)) == "counter"
    assert (document["counter"], document["count"]) == ("users", 2)
    assert set(document) == {
        "counter",
        "count",
        "state",
        "complete_through",
        "verified_at",
        "drift",
        "repaired",
        "as_of",
    }


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "read"])
@pytest.mark.parametrize(
    ("path", "takes"),
    [
        ("/v1/counts", "counters"),
        ("/v1/counts/users", "by and group and top and from and to and window"),
        ("/v1/counts/users/history", "no query parameters"),
        ("/v1/stream", "counters and ticket"),
        ("/stats/get/", "no query parameters"),
    ],
)
def test_a_question_with_a_parameter_that_is_not_known_is_not_answered_as_if_it_were_not_there(
    query: Query, rolls: Rolls, path: str, takes: str, bare: bool
) -> None:
    rolls.make_all_live()
    if not bare:
        query.read("/v1/counts")
    for method in ("GET",) if path.endswith(("history", "stream")) else ("GET", "HEAD"):
        for sent in ("country=DE", "country=DE&country=FR", "country"):
            reply = query.run(query.request(method, f"{path}?{sent}"))
            assert (reply.status, reply.headers["content-type"]) == (400, "application/problem+json")
            detail = f"unknown query parameter 'country'; this endpoint takes {takes}"
            assert method == "HEAD" or reply.json["detail"] == detail
    assert path == "/v1/stream" or query.get(f"{path}?&").status == 200


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "read"])
def test_some_counters_may_be_asked_for(query: Query, rolls: Rolls, bare: bool) -> None:
    rolls.make_live("users", [b"ann"])
    if not bare:
        query.read("/v1/counts")
    only = query.get("/v1/counts?counters=users")
    assert (only.status, list(only.json["counters"])) == (200, ["users"])
    assert query.get("/v1/counts?counters=users", if_none_match=only.headers["etag"]).status == 304
    assert list(query.get("/v1/counts?counters=cities,users,cities").json["counters"]) == ["cities", "users"]
    cold = query.get("/v1/counts?counters=cities")
    assert (cold.status, cold.json["type"]) == (503, "urn:rollcall:counter-cold")
    unknown = query.get("/v1/counts?counters=users,nobody")
    assert (unknown.status, unknown.json["type"]) == (404, "urn:rollcall:unknown-counter")
    assert "users" in unknown.json["detail"]
    assert query.get("/v1/counts?counters=").status == 404
    assert query.get("/v1/counts?counters=users&counters=cities").status == 400
    rolls.record("users", b"bob")
    assert query.get("/v1/counts?counters=users", cache_control="no-cache").json["counters"]["users"]["count"] == 2


def test_a_question_about_many_takes_no_query_parameters(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()
    reply = query.post("/v1/counts/users/members?username=ann", {"members": []})
    assert (reply.status, reply.json["type"]) == (400, "urn:rollcall:invalid-query")


def test_the_query_parameters_that_are_described_are_taken(query: Query) -> None:
    document = query.get("/openapi.json").json
    described = query_parameters(document)
    fields = tuple(dict.fromkeys(field for counter in declarations.COUNTERS for field in counter.fields))
    assert described.pop("GET /v1/counts/{counter}/member") == fields
    assert {name: known for name, known in described.items() if known} == {
        "GET /v1/counts": ("counters",),
        "GET /v1/stream": ("counters", "ticket"),
    }
    assert refuses(document, "400")


def test_a_counter_with_no_members_is_live_and_zero(query: Query, rolls: Rolls) -> None:
    rolls.make_live("users", [])
    document = query.get("/v1/counts/users").json
    assert (document["count"], document["state"]) == (0, "live")


def test_the_flat_counts_of_the_first_demo(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live(cities=5, users=7)
    assert query.get("/stats/get/").json == {"result": "success", "cities": 5, "users": 7}


class TestCold:
    def test_P4_never_a_partial_count_while_a_counter_is_being_built(self, query: Query, rolls: Rolls) -> None:
        rolls.make_live("cities", [b'["NY","New York"]'])
        rolls.begin_fill("users", expected=4000)
        rolls.fill("users", [b"user-%04d" % i for i in range(1500)])

        for path in ("/v1/counts/users", "/stats/get/"):
            for ask in (query.get, lambda path: query.get(path, cache_control="no-cache")):
                reply = ask(path)
                assert reply.status == 503
                assert int(reply.headers["retry-after"]) > 0
                assert "count" not in reply.json
        one = query.get("/v1/counts/users")
        assert one.headers["content-type"] == "application/problem+json"
        assert one.json["type"] == "urn:rollcall:counter-cold"
        assert one.json["progress"] == {"read": 1500, "expected": 4000}
        assert query.get("/stats/get/").json["result"] == "error"

        both = query.get("/v1/counts")
        assert both.status == 200
        assert both.json["counters"]["cities"]["count"] == 1
        assert both.json["counters"]["users"] == {
            "count": None,
            "state": "cold",
            "reason": "the keeper is building it",
            "complete_through": None,
            "verified_at": None,
            "drift": None,
            "progress": {"read": 1500, "expected": 4000},
        }

    def test_P4_never_a_partial_count_when_a_counter_was_lost(self, query: Query, rolls: Rolls) -> None:
        rolls.make_all_live()
        assert query.read("/v1/counts/users")["count"] == 2
        rolls.lose("users")
        rolls.record("users", b"the first one since")

        reply = query.get("/v1/counts/users", cache_control="no-cache")
        assert (reply.status, "count" in reply.json, "progress" in reply.json) == (503, False, False)

    def test_P4_never_a_partial_count_of_an_empty_redis(self, query: Query) -> None:
        reply = query.get("/v1/counts")
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) > 0
        assert reply.json["type"] == "urn:rollcall:counter-cold"
        assert {c["state"] for c in reply.json["counters"].values()} == {"cold"}
        assert {c["count"] for c in reply.json["counters"].values()} == {None}

    def test_a_build_that_ends_is_seen_whole(self, query: Query, rolls: Rolls, redis: Redis) -> None:
        rolls.begin_fill("users", expected=3)
        position = rolls.fill("users", [b"a", b"b", b"c"])
        assert query.get("/v1/counts/users", cache_control="no-cache").status == 503
        assert promote(redis, "users", position)
        assert query.read("/v1/counts/users")["count"] == 3

    def test_keys_of_another_layout_are_not_counted(
        self, query: Query, rolls: Rolls, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keys, "PREFIX", "rollcall:0:")
        monkeypatch.setattr(keys, "_keys", {})  # made again
        monkeypatch.setattr(keys, "_declared", ())
        rolls.make_all_live()
        monkeypatch.undo()
        assert query.get("/v1/counts").json["type"] == "urn:rollcall:counter-cold"


def promote(client: Redis, name: str, position: bytes) -> bool:
    return steps.promote(client, name, "fill-1", position)


class TestReadingAnew:
    def test_P2_counted_means_counted_in_the_next_count_read_from_redis(self, query: Query, rolls: Rolls) -> None:
        rolls.make_all_live(users=2)
        for n in range(20):
            rolls.record("users", b"new-%d" % n)
            assert query.read("/v1/counts/users")["count"] == 3 + n
            assert query.read("/v1/counts")["counters"]["users"]["count"] == 3 + n
            assert query.read("/stats/get/")["users"] == 3 + n

    def test_P2_a_request_never_shares_a_read_that_began_before_it(
        self, query: Query, rolls: Rolls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rolls.make_all_live(users=2)
        has_read, may_end = asyncio.Event(), asyncio.Event()

        async def read_and_wait(trips: Trips, counters: Sequence[Counter]) -> Reading:
            reading = await read_counters(trips, counters)
            has_read.set()
            await may_end.wait()
            return reading

        async def scenario() -> list[Reply]:
            await query.counts.read_anew()
            monkeypatch.setattr(counts_module, "read_counters", read_and_wait)
            first = asyncio.create_task(query.counts.read_anew())
            await has_read.wait()  # that read has the count of before
            rolls.record("users", b"counted now")
            headers = {"cache_control": "no-cache"}
            asked = [asyncio.create_task(query.request("GET", "/v1/counts/users", headers=headers)) for _ in range(5)]
            await asyncio.sleep(0)
            may_end.set()
            await first
            return await asyncio.gather(*asked)

        assert [reply.json["count"] for reply in query.run(scenario())] == [3] * 5

    def test_requests_that_wait_together_share_one_read(
        self, start_query: Callable[..., Query], rolls: Rolls, redis: Redis
    ) -> None:
        rolls.make_all_live()
        query = start_query(refresh_seconds=30.0)  # no read but those that are asked for, however long this takes

        async def scenario() -> None:
            await asyncio.gather(
                *(query.request("GET", "/v1/counts", headers={"cache_control": "no-cache"}) for _ in range(50))
            )

        redis.config_resetstat()
        query.run(scenario())
        assert redis.info("commandstats")["cmdstat_exec"]["calls"] <= 3

    def test_a_standing_answer_asks_nothing_of_redis(
        self, start_query: Callable[..., Query], rolls: Rolls, redis: Redis
    ) -> None:
        rolls.make_all_live()
        query = start_query(refresh_seconds=30.0)
        query.get("/v1/counts")
        redis.config_resetstat()
        for _ in range(100):
            assert query.get("/v1/counts").status == 200
        assert "cmdstat_exec" not in redis.info("commandstats")


class TestHTTP:
    def test_an_unchanged_answer_is_a_304(self, query: Query, rolls: Rolls) -> None:
        rolls.make_all_live()
        query.get("/v1/counts")  # the first reads, the others find the answer made
        for path in ("/v1/counts", "/v1/counts/users", "/stats/get/"):
            first = query.get(path)
            assert first.headers["cache-control"] == "no-cache"
            etag = first.headers["etag"]
            for known in (etag, f'"other", {etag}', etag.removeprefix("W/"), "*"):
                again = query.get(path, if_none_match=known)
                assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
            assert query.get(path, if_none_match='"other"').status == 200
        etag = query.get("/v1/counts/users").headers["etag"]
        rolls.record("users", b"one more")
        assert query.get("/v1/counts/users", if_none_match=etag, cache_control="no-cache").status == 200

    def test_the_first_request_is_answered_like_the_others(
        self, start_query: Callable[..., Query], rolls: Rolls
    ) -> None:
        rolls.make_all_live()
        etag = start_query().get("/v1/counts").headers["etag"]
        reply = start_query().get("/v1/counts", if_none_match=etag)
        assert (reply.status, reply.body) == (304, b"")
        query = start_query()
        first, second = query.get("/v1/counts/users"), query.get("/v1/counts/users")
        for name in ("content-type", "content-length", "cache-control", "etag", "rollcall-state"):
            assert first.headers[name] == second.headers[name]

    def test_head_is_get_without_the_body(self, query: Query, rolls: Rolls) -> None:
        rolls.make_all_live()
        for _ in range(2):  # read for it, and made before
            for path in ("/v1/counts", "/v1/counts/users", "/stats/get/"):
                head = query.run(query.request("HEAD", path))
                got = query.get(path)
                assert (head.status, head.headers["content-length"]) == (200, got.headers["content-length"])
                assert head.headers["etag"] == got.headers["etag"]
                if query.counts.answers:
                    assert query.run(query.request("HEAD", path)).body == b""

    def test_an_unknown_counter_is_told_which_there_are(self, query: Query) -> None:
        reply = query.get("/v1/counts/nobody")
        assert reply.status == 404
        assert reply.json["type"] == "urn:rollcall:unknown-counter"
        assert "cities, users" in reply.json["detail"]

    def test_another_host_is_refused_everywhere(self, query: Query, rolls: Rolls) -> None:
        rolls.make_all_live()
        assert query.get("/v1/counts").status == 200
        for path in ("/v1/counts", "/v1/stream", "/"):
            reply = query.get(path, host="evil.example")
            assert (reply.status, reply.headers["content-type"]) == (400, "application/problem+json")

    def test_another_method_is_refused(self, query: Query, rolls: Rolls) -> None:
        reply = query.post("/v1/counts", {})
        assert reply.status == 405
        assert "GET" in reply.headers["allow"]


def test_a_counter_that_is_declared_is_offered(query: Query, rolls: Rolls, monkeypatch: pytest.MonkeyPatch) -> None:
    rolls.make_all_live()
    added = (*declarations.COUNTERS, Counter("states", declarations.TABLES[0], ("state",)))
    monkeypatch.setattr(declarations, "COUNTERS", added)
    assert query.get("/v1/counts/states").json["type"] == "urn:rollcall:counter-cold"
    rolls.make_live("states", [b"NY", b"CA"])
    assert query.read("/v1/counts/states")["count"] == 2
    assert query.read("/v1/counts")["counters"]["states"]["count"] == 2
    assert query.read("/stats/get/") == {"result": "success", "cities": 3, "users": 2, "states": 2}
    assert query.get("/v1/counts/states/member?state=NY").json == {"member": True}
