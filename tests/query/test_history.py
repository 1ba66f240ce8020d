"""The last hour of a counter: over the API, and as the line on the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from redis import Redis

from compose.local.servers import Valkey
from query_service.site import charts
from shared_models.protocol import keys
from shared_models.protocol.moments import to_microseconds
from shared_models.protocol.samples import HOUR, MOST, SAMPLE_SECONDS, Sample
from tests.query.driving import Query
from tests.query.rolls_in_redis import Rolls

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def before(moment: datetime, seconds: float, count: int) -> Sample:
    return Sample(moment - timedelta(seconds=seconds), count)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=250_000) - timedelta(seconds=1)


class TestTheApi:
    def test_gives_the_samples_of_the_last_hour_in_order(self, query: Query, rolls: Rolls) -> None:
        at = now()
        late, early, long_ago = at, at - timedelta(seconds=20), at - HOUR - timedelta(seconds=5)
        ahead = at + timedelta(hours=1)  # a keeper whose clock was wrong
        rolls.note("users", (late, 7), (early, 5), (long_ago, 1), (ahead, 9))
        reply = query.get("/v1/counts/users/history")
        assert reply.json == {"counter": "users", "samples": [[early.timestamp(), 5], [late.timestamp(), 7]]}
        assert reply.headers["cache-control"] == "no-store"

    def test_gives_what_there_is_also_while_the_counter_is_cold(self, query: Query, rolls: Rolls) -> None:
        assert query.get("/v1/counts/users/history").json["samples"] == []
        rolls.note("users", (now(), 7))
        assert len(query.get("/v1/counts/users/history").json["samples"]) == 1

    def test_knows_the_declared_counters_only(self, query: Query, rolls: Rolls) -> None:
        assert query.get("/v1/counts/nobody/history").json["type"] == "urn:rollcall:unknown-counter"

    def test_says_when_redis_cannot_be_read(
        self, start_query: Callable[..., Query], second_valkey: Callable[..., Valkey]
    ) -> None:
        valkey = second_valkey()
        query = start_query(valkey.url)
        valkey.stop()
        assert query.get("/v1/counts/users/history").json["type"] == "urn:rollcall:redis-unavailable"


def test_no_more_than_an_hour_is_kept(rolls: Rolls, redis: Redis) -> None:
    start = now()
    rolls.note("users", *((start + timedelta(seconds=SAMPLE_SECONDS * n), n) for n in range(MOST + 5)))
    at = keys.of_counter("users").samples
    assert (redis.llen(at), MOST) == (360, 360)
    assert redis.lrange(at, 0, 0) == [f"{to_microseconds(start + timedelta(seconds=SAMPLE_SECONDS * 5))} 5".encode()]
    assert (redis.memory_usage(at) or 0) < 20_000


class TestTheLine:
    def test_goes_from_the_lowest_to_the_highest(self) -> None:
        chart = charts.draw([before(NOON, 20, 100), before(NOON, 10, 150), before(NOON, 0, 200)], NOON)
        assert chart == charts.Chart("M716 116h0L718 60L720 4", 100, 200)

    def test_has_a_gap_where_nothing_is_known(self) -> None:
        chart = charts.draw([before(NOON, 3600, 1), before(NOON, 3590, 1), before(NOON, 1800, 1)], NOON)
        assert chart and chart.path == "M0 60h0L2 60M360 60h0"

    def test_is_not_there_without_samples(self) -> None:
        assert charts.draw([], NOON) is None

    def test_ends_on_the_page_with_the_count_of_now(self, query: Query, rolls: Rolls) -> None:
        rolls.make_all_live(cities=3, users=2)
        rolls.note("cities", (now() - timedelta(seconds=10), 1), (now(), 2))
        cities, users = re.findall(
            r'aria-label="The last hour: ([^"]+)".*?<path d="([^"]+)"', query.get("/").body.decode()
        )
        assert cities[0] == "between 1 and 3"
        assert cities[1].endswith("L720 4")
        assert users == ("2 all the time", "M720 60h0")

    def test_ends_where_the_counter_is_cold(self, query: Query, rolls: Rolls) -> None:
        rolls.note("users", (now() - timedelta(seconds=1200), 7))
        page = query.get("/").body.decode()
        assert re.search(r'<path d="M48\d 60h0"', page)
        assert "The last hour: 7 all the time" in page
