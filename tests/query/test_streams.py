"""/v1/stream: everybody gets every change, nobody makes the others wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from time import monotonic
from typing import Any

from compose.local.servers import Valkey
from query_service.streams import RETRY_FROM, RETRY_TO
from shared_models.protocol.members import encode
from tests.query.driving import Query, eventually, make_scope
from tests.query.rolls_in_redis import THROUGH, Rolls


def test_a_stream_begins_with_the_counts_and_goes_on_with_every_change(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live(users=2)

    async def scenario() -> None:
        stream = await query.listen()
        retry = await stream.next()
        assert retry is not None and retry.retry == "1000"
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-accel-buffering"] == "no"
        first = await stream.next()
        # No name: a browser's `onmessage` gets it.
        assert first is not None and (first.name, int(first.id) > 0) == ("", True)
        assert first.data["counters"]["users"]["count"] == 2
        assert set(first.data) == {"counters", "as_of"}

        rolls.record("users", b"one more")
        assert (await stream.next_counts())["counters"]["users"]["count"] == 3
        rolls.verify("users", THROUGH)
        assert (await stream.next_counts())["counters"]["users"]["verified_at"] == "2026-11-23T12:00:01.200000Z"
        await stream.hang_up()

    query.run(scenario())


def test_a_counter_that_is_complete_through_a_later_moment_is_no_news_before_the_heartbeat(
    start_query: Callable[..., Query], rolls: Rolls
) -> None:
    """Of an idle table every pulse moves `complete_through`: forty counters would send kilobytes a second."""
    rolls.make_all_live(users=2)
    query = start_query(heartbeat_seconds=0.5)

    async def scenario() -> None:
        stream = await query.listen()
        await stream.next_counts()
        tag = (await query.request("GET", "/v1/counts")).headers["etag"]
        rolls.advance("users", THROUGH + timedelta(seconds=1))
        await query.counts.read_anew()
        later = await query.request("GET", "/v1/counts", headers={"if_none_match": tag})
        assert later.status == 304
        began = monotonic()
        said = await stream.next()  # a beat that was due before says it, or the next one
        assert said is not None and said.data["counters"]["users"]["complete_through"] == "2026-11-23T12:00:02.200000Z"
        nothing = await stream.next()
        assert nothing is not None and nothing.is_comment
        assert monotonic() - began >= 0.5  # from beat to beat
        await stream.hang_up()

    query.run(scenario())


def test_a_listener_may_choose_its_counters(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live(users=2)

    async def scenario() -> None:
        stream, other = await query.listen("?counters=users"), await query.listen("?counters=cities,users")
        assert list((await stream.next_counts())["counters"]) == ["users"]
        assert list((await other.next_counts())["counters"]) == ["cities", "users"]
        rolls.record("cities", encode(("NY", "Ithaca")))
        assert (await other.next_counts())["counters"]["cities"]["count"] == 4
        assert stream.sent.empty()
        rolls.record("users", b"one more")
        assert (await stream.next_counts())["counters"]["users"]["count"] == 3
        await stream.hang_up()
        await other.hang_up()

    query.run(scenario())
    unknown = query.get("/v1/stream?counters=nobody")
    assert (unknown.status, unknown.json["type"]) == (404, "urn:rollcall:unknown-counter")


def test_a_cold_counter_is_said_to_be_cold(query: Query, rolls: Rolls) -> None:
    rolls.begin_fill("users", expected=10)

    async def scenario() -> None:
        stream = await query.listen()
        users = (await stream.next_counts())["counters"]["users"]
        assert (users["state"], users["count"], users["progress"]) == ("cold", None, {"read": 0, "expected": 10})
        rolls.fill("users", [b"a", b"b"])
        users = (await stream.next_counts())["counters"]["users"]
        assert (users["count"], users["progress"]) == (None, {"read": 2, "expected": 10})
        await stream.hang_up()

    query.run(scenario())


def test_streams_say_when_the_counts_are_stale_and_when_they_live_again(
    start_query: Callable[..., Query], second_valkey: Callable[..., Valkey]
) -> None:
    valkey = second_valkey(save="", appendonly="yes", appendfsync="always")
    with valkey.client() as client:
        Rolls(client).make_all_live(users=2)
    query = start_query(valkey.url, stale_seconds=1.5)  # long enough for a busy machine to say "stale" before "lost"

    async def scenario() -> None:
        stream = await query.listen()
        live = await stream.next_counts()
        valkey.stop()
        stale = await stream.next()
        assert stale is not None
        assert (stale.data["counters"]["users"]["state"], stale.data["counters"]["users"]["count"]) == ("stale", 2)
        assert stale.data["as_of"] >= live["as_of"]
        lost = await stream.next()
        assert lost is not None
        users = lost.data["counters"]["users"]
        assert (users["state"], users["count"]) == ("unavailable", None)
        valkey.start()
        again = await stream.next()
        assert again is not None and again.data["counters"]["users"] == live["counters"]["users"]
        await stream.hang_up()

    query.run(scenario())


def test_a_heartbeat_keeps_a_quiet_stream_open(start_query: Callable[..., Query], rolls: Rolls) -> None:
    rolls.make_all_live()
    query = start_query(heartbeat_seconds=0.1)

    async def scenario() -> None:
        stream = await query.listen()
        await stream.next_counts()
        for _ in range(3):
            event = await stream.next()
            assert event is not None and event.is_comment
        await stream.hang_up()

    query.run(scenario())


def test_changes_that_come_fast_are_one_event(start_query: Callable[..., Query], rolls: Rolls) -> None:
    rolls.make_all_live(users=0)
    query = start_query(refresh_seconds=0.001, stream_seconds=0.1)

    async def scenario() -> None:
        stream = await query.listen()
        count = (await stream.next_counts())["counters"]["users"]["count"]
        for n in range(200):
            rolls.record("users", b"user %d" % n)
            await query.counts.read_anew()
        events = 0
        while count < 200:
            count = (await stream.next_counts())["counters"]["users"]["count"]
            events += 1
        assert events < 50
        await stream.hang_up()

    query.run(scenario())


def test_a_slow_client_gets_the_latest_and_nothing_piles_up_for_it(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live(users=0)

    async def scenario() -> None:
        slow, quick = await query.listen(), await query.listen()
        await slow.next_counts()
        slow.may_send.clear()
        for n in range(1, 31):
            rolls.record("users", b"user %d" % n)
            while (await quick.next_counts())["counters"]["users"]["count"] < n:
                pass
        slow.may_send.set()
        seen = [(await slow.next_counts())["counters"]["users"]["count"]]
        while seen[-1] < 30:
            seen.append((await slow.next_counts())["counters"]["users"]["count"])
        assert len(seen) <= 2  # the one that it was being sent, and the latest
        await slow.hang_up()
        await quick.hang_up()

    query.run(scenario())


def test_a_client_that_goes_away_frees_its_place(start_query: Callable[..., Query], rolls: Rolls) -> None:
    rolls.make_all_live()
    query = start_query(streams=2)

    async def scenario() -> None:
        one, two = await query.listen(), await query.listen()
        await one.next_counts()
        await two.next_counts()
        refused = await query.request("GET", "/v1/stream")
        assert (refused.status, refused.json["type"]) == (503, "urn:rollcall:no-room")
        assert int(refused.headers["retry-after"]) > 0
        await one.hang_up()
        assert len(query.streams.listeners) == 1
        three = await query.listen()
        await three.next_counts()
        await two.hang_up()
        await three.hang_up()
        assert not query.streams.listeners

    query.run(scenario())


def test_a_client_that_goes_away_while_it_is_sent_to_frees_its_place(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()

    async def scenario() -> None:
        async def receive() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] != "http.response.start":
                raise OSError("the client is gone")

        await query.application(make_scope("GET", "/v1/stream", {}, b""), receive, send)
        assert not query.streams.listeners

    query.run(scenario())


def test_a_client_that_takes_nothing_any_more_loses_its_place(start_query: Callable[..., Query], rolls: Rolls) -> None:
    rolls.make_all_live()
    query = start_query(heartbeat_seconds=0.1)

    async def scenario() -> None:
        stream = await query.listen()
        await stream.next_counts()
        stream.may_send.clear()  # its window is full, and it does not go away
        await eventually(lambda: not query.streams.listeners, "its place to be free")
        await stream.task

    query.run(scenario())


def test_a_stream_keeps_the_counts_being_read(start_query: Callable[..., Query], rolls: Rolls) -> None:
    rolls.make_all_live(users=2)
    query = start_query(idle_seconds=0.05)

    async def scenario() -> None:
        stream = await query.listen()
        await stream.next_counts()
        asked_at = query.counts._asked_at
        await eventually(lambda: query.counts._asked_at > asked_at + 0.2, "the stream to ask")
        rolls.record("users", b"late")
        assert (await stream.next_counts())["counters"]["users"]["count"] == 3
        await stream.hang_up()
        await eventually(lambda: not query.counts.answers, "the reading to end when the last stream has gone")

    query.run(scenario())


def test_at_the_end_streams_end_and_new_ones_are_sent_elsewhere(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()

    async def scenario() -> None:
        stream = await query.listen()
        await stream.next_counts()
        query.streams.end()
        told = await stream.next()
        # Each at another moment, so that thousands do not come back together.
        assert told is not None and RETRY_FROM <= int(told.retry) <= RETRY_TO
        assert await stream.next() is None
        late = await query.listen()
        retry = await late.next()
        # 200 and an end: a browser connects again. Told 503, it would not.
        assert retry is not None and (late.status, retry.retry) == (200, "1000")
        assert (await late.next()).retry  # type: ignore[union-attr]
        assert await late.next() is None

    query.run(scenario())
