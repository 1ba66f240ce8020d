"""One row, sent in all possible ways: the answer, byte for byte, and the stored row."""

from __future__ import annotations

import gzip
import json

import pytest

from ingest_service.writing import counting
from shared_models.web.asgi import Answer
from tests.ingest.producing import Producer, message
from tests.servers import sql, started_primary

JSON = {"Content-Type": "application/json"}
VALID = json.dumps(message("ann")).encode()
PLAIN = {"x-content-type-options": "nosniff"}

# The body, the headers, the status, and the type of the problem, if it is one.
REQUESTS: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "valid": (VALID, JSON, 201, ""),
    "with a key": (VALID, JSON | {"Idempotency-Key": "k1"}, 201, ""),
    "with a key that cannot be used": (VALID, JSON | {"Idempotency-Key": ""}, 400, "invalid-idempotency-key"),
    "not JSON": (b"{", JSON, 400, "malformed-json"),
    "not valid": (json.dumps(message("")).encode(), JSON, 422, "invalid-row"),
    "with NUL": (json.dumps(message("a\0b")).encode(), JSON, 422, "invalid-row"),
    "with half a surrogate pair": (json.dumps(message("a\ud800")).encode(), JSON, 422, "invalid-row"),
    "not UTF-8": (VALID.replace(b"ann", b"\xff"), JSON, 400, "malformed-json"),
    "nested deeply": (b"[" * 100_000, JSON, 400, "malformed-json"),
    "with a byte order mark": (b"\xef\xbb\xbf" + VALID, JSON, 201, ""),
    "empty": (b"", JSON, 400, "empty-body"),
    "blank": (b"  ", JSON, 400, "empty-body"),
    "large": (b" " * (1 << 19) + VALID, JSON, 201, ""),
    "too large": (b" " * (1 << 20) + VALID, JSON, 413, "body-too-large"),
    "without a type": (VALID, {}, 415, "unsupported-content-type"),
    "of another type": (VALID, {"Content-Type": "text/plain"}, 415, "unsupported-content-type"),
    "with a charset": (VALID, {"Content-Type": "application/json; charset=utf-8"}, 201, ""),
    "with another charset": (
        VALID,
        {"Content-Type": "application/json; charset=latin-1"},
        415,
        "unsupported-content-type",
    ),
    "packed": (gzip.compress(VALID), JSON | {"Content-Encoding": "gzip"}, 201, ""),
    "packed, it says": (VALID, JSON | {"Content-Encoding": "gzip"}, 400, "bad-gzip"),
    "to another host": (VALID, JSON | {"Host": "evil.example"}, 400, "bad-request"),
    "without a host": (VALID, JSON | {"Host": ""}, 400, "bad-request"),
}


@pytest.mark.parametrize("pieces", [1, 7], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_row_is_stored_or_refused_by_name(
    producer: Producer, request_: tuple[bytes, dict[str, str], int, str], pieces: int
) -> None:
    sql(started_primary(), "TRUNCATE message, receipt RESTART IDENTITY")
    body, headers, status, slug = request_
    size = len(body) // pieces + 1
    response = producer.ask("POST", "/v1/messages", [body[at : at + size] for at in range(0, len(body), size)], headers)
    assert response.status_code == status, response.content
    told = dict(response.headers)
    assert len(told.pop("x-request-id", "0" * 16)) == 16
    assert told.pop("content-length") == str(len(response.content))
    if slug:
        assert response.json()["type"] == f"urn:rollcall:{slug}"
        assert told == PLAIN | {"content-type": "application/problem+json", "cache-control": "no-store"}
        assert producer.rows() == []
    else:
        assert response.content == b'{"id":1,"counted":true}'
        assert told == PLAIN | {"content-type": "application/json"}
        assert producer.usernames() == ["ann"]


def test_a_replay_says_so_and_is_the_first_answer(producer: Producer) -> None:
    first, again = (producer.send(message("ann"), Idempotency_Key="k1") for _ in range(2))
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert set(again.headers) - set(first.headers) == {"idempotent-replay"}


def test_a_row_does_not_reach_django(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer.application, "django", None)
    assert producer.send(message("ann")).status_code == 201
    assert producer.send_batch(message("ann")).status_code == 200
    assert producer.get("/openapi.json").status_code == 200


def test_a_fault_of_ours_is_a_500_that_says_nothing_of_the_inside(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Answer:
        raise SystemError("secret")

    monkeypatch.setattr(counting, "members_of", fail)
    for response in (producer.send(message("ann")), producer.send_batch(message("ann"))):
        assert (response.status_code, response["Content-Type"]) == (500, "application/problem+json")
        assert b"secret" not in response.content
    assert producer.rows() == []
