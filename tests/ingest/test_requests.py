"""The answers to requests that never reach the table: sizes, types, encodings, methods, URLs."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from ingest_service.writing import recording
from shared_models import logs
from tests.described import query_parameters, refuses
from tests.ingest.producing import NDJSON, Producer, message, ndjson

JSON = "application/json"
ROW = json.dumps(message()).encode()


def problem(response: Any, status: int, slug: str) -> str:
    """Asserts that the response is this problem; its detail."""
    assert response["Content-Type"] == "application/problem+json"
    body = response.json()
    assert (response.status_code, body["status"], body["type"]) == (status, status, f"urn:rollcall:{slug}")
    assert body["title"]
    return body["detail"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "", NDJSON, "application/json; charset=latin-1"]
)
def test_a_content_type_that_is_not_understood_is_refused_and_what_is_accepted_named(
    producer: Producer, content_type: str
) -> None:
    response = producer.post("/v1/messages", ROW, content_type)
    assert "application/json" in problem(response, 415, "unsupported-content-type")


@pytest.mark.parametrize(
    "content_type", [JSON, "Application/JSON", "application/json; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_is_understood_however_it_is_written(producer: Producer, content_type: str) -> None:
    assert producer.post("/v1/messages", ROW, content_type).status_code == 201
    assert producer.post("/v1/messages/batch", b"[" + ROW + b"]", content_type).json()["accepted"] == 1


@pytest.mark.parametrize("content_type", [NDJSON, "application/ndjson", "application/jsonl"])
def test_ndjson_has_several_names(producer: Producer, content_type: str) -> None:
    assert producer.post("/v1/messages/batch", ROW + b"\n" + ROW, content_type).json()["accepted"] == 2
    response = producer.post("/v1/messages/batch", ROW, "text/plain")
    assert content_type in problem(response, 415, "unsupported-content-type")


def test_an_array_at_the_address_of_one_and_an_object_at_the_address_of_many(producer: Producer) -> None:
    assert "a row is a JSON object, not an array" in problem(
        producer.post("/v1/messages", b"[" + ROW + b"]"), 422, "invalid-row"
    )
    assert "a batch is a JSON array" in problem(producer.post("/v1/messages/batch", ROW), 400, "malformed-json")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batch"])
@pytest.mark.parametrize("body", [b"", b" \r\n\t\n"])
def test_an_empty_body_is_refused(producer: Producer, path: str, body: bytes) -> None:
    problem(producer.post(path, body), 400, "empty-body")


def test_gzip_is_unpacked(producer: Producer) -> None:
    packed = gzip.compress(ndjson(message("ann"))) + gzip.compress(ndjson(message("bob")))  # two members are one file
    assert producer.post("/v1/messages/batch", packed, NDJSON, Content_Encoding="gzip").json()["accepted"] == 2
    assert producer.post("/v1/messages", gzip.compress(ROW), Content_Encoding="GZIP").status_code == 201


@pytest.mark.parametrize(
    "packed",
    [
        ROW,
        gzip.compress(ROW)[:-1],
        gzip.compress(ROW)[:12],
        gzip.compress(ROW) + b"x",
        gzip.compress(ROW)[:-8] + b"\0" * 8,
    ],
)
def test_gzip_that_is_none_is_refused(producer: Producer, packed: bytes) -> None:
    problem(producer.post("/v1/messages", packed, Content_Encoding="gzip"), 400, "bad-gzip")
    assert producer.rows() == []


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip"])
def test_other_encodings_are_refused(producer: Producer, encoding: str) -> None:
    response = producer.post("/v1/messages", zlib.compress(ROW), Content_Encoding=encoding)
    assert "gzip" in problem(response, 415, "unsupported-content-encoding")
    assert response["Accept-Encoding"] == "gzip"


def test_a_body_that_is_too_large_is_refused_by_number_packed_or_not(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.MAX_BODY_BYTES", len(ROW))
    assert producer.post("/v1/messages", ROW).status_code == 201
    assert producer.post("/v1/messages", gzip.compress(ROW), Content_Encoding="gzip").status_code == 413  # as sent, too
    limit = f"the limit is {len(ROW)} bytes"
    assert limit in problem(producer.post("/v1/messages", ROW + b" "), 413, "body-too-large")
    bomb = gzip.compress(b" " * 10_000)
    monkeypatch.setattr("django.conf.settings.MAX_BODY_BYTES", 100)
    assert len(bomb) < 100
    assert "the limit is 100 bytes" in problem(
        producer.post("/v1/messages", bomb, Content_Encoding="gzip"), 413, "body-too-large"
    )


def test_a_batch_of_too_many_rows_is_refused_by_number(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.conf.settings.MAX_BATCH_ROWS", 3)
    assert producer.send_batch(*[message()] * 3).json()["accepted"] == 3
    response = producer.send_batch(*[message()] * 4)
    assert "the limit is 3 rows" in problem(response, 413, "too-many-rows")
    assert len(producer.rows()) == 3


def test_strict_is_0_or_1(producer: Producer) -> None:
    assert producer.send_batch(message(), message(""), query="?strict=0").json()["rejected"] == 1
    for value in ("", "true", "2"):
        problem(producer.send_batch(message(), query=f"?strict={value}"), 400, "invalid-query")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?country=DE", "unknown query parameter 'country'; this endpoint takes"),
        ("?strict=0&strict=1", "strict"),
        ("?a=1&b=2", "'a', 'b'"),
        ("?" + "x" * 1000, "'" + "x" * 64 + "…'"),
        ("?=", "''"),
        ("?%ff", "query parameter"),
        ("?" + "&".join(f"a{n}" for n in range(200)), "more than 100 query parameters"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batch"])
def test_a_query_parameter_that_is_not_known_is_refused_and_the_known_ones_named(
    producer: Producer, path: str, query: str, said: str
) -> None:
    detail = problem(producer.post(path + query, ROW), 400, "invalid-query")
    assert said in detail
    if "give it once" not in detail:
        assert detail.endswith("takes strict" if "batch" in path else "takes no query parameters")
    assert producer.rows() == []


def test_the_query_parameters_that_are_known_are_those_that_are_described(producer: Producer) -> None:
    document = producer.get("/openapi.json").json()
    described = {
        name.replace("/v1/messages", "/v1/{collection}"): each for name, each in query_parameters(document).items()
    }
    assert described == {"POST /v1/{collection}": (), "POST /v1/{collection}/batch": ("strict",)}
    assert refuses(document, "400")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batch"])
def test_other_methods_are_refused_and_the_right_one_named(producer: Producer, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = producer.ask(method, path)
        assert "use POST" in problem(response, 405, "method-not-allowed")
        assert response["Allow"] == "POST"
    response = producer.ask("POST", "/livez")
    assert response["Allow"] == "GET, HEAD"


def test_an_address_that_leads_nowhere_is_a_problem_too(producer: Producer) -> None:
    assert "messages" in problem(producer.post("/v1/letters", ROW), 404, "unknown-collection")
    problem(producer.get("/nothing"), 404, "not-found")


def test_a_host_that_is_not_allowed_is_refused(producer: Producer) -> None:
    problem(producer.post("/v1/messages", ROW, Host="evil.example"), 400, "bad-request")


def test_what_is_logged_of_a_batch_names_its_request(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored in a thread, which has no context of its own."""
    said = []
    record_batch = recording.record_batch

    def listen(*arguments: Any) -> recording.Recorded:
        said.append(logs.bound.get())
        return record_batch(*arguments)

    monkeypatch.setattr(recording, "record_batch", listen)
    assert producer.send_batch(message(), X_Request_ID="order-17").status_code == 200
    assert said == [{"request_id": "order-17"}]
