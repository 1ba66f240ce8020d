"""The reading of the counts: it runs while clients ask, and says so if Redis cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic

import pytest
from redis import Redis

from compose.local.servers import Valkey
from query_service.answers import Condition
from shared_models.protocol import keys
from tests.query.driving import Query, eventually
from tests.query.rolls_in_redis import Rolls


def test_what_is_asked_for_is_kept_true(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live(users=2)
    query.get("/v1/counts")
    rolls.record("users", b"somebody else")

    async def scenario() -> None:
        await eventually(
            lambda: query.counts.answers["/v1/counts/users"].whole.body.startswith(b'{"counter":"users","count":3,'),
            "the standing answer to follow Redis",
        )

    query.run(scenario())


def test_nothing_is_read_when_nobody_asks_and_the_next_request_reads(
    start_query: Callable[..., Query], rolls: Rolls
) -> None:
    rolls.make_all_live(users=2)
    query = start_query(idle_seconds=0.1)
    assert query.get("/v1/counts/users").json["count"] == 2

    async def until_bare() -> None:
        await eventually(lambda: not query.counts.answers, "the answers to be forgotten")

    query.run(until_bare())
    rolls.record("users", b"while nobody asked")
    assert query.get("/v1/counts/users").json["count"] == 3


def test_a_connection_that_was_closed_while_nobody_asked_is_no_failure(
    start_query: Callable[..., Query], rolls: Rolls, redis: Redis
) -> None:
    rolls.make_all_live(users=2)
    query = start_query(idle_seconds=0.05)
    query.get("/v1/counts")

    async def until_bare() -> None:
        await eventually(lambda: not query.counts.answers, "the answers to be forgotten")

    query.run(until_bare())
    redis.client_kill_filter(_type="normal", skipme=True)
    reply = query.get("/v1/counts/users")
    assert (reply.status, reply.json["state"]) == (200, "live")


def test_all_counters_are_read_in_one_transaction(
    start_query: Callable[..., Query], rolls: Rolls, redis: Redis
) -> None:
    rolls.make_all_live(cities=3, users=2)
    query = start_query(refresh_seconds=60.0)

    async def scenario() -> None:
        await asyncio.gather(*(query.counts.read_anew() for _ in range(10)))

    before = redis.info("commandstats")["cmdstat_exec"]["calls"] if "cmdstat_exec" in redis.info("commandstats") else 0
    query.run(scenario())
    assert redis.info("commandstats")["cmdstat_exec"]["calls"] == before + 1
    assert query.counts.reading is not None
    assert {name: state.count for name, state in query.counts.reading.states.items()} == {"cities": 3, "users": 2}


class TestRedisAway:
    def test_the_last_answer_is_given_marked_as_stale(
        self, start_query: Callable[..., Query], second_valkey: Callable[..., Valkey]
    ) -> None:
        valkey = second_valkey()
        with valkey.client() as client:
            Rolls(client).make_all_live(users=2)
        query = start_query(valkey.url)
        live = query.read("/v1/counts/users")
        valkey.stop()
        stopped_at = datetime.now(UTC)

        for _ in range(3):
            reply = query.get("/v1/counts/users", cache_control="no-cache")
            assert (reply.status, reply.headers["rollcall-state"]) == (200, "stale")
            assert (reply.json["state"], reply.json["count"]) == ("stale", 2)
            assert live["as_of"] <= reply.json["as_of"] <= stopped_at.isoformat()
        frozen = query.get("/v1/counts").json["as_of"]
        assert query.get("/v1/counts", cache_control="no-cache").json["as_of"] == frozen
        assert query.get("/stats/get/").headers["rollcall-state"] == "stale"
        assert query.get("/v1/counts/users/member?username=user-1").json["type"] == "urn:rollcall:redis-unavailable"

    def test_after_a_while_there_is_no_answer_and_soon_after_redis_is_back_there_is_one(
        self, start_query: Callable[..., Query], second_valkey: Callable[..., Valkey]
    ) -> None:
        valkey = second_valkey(save="", appendonly="yes", appendfsync="always")
        with valkey.client() as client:
            Rolls(client).make_all_live(users=2)
        query = start_query(valkey.url, stale_seconds=0.2)
        query.get("/v1/counts")
        valkey.stop()

        async def until(condition: Condition, seconds: float) -> None:
            await eventually(lambda: query.counts.condition is condition, condition.value, seconds)

        query.run(until(Condition.LOST, 5.0))
        for path in ("/v1/counts", "/v1/counts/users"):
            reply = query.get(path)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert reply.json["type"] == "urn:rollcall:redis-unavailable"
        reply = query.get("/stats/get/")
        assert (reply.status, reply.json["result"], reply.headers["retry-after"]) == (503, "error", "1")

        valkey.start()
        query.run(until(Condition.FRESH, 10.0))
        assert query.get("/v1/counts/users").json["count"] == 2

    def test_a_redis_that_hangs_is_given_up_soon(
        self, start_query: Callable[..., Query], second_valkey: Callable[..., Valkey]
    ) -> None:
        valkey = second_valkey()
        with valkey.client() as client:
            Rolls(client).make_all_live()
        query = start_query(valkey.url, stale_seconds=0.1)
        query.get("/v1/counts")
        process = valkey.running()
        assert process is not None
        process.suspend()
        try:
            began = monotonic()
            assert query.get("/v1/counts", cache_control="no-cache").status == 503
            assert query.get("/v1/counts/users/member?username=ann").status == 503
            assert monotonic() - began < 10
        finally:
            process.resume()

    @pytest.mark.parametrize("part", ["members", "intake", "state", "fill"])
    def test_a_key_of_another_type_is_no_count_of_this_counter(
        self, query: Query, rolls: Rolls, redis: Redis, part: str
    ) -> None:
        rolls.make_all_live()
        redis.delete(getattr(keys.of_counter("users"), part))
        redis.set(getattr(keys.of_counter("users"), part), "what is this?")
        refused = query.get("/v1/counts/users")
        assert refused.status == 503 and "has a wrong type" in refused.json["detail"]
        assert query.get("/v1/counts/users/member?username=user-1").status == 503
        assert query.get("/v1/counts/cities").json["count"] == 3

    @pytest.mark.parametrize(
        ("part", "field", "value"),
        [
            ("state", "cursor", "soon"),
            ("state", "cursor", "9" * 25),
            ("state", "cursor", "-1"),
            ("state", "build", "another"),
            ("intake", "build", "another"),
            ("intake", "size", "many"),
            ("intake", "size", "9" * 25),
            ("intake", "size", "1"),
        ],
    )
    def test_a_field_that_cannot_be_is_no_count_of_this_counter(
        self, query: Query, rolls: Rolls, redis: Redis, part: str, field: str, value: str
    ) -> None:
        rolls.make_all_live()
        redis.hset(getattr(keys.of_counter("users"), part), field, value)
        assert query.get("/v1/counts/users").json["type"] == "urn:rollcall:counter-cold"
        assert query.get("/v1/counts/cities").json["count"] == 3

    @pytest.mark.parametrize(
        "value", ["250246368000000000", "9" * 25, "yesterday"], ids=["year 9900", "25 digits", "text"]
    )
    def test_a_moment_that_cannot_be_is_not_known(self, query: Query, rolls: Rolls, redis: Redis, value: str) -> None:
        rolls.make_all_live()
        redis.hset(keys.of_counter("users").state, "verified_at", value)
        found = query.get("/v1/counts/users").json
        assert (found["state"], found["count"], found["verified_at"]) == ("live", 2, None)
        # A count that does not say how complete it is, is not given (P7).
        redis.hset(keys.of_counter("users").state, "complete_through", value)
        found = query.get("/v1/counts/users", cache_control="no-cache")
        assert found.status == 503 and "complete_through is missing or impossible" in found.json["detail"]


class TestSetsChangedByHand:
    """The keeper is away, as it is in all these tests: nobody settles anything."""

    def test_P4_a_set_that_was_deleted_is_not_zero_and_not_what_came_since(
        self, query: Query, rolls: Rolls, redis: Redis
    ) -> None:
        rolls.make_all_live()
        redis.delete(keys.of_counter("users").members)
        for newcomer in (None, b"ann", b"bob"):
            if newcomer:
                rolls.record("users", newcomer)
            found = query.get("/v1/counts/users")
            assert found.status == 503 and "something other than Rollcall has changed it" in found.json["detail"]
        counts = query.get("/v1/counts").json["counters"]
        assert counts["users"]["count"] is None and counts["users"]["state"] == "cold"
        assert counts["users"]["reason"] and counts["cities"]["count"] == 3

    @pytest.mark.parametrize("command", ["sadd", "srem"])
    def test_a_member_added_or_removed_by_hand_is_noticed_by_the_next_read(
        self, query: Query, rolls: Rolls, redis: Redis, command: str
    ) -> None:
        rolls.make_all_live()
        member = {"sadd": "nobody", "srem": "user-1"}[command]
        getattr(redis, command)(keys.of_counter("users").members, member)
        assert query.get("/v1/counts/users").status == 503
        assert query.get(f"/v1/counts/users/member?username={member}").status == 503

    def test_an_empty_counter_is_live_without_a_set(self, query: Query, rolls: Rolls, redis: Redis) -> None:
        rolls.make_live("users", [])
        assert not redis.exists(keys.of_counter("users").members)
        assert query.get("/v1/counts/users").json["count"] == 0
        rolls.record("users", b"ann")
        assert query.get("/v1/counts/users", cache_control="no-cache").json["count"] == 1
