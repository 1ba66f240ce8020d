"""The common part of all three services: /livez, /readyz, /metrics, /openapi.json, /docs, and refusals."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass

import pytest

from compose.local.services import Web
from compose.local.stack import Stack

PATHS = ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs")
# Of these only that they are there has to be the same.
OF_EACH_ANSWER = ("content-length", "date", "x-request-id")


@dataclass(frozen=True)
class Face:
    """What has to be the same in all: status, headers, and the keys of the JSON, with the type of a problem."""

    status: int
    headers: dict[str, str]
    keys: tuple[str, ...]
    problem: str


def look(service: Web, method: str, path: str, **headers: str) -> tuple[Face, bytes]:
    """How the service answers, and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        connection.request(method, path, headers={**service.authorization(), **headers})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    known = {name.lower(): value for name, value in answer.getheaders()}
    known |= {name: "…" for name in OF_EACH_ANSWER if name in known}
    is_json = body and known["content-type"].endswith("json")
    document = json.loads(body) if is_json else {}
    return Face(answer.status, known, tuple(document), str(document.get("type", ""))), body


def same(stack: Stack, method: str, path: str, **headers: str) -> Face:
    """The one face that all three show."""
    first, *others = (
        look(service, method, path, **headers)[0] for service in (stack.ingest, stack.manage, stack.query)
    )
    assert others == [first, first]
    return first


@pytest.mark.parametrize("path", PATHS)
def test_they_are_answered_alike(live: Stack, path: str) -> None:
    face = same(live, "GET", path)
    assert face.status == 200
    assert face.headers["x-content-type-options"] == "nosniff"
    assert face.keys == {
        "/livez": ("alive",),
        "/readyz": ("ready", "degraded", "checks"),
        "/openapi.json": ("openapi", "info", "servers", "paths", "components"),
    }.get(path, ())


@pytest.mark.parametrize("path", PATHS)
def test_HEAD_is_answered_as_GET_is_and_without_a_body(live: Stack, path: str) -> None:
    assert same(live, "HEAD", path).headers == same(live, "GET", path).headers
    assert {look(service, "HEAD", path)[1] for service in (live.ingest, live.manage, live.query)} == {b""}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_refused_alike(live: Stack, path: str, method: str) -> None:
    face = same(live, method, path)
    assert (face.status, face.problem) == (405, "urn:rollcall:method-not-allowed")
    assert face.headers["allow"] == "GET, HEAD"
    assert face.keys == ("type", "title", "status", "detail")


@pytest.mark.parametrize(
    ("path", "headers", "status", "problem"),
    [
        ("/nothing/here", {}, 404, "not-found"),
        ("/v1", {}, 404, "not-found"),
        ("/livez/", {}, 404, "not-found"),
        ("/static/none.css", {}, 404, "not-found"),
        ("/livez", {"Host": "evil.example"}, 400, "bad-request"),
        ("/docs", {"Host": "evil.example"}, 400, "bad-request"),
    ],
)
def test_what_is_not_there_is_refused_alike(
    live: Stack, path: str, headers: dict[str, str], status: int, problem: str
) -> None:
    face = same(live, "GET", path, **headers)
    assert (face.status, face.problem) == (status, f"urn:rollcall:{problem}")


def test_the_id_of_a_request_comes_back(live: Stack) -> None:
    for service in (live.ingest, live.manage, live.query):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        connection.request("GET", "/openapi.json", headers={"X-Request-ID": "mine-1"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.getheader("X-Request-ID") == "mine-1"
