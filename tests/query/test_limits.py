"""The door of query: tokens where there are any, other origins, bodies and streams within limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from query_service.door import Door

from shared_models.web.tokens import Tokens, make
from tests.query.driving import Query, Reply, eventually, make_scope
from tests.query.rolls_in_redis import Rolls

PATHS = [
    "/v1/counts",
    "/v1/counts/users",
    "/stats/get/",
    "/",
    "/v1/counts/users/member?username=ann",
    "/nowhere",
    "/metrics",
]
OPEN_PATHS = ["/livez", "/readyz", "/openapi.json", "/docs", "/static/query/page.css"]
ORIGIN = "https://dash.example.org"


@pytest.fixture
def behind_a_door(query: Query, rolls: Rolls) -> Callable[..., Query]:
    """The service over live counters, behind a door with these settings."""
    rolls.make_live("users", [b"ann"])
    rolls.make_live("cities", [])

    def put(**changed: Any) -> Query:
        settings = {"tokens": None, "metrics_public": False, "origins": [], "body_bytes": 1000, "streams_per_client": 0}
        query.front = Door(query.application, **settings | changed)
        return query

    return put


@pytest.mark.parametrize("path", PATHS)
def test_with_tokens_everything_is_closed_but_to_those_who_have_one(
    behind_a_door: Callable[..., Query], path: str
) -> None:
    token, line = make("dash")
    query = behind_a_door(tokens=Tokens(line))
    for headers in ({}, {"authorization": "Bearer wrong"}):
        reply = query.get(path, **headers)
        assert (reply.status, reply.json["type"]) == (401, "urn:rollcall:unauthorized")
        assert reply.headers["www-authenticate"].startswith("Bearer ")
        assert ("invalid_token" in reply.headers["www-authenticate"]) is bool(headers)
    assert query.get(path, authorization=f"Bearer {token}").status in (200, 404)


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_some_paths_are_open_to_all(behind_a_door: Callable[..., Query], path: str) -> None:
    assert behind_a_door(tokens=Tokens(make("dash")[1])).get(path).status == 200


def test_a_stream_needs_a_token_too(behind_a_door: Callable[..., Query]) -> None:
    query = behind_a_door(tokens=Tokens(make("dash")[1]))
    assert query.get("/v1/stream").status == 401


@pytest.mark.parametrize("path", PATHS[:-1])
def test_an_origin_that_is_allowed_may_read_every_answer(behind_a_door: Callable[..., Query], path: str) -> None:
    query = behind_a_door(origins=[ORIGIN])
    assert query.get(path, origin=ORIGIN).headers["access-control-allow-origin"] == ORIGIN
    for headers in ({}, {"origin": "https://evil.example"}, {"origin": ORIGIN + ".evil.example"}, {"origin": "null"}):
        reply = query.get(path, **headers)
        assert "access-control-allow-origin" not in reply.headers
        assert "origin" in reply.headers["vary"]


def test_any_origin_may_be_allowed_and_none_is_by_default(behind_a_door: Callable[..., Query]) -> None:
    assert "access-control-allow-origin" not in behind_a_door().get("/v1/counts", origin=ORIGIN).headers
    assert behind_a_door(origins=["*"]).get("/v1/counts", origin=ORIGIN).headers["access-control-allow-origin"] == "*"


def test_a_browser_may_ask_before_it_sends_a_token(behind_a_door: Callable[..., Query]) -> None:
    query = behind_a_door(origins=[ORIGIN], tokens=Tokens(make("dash")[1]))
    headers = {"origin": ORIGIN, "access_control_request_method": "POST"}
    reply = query.run(query.request("OPTIONS", "/v1/counts/users/members", headers=headers))
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in reply.headers["access-control-allow-headers"]
    refused = query.get("/v1/counts", origin=ORIGIN)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_a_body_that_is_too_large_is_refused_by_its_length(behind_a_door: Callable[..., Query]) -> None:
    reply = behind_a_door().post("/v1/counts/users/members", b" " * 1001)
    assert (reply.status, reply.json["limit_bytes"]) == (413, 1000)


def test_a_body_that_does_not_say_how_large_it_is_is_not_read_to_its_end(behind_a_door: Callable[..., Query]) -> None:
    query, read, sent = behind_a_door(), [], []

    async def send_for_ever() -> None:
        async def receive() -> dict[str, Any]:
            read.append(100)
            return {"type": "http.request", "body": b" " * 100, "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await query.front(make_scope("POST", "/v1/counts/users/members", {"content_length": ""}, b""), receive, send)

    query.run(send_for_ever())
    assert sum(read) <= 1100
    assert [message.get("status") for message in sent] == [413, None]


def test_a_client_has_so_many_streams_and_no_more(behind_a_door: Callable[..., Query]) -> None:
    query = behind_a_door(streams_per_client=2)

    async def scenario() -> Reply:
        first, second = await query.listen(), await query.listen()
        await first.next_counts()
        await second.next_counts()
        refused = await query.request("GET", "/v1/stream")
        await first.hang_up()
        third = await query.listen()
        await eventually(lambda: third.status == 200 or not third.sent.empty(), "the place that is free again")
        assert (await third.next_counts())["counters"]["users"]["count"] == 1
        await second.hang_up()
        await third.hang_up()
        return refused

    reply = query.run(scenario())
    assert (reply.status, reply.json["type"]) == (429, "urn:rollcall:too-many-streams")
    assert not query.front.open_streams


def test_the_page_and_the_docs_run_nothing_of_others(query: Query) -> None:
    for path in ("/", "/docs"):
        policy = query.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    reply = query.get("/openapi.json")
    assert reply.headers["x-frame-options"] == "DENY" and reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("sent", "kept"), [("abc-123", True), ("a b", False), ("x" * 65, False), ("", False)])
def test_a_request_has_an_id_which_the_client_may_choose(query: Query, sent: str, kept: bool) -> None:
    returned = query.get("/livez", x_request_id=sent).headers["x-request-id"]
    assert returned and (returned == sent) is kept


def test_a_method_that_is_not_allowed_is_a_problem(query: Query) -> None:
    reply = query.run(query.request("DELETE", "/v1/counts"))
    assert (reply.status, reply.json["type"]) == (405, "urn:rollcall:method-not-allowed")
    assert "GET" in reply.headers["allow"]
