"""The page, the description, and the operators' endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from django.contrib.staticfiles import finders
from redis import Redis

from compose.local.servers import Valkey
from shared_models.protocol import keys
from tests.query.driving import Query
from tests.query.rolls_in_redis import Rolls


class Page(HTMLParser):
    """What a page loads, and what it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.inline: list[str] = []
        self.fields: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("link", "script", "img"):
            self.loads.append(given.get("href") or given.get("src") or "inline")
        self.inline += [name for name in given if name == "style" or name.startswith("on")] + ["style"] * (
            tag == "style"
        )
        if tag == "input":
            self.fields.append(given.get("name") or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.words))


def test_the_numbers_are_in_the_page_without_javascript(query: Query, rolls: Rolls) -> None:
    rolls.make_live("users", [b"user %d" % n for n in range(1234)])
    rolls.verify("users", datetime(2026, 11, 23, 11, 58, tzinfo=UTC))
    rolls.begin_fill("cities", expected=5000)
    rolls.fill("cities", [b'["NY","%d"]' % n for n in range(1500)])
    reply = query.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    page = Page(reply.body.decode())
    assert "1,234" in page.words
    assert "complete to 23 Nov 12:00:01 UTC, verified 23 Nov 11:58 UTC, no drift" in page.text
    assert "Being built: 1,500 of about 5,000 members" in page.text
    assert page.fields == ["state", "city", "username"]


@pytest.mark.parametrize(
    ("repaired", "words"),
    [
        (True, "12 members were missing and were added, 1 member left, verified 23 Nov 11:58 UTC"),
        (False, "verified 23 Nov 11:58 UTC, drift: 12 missing, 1 extra"),
    ],
)
def test_what_was_mended_is_not_told_as_if_it_were_still_wrong(
    query: Query, rolls: Rolls, repaired: bool, words: str
) -> None:
    rolls.make_live("users", [b"ann"])
    rolls.verify("users", datetime(2026, 11, 23, 11, 58, tzinfo=UTC), missing=12, extra=1, repaired=repaired)
    text = Page(query.get("/").body.decode()).text
    assert f"complete to 23 Nov 12:00:01 UTC, {words} " in text


def test_the_page_says_why_a_counter_has_no_count(query: Query, rolls: Rolls, redis: Redis) -> None:
    rolls.make_live("users", [b"ann"])
    redis.sadd(keys.of_counter("users").members, "by hand")
    assert (
        "Cannot be counted now: its set has 2 members, but 1 were recorded" in Page(query.get("/").body.decode()).text
    )


def test_the_page_says_when_the_counts_cannot_be_read(
    start_query: Callable[..., Query], second_valkey: Callable[..., Valkey]
) -> None:
    valkey = second_valkey()
    with valkey.client() as client:
        Rolls(client).make_all_live(users=2)
    query = start_query(valkey.url)
    query.get("/")
    valkey.stop()
    text = Page(query.get("/").body.decode()).text
    assert "The counts cannot be read at the moment: stale since" in text
    assert query.get("/livez").status == 200


def test_a_question_without_javascript_is_answered_in_the_page(query: Query, rolls: Rolls) -> None:
    rolls.make_live("users", [b"ann & <b>"])

    def ask(question: str) -> Page:
        reply = query.get(f"/?{question}")
        assert reply.status == 200
        return Page(reply.body.decode())

    assert "Yes, “ann & <b>” is counted." in ask("username=ann+%26+%3Cb%3E&is-one-of=users").words
    assert "No, “bob” is not counted." in ask("is-one-of=users&username=bob").words
    assert "No answer: 'username' is missing; a member of 'users' has: username." in ask("is-one-of=users").words
    assert "No answer: a value is not UTF-8." in ask("is-one-of=users&username=%ff").words
    assert (
        "No answer: counter 'cities' cannot be counted now: it has not been built yet"
        in ask("is-one-of=cities&state=NY&city=Ithaca").text
    )
    assert "counted." not in ask("is-one-of=nobody&username=ann").text


def test_a_search_that_finds_nothing_is_answered(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()
    reply = query.get("/?find-counters=nothing+like+this")
    assert reply.status == 200 and not re.search(rb"Users|Cities", reply.body)


def test_the_page_asks_no_other_host_and_is_small(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()
    reply = query.get("/")
    page = Page(reply.body.decode())
    assert page.inline == []
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    size_bytes = len(reply.body)
    for url in page.loads:
        assert url.startswith("/static/")
        loaded = query.get(url)
        assert loaded.status == 200
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", loaded.body)
        size_bytes += len(loaded.body)
    assert len(page.loads) == 3
    assert size_bytes < 60_000


def test_a_static_file_is_revalidated(query: Query) -> None:
    first = query.get("/static/query/page.css")
    assert query.get("/static/query/page.css", if_none_match=first.headers["etag"]).status == 304
    head = query.run(query.request("HEAD", "/static/query/page.css"))
    assert (head.status, head.body) == (200, b"")
    assert query.get("/static/query/no-such.css").status == 404


def test_the_description_names_every_route_and_its_page_works_offline(query: Query) -> None:
    described = query.get("/openapi.json").json["paths"]
    assert set(described) == {
        "/v1/counts",
        "/v1/counts/{counter}",
        "/v1/counts/{counter}/history",
        "/v1/counts/{counter}/member",
        "/v1/counts/{counter}/members",
        "/v1/algebra",
        "/v1/stream",
        "/v1/stream/tickets",
        "/stats/get/",
        "/livez",
        "/readyz",
        "/metrics",
    }
    page = Page(query.get("/docs").body.decode())
    for url in filter(lambda url: url != "inline", page.loads):
        assert url.startswith("/static/")
        assert finders.find(url.removeprefix("/static/"))


def test_livez_touches_nothing_and_readyz_names_what_is_missing(
    start_query: Callable[..., Query], second_valkey: Callable[..., Valkey]
) -> None:
    from django.test import override_settings

    valkey = second_valkey()
    query = start_query(valkey.url)
    with override_settings(REDIS_URL=valkey.url), valkey.client() as client:
        assert query.get("/readyz").status == 200
        client.config_set("maxmemory-policy", "allkeys-lru")
        reply = query.get("/readyz")
        assert (reply.status, "noeviction" in reply.json["detail"]) == (503, True)
        valkey.stop()
        reply = query.get("/readyz")
        assert (reply.status, "Redis cannot be read" in reply.json["detail"]) == (503, True)
        assert query.get("/livez").status == 200


def test_the_metrics_show_requests_reads_and_counts(query: Query, rolls: Rolls) -> None:
    rolls.make_live("users", [b"ann", b"bob"])
    for _ in range(3):
        query.get("/v1/counts")
    query.get("/v1/counts/users/member?username=ann")
    text = query.get("/metrics").body.decode()
    assert 'rollcall_request_seconds_count{route="/v1/counts",service="query",status="200"}' in text
    assert 'rollcall_request_seconds_count{route="/v1/counts/{counter}/member",service="query",status="200"}' in text
    assert 'rollcall_query_reads_total{outcome="read"}' in text
    assert 'rollcall_query_count{counter="users"} 2.0' in text
    assert 'rollcall_query_count{counter="cities"} NaN' in text


def test_an_unknown_path_is_a_problem(query: Query) -> None:
    reply = query.get("/nothing/here")
    assert (reply.status, reply.headers["content-type"]) == (404, "application/problem+json")
