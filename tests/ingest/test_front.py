"""The front answers as Django does: the same requests to both, and what each of them leaves behind."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest

from ingest_service import front, wsgi
from ingest_service.writing import counting
from tests.ingest.producing import Producer, message
from tests.servers import sql, started_primary

VALID = json.dumps(message("ann")).encode()


def ask(application: Any, body: bytes, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    """One request, as gunicorn would hand it over; values of None are left out."""
    said: list[Any] = []
    everything = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/v1/messages",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": "localhost",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8001",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(body),
        "wsgi.input_terminated": True,
    } | environ
    answer = application({n: v for n, v in everything.items() if v is not None}, lambda *head: said.append(head))
    content = b"".join(answer)
    if hasattr(answer, "close"):
        answer.close()
    ((status, headers),) = said
    return status, dict(headers), content


@pytest.fixture
def stored(producer: Producer) -> Producer:
    """Ids that begin at 1 each time, so that the answers of two runs can be compared."""
    sql(started_primary(), "TRUNCATE message, receipt RESTART IDENTITY")
    return producer


REQUESTS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "valid": (VALID, {}),
    "with a key": (VALID, {"HTTP_IDEMPOTENCY_KEY": "k1"}),
    "with a key that cannot be used": (VALID, {"HTTP_IDEMPOTENCY_KEY": ""}),
    "not JSON": (b"{", {}),
    "not valid": (json.dumps(message("")).encode(), {}),
    "with NUL": (json.dumps(message("a\0b")).encode(), {}),
    "with half a surrogate pair": (json.dumps(message("a\ud800")).encode(), {}),
    "not UTF-8": (VALID.replace(b"ann", b"\xff"), {}),
    "nested deeply": (b"[" * 100_000, {}),
    "with a byte order mark": (b"\xef\xbb\xbf" + VALID, {}),
    "empty": (b"", {}),
    "blank": (b"  ", {}),
    "too large": (b" " * (1 << 20) + VALID, {}),
    "cut short": (VALID, {"CONTENT_LENGTH": str(len(VALID) + 10)}),
    "without a length": (VALID, {"CONTENT_LENGTH": None}),
    "with a wrong length": (VALID, {"CONTENT_LENGTH": "many"}),
    "without a type": (VALID, {"CONTENT_TYPE": None}),
    "of another type": (VALID, {"CONTENT_TYPE": "text/plain"}),
    "with a charset": (VALID, {"CONTENT_TYPE": "application/json; charset=utf-8"}),
    "with a charset that is not known": (VALID, {"CONTENT_TYPE": "application/json; charset=latin-1"}),
    "packed, it says": (VALID, {"HTTP_CONTENT_ENCODING": "gzip"}),
    "with a query": (VALID, {"QUERY_STRING": "x=1"}),
    "below another address": (VALID, {"SCRIPT_NAME": "/ingest"}),
    "to no collection": (VALID, {"PATH_INFO": "/v1/letters"}),
    "to a batch": (b"[" + VALID + b"]", {"PATH_INFO": "/v1/messages/batch"}),
    "to another host": (VALID, {"HTTP_HOST": "evil.example"}),
    "without a host": (VALID, {"HTTP_HOST": None}),
    "by another method": (VALID, {"REQUEST_METHOD": "PUT"}),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_the_front_answers_as_django_does(stored: Producer, request_: tuple[bytes, dict[str, Any]]) -> None:
    body, environ = request_
    found = []
    for application in (wsgi.front, wsgi.django):
        sql(started_primary(), "TRUNCATE message, receipt RESTART IDENTITY")
        status, headers, content = ask(application, body, **environ)
        of_pages = ("Referrer-Policy", "Cross-Origin-Opener-Policy")
        found.append((status, {n: v for n, v in headers.items() if n not in of_pages}, content, stored.rows()))
    assert found[0] == found[1]


def test_a_key_that_the_front_has_taken_is_known_to_django_and_the_other_way_round(stored: Producer) -> None:
    for key, (first, second) in {
        "k1": (wsgi.front, wsgi.django),
        "k2": (wsgi.django, wsgi.front),
    }.items():
        status, headers, content = ask(first, VALID, HTTP_IDEMPOTENCY_KEY=key)
        assert "Idempotent-Replay" not in headers
        again = ask(second, VALID, HTTP_IDEMPOTENCY_KEY=key)
        assert (again[0], again[1]["Idempotent-Replay"], again[2]) == (status, "true", content)
        other = ask(second, json.dumps(message("bob")).encode(), HTTP_IDEMPOTENCY_KEY=key)
        assert other[0] == "422 Unprocessable Entity" or other[0].startswith("422 ")
    assert stored.usernames() == ["ann", "ann"]


def test_the_ordinary_request_does_not_reach_django(stored: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi.front, "django", None)
    assert ask(wsgi.front, VALID)[0] == "201 Created"


def test_a_fault_of_ours_is_a_500_that_says_nothing_of_the_inside(
    stored: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise SystemError("secret")

    monkeypatch.setattr(counting, "count", fail)
    status, headers, content = ask(wsgi.front, VALID)
    assert status == "500 Internal Server Error"
    assert headers["Content-Type"] == "application/problem+json"
    assert b"secret" not in content
    assert front.is_allowed("localhost")
