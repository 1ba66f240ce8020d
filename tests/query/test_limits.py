"""Access to query, and its limits: tokens if configured, other origins, bodies and streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from query_service import tickets
from shared_models.web.application import Limits
from shared_models.web.asgi import Message
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
def limited(start_query: Callable[..., Query], rolls: Rolls) -> Callable[..., Query]:
    """The service over live counters, within these limits."""
    rolls.make_live("users", [b"ann"])
    rolls.make_live("cities", [])

    def start(*, streams_per_client: int = 0, member_bytes: int = 1000, **limits: Any) -> Query:
        given = Limits(**{"tokens": None, **limits})
        return start_query(None, limits=given, streams_per_client=streams_per_client, member_bytes=member_bytes)

    return start


@pytest.mark.parametrize("path", PATHS)
def test_with_tokens_everything_is_closed_but_to_those_who_have_one(limited: Callable[..., Query], path: str) -> None:
    token, line = make("dash")
    query = limited(tokens=Tokens(line))
    for headers in ({}, {"authorization": "Bearer wrong"}):
        reply = query.get(path, **headers)
        assert (reply.status, reply.json["type"]) == (401, "urn:rollcall:unauthorized")
        assert reply.headers["www-authenticate"].startswith("Bearer ")
        assert ("invalid_token" in reply.headers["www-authenticate"]) is bool(headers)
    assert query.get(path, authorization=f"Bearer {token}").status in (200, 404)


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_some_paths_are_open_to_all(limited: Callable[..., Query], path: str) -> None:
    assert limited(tokens=Tokens(make("dash")[1])).get(path).status == 200


def test_a_stream_needs_a_token_too(limited: Callable[..., Query]) -> None:
    query = limited(tokens=Tokens(make("dash")[1]))
    assert query.get("/v1/stream").status == 401


def test_a_browser_opens_a_stream_with_a_ticket(limited: Callable[..., Query]) -> None:
    """EventSource sends no headers: a client with a token gets a ticket for the URL."""
    token, line = make("dash")
    query = limited(tokens=Tokens(line))
    assert query.run(query.request("POST", "/v1/stream/tickets")).status == 401
    reply = query.run(query.request("POST", "/v1/stream/tickets", headers={"authorization": f"Bearer {token}"}))
    assert (reply.status, reply.headers["cache-control"]) == (201, "no-store")
    ticket = reply.json["ticket"]

    async def scenario() -> None:
        stream = await query.listen(f"?ticket={ticket}&counters=users")
        assert (await stream.next_counts())["counters"]["users"]["count"] == 1
        await stream.hang_up()

    query.run(scenario())
    for path in ("/v1/counts", "/v1/stream/tickets", "/metrics"):  # it opens streams, and nothing else
        assert query.get(f"{path}?ticket={ticket}").status == 401
    for wrong in (
        ticket[:-1] + ("0" if ticket[-1] != "0" else "1"),
        ticket.replace("dash", "desk"),
        "",
        "~~",
        "none-needed",
    ):
        reply = query.get(f"/v1/stream?ticket={wrong}")
        assert (reply.status, reply.json["type"]) == (401, "urn:rollcall:unauthorized")


def test_a_ticket_ends_with_its_minute_and_with_its_token() -> None:
    (token, line), (_, other_line) = make("dash"), make("desk")
    tokens = Tokens(f"{line},{other_line}")
    ticket, ends = tickets.make(tokens, f"Bearer {token}".encode(), now=1000.0)
    assert tickets.owner(tokens, ticket, now=ends) == "dash"
    assert tickets.owner(tokens, ticket, now=ends + 1) is None
    assert tickets.owner(tokens, ticket.replace(str(ends), str(ends + 9)), now=ends + 1) is None
    assert tickets.owner(Tokens(other_line), ticket, now=ends) is None
    assert tickets.owner(Tokens(make("dash")[1]), ticket, now=ends) is None


def test_where_no_tokens_are_asked_for_a_ticket_does_no_harm(limited: Callable[..., Query]) -> None:
    query = limited()
    ticket = query.run(query.request("POST", "/v1/stream/tickets")).json["ticket"]

    async def scenario() -> None:
        stream = await query.listen(f"?ticket={ticket}")
        assert (await stream.next_counts())["counters"]["users"]["count"] == 1
        await stream.hang_up()

    query.run(scenario())


@pytest.mark.parametrize("path", PATHS[:-1])
def test_an_origin_that_is_allowed_may_read_every_answer(limited: Callable[..., Query], path: str) -> None:
    query = limited(origins=frozenset({ORIGIN.encode()}))
    assert query.get(path, origin=ORIGIN).headers["access-control-allow-origin"] == ORIGIN
    for headers in ({}, {"origin": "https://evil.example"}, {"origin": ORIGIN + ".evil.example"}, {"origin": "null"}):
        reply = query.get(path, **headers)
        assert "access-control-allow-origin" not in reply.headers
        assert "origin" in reply.headers["vary"]


def test_any_origin_may_be_allowed_and_none_is_by_default(limited: Callable[..., Query]) -> None:
    assert "access-control-allow-origin" not in limited().get("/v1/counts", origin=ORIGIN).headers
    assert (
        limited(origins=frozenset({b"*"})).get("/v1/counts", origin=ORIGIN).headers["access-control-allow-origin"]
        == "*"
    )


def test_a_browser_may_ask_before_it_sends_a_token(limited: Callable[..., Query]) -> None:
    query = limited(origins=frozenset({ORIGIN.encode()}), tokens=Tokens(make("dash")[1]))
    headers = {"origin": ORIGIN, "access_control_request_method": "POST"}
    reply = query.run(query.request("OPTIONS", "/v1/counts/users/members", headers=headers))
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in reply.headers["access-control-allow-headers"]
    refused = query.get("/v1/counts", origin=ORIGIN)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_a_body_that_is_too_large_is_refused_by_its_length(limited: Callable[..., Query]) -> None:
    reply = limited().post("/v1/counts/users/members", b" " * 1001)
    assert (reply.status, reply.json["limit_bytes"]) == (413, 1000)


def test_a_body_that_does_not_say_how_large_it_is_is_not_read_to_its_end(limited: Callable[..., Query]) -> None:
    query, read, sent = limited(), [], []

    async def send_for_ever() -> None:
        async def receive() -> dict[str, Any]:
            read.append(100)
            return {"type": "http.request", "body": b" " * 100, "more_body": True}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = {"content_length": "", "transfer_encoding": "chunked"}
        await query.application(make_scope("POST", "/v1/counts/users/members", headers, b""), receive, send)

    query.run(send_for_ever())
    assert sum(read) <= 1100
    assert [message.get("status") for message in sent] == [413, None]


def test_a_client_has_so_many_streams_and_no_more(limited: Callable[..., Query]) -> None:
    query = limited(streams_per_client=2)

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
    assert not query.streams.of_clients


def test_the_page_and_the_docs_run_nothing_of_others(query: Query) -> None:
    for path in ("/", "/docs"):
        policy = query.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert query.get("/").headers["x-frame-options"] == "DENY"
    assert query.get("/openapi.json").headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("sent", "kept"), [("abc-123", True), ("a b", False), ("x" * 65, False), ("", False)])
def test_a_request_has_an_id_which_the_client_may_choose(query: Query, sent: str, kept: bool) -> None:
    returned = query.get("/livez", x_request_id=sent).headers["x-request-id"]
    assert returned and (returned == sent) is kept


def test_a_method_that_is_not_allowed_is_a_problem(query: Query) -> None:
    reply = query.run(query.request("DELETE", "/v1/counts"))
    assert (reply.status, reply.json["type"]) == (405, "urn:rollcall:method-not-allowed")
    assert "GET" in reply.headers["allow"]
