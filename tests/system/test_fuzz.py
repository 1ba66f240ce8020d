"""Hostile input, and unusual text: a service refuses it with a reason, or returns it unchanged."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from compose.local.services import Web
from compose.local.stack import Stack
from shared_models.protocol import keys, members
from tests.servers import sql
from tests.system.asking import ask, count

# Values that have to come back equal, byte for byte, from Postgres, from Redis and through query.
VALUES = [
    "a",
    "á",
    unicodedata.normalize("NFD", "á"),
    "A",
    "ß",
    "ſ",
    "İ",
    "\u200f\u202eabc",  # right-to-left mark and override
    "\u200b",  # nothing to see
    "\ufeff",
    "\ufffd",
    "\ufffe",
    "\U0010ffff",
    "\u2028\u2029\x85",  # line ends to some
    "\x01\x1f\x7f",
    "\r",
    "\t",
    "\\N",
    "\\.",
    "\\",
    "'; DROP TABLE message; --",
    "%s%%{0}$1",
    '"',
    '["NY","Ithaca"]',
    "null",
    " ",
    " a",
    "a ",
    "😀" * 64,  # 64 characters that are 256 bytes
    "👩‍👩‍👧‍👦",
    "e" + "\u0301" * 63,
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "&amp;",
    "a&b=c#d?e;f+g%20",
    "=",
    "*",
    "{users}",
    "rollcall:2:{users}:members",
]


def row(**changed: Any) -> dict[str, Any]:
    return {"state": "NY", "city": "Ithaca", "username": "fuzz", "message": ""} | changed


@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "raw"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batch"])
def test_what_is_stored_comes_back_equal_everywhere(live: Stack, path: str, escaped: bool) -> None:
    rows = [row(username=value, city=value, message=value) for value in VALUES]
    before = sql(live.primary, "SELECT coalesce(max(id), 0) FROM message")[0][0]
    bodies = [json.dumps(each, ensure_ascii=escaped).encode() for each in rows]
    if path.endswith("batch"):
        answer = ask(live.ingest, "POST", path, b"\r\n".join(bodies), **{"Content-Type": "application/x-ndjson"})
        assert answer == (200, {"accepted": len(rows), "rejected": 0, "errors": [], "counted": True})
    else:
        for body in bodies:
            status, answer = ask(live.ingest, "POST", path, body)
            assert (status, answer["counted"]) == (201, True)
    stored = sql(live.primary, "SELECT username, city, message FROM message WHERE id > %s ORDER BY id", before)
    assert stored == [(value, value, value) for value in VALUES]
    with live.valkey.client() as client:
        assert all(client.smismember(keys.of_counter("users").members, [value.encode() for value in VALUES]))
        encoded = [members.encode(("NY", value)) for value in VALUES]
        assert all(client.smismember(keys.of_counter("cities").members, encoded))
    asked = {"members": [{"username": value} for value in VALUES]}
    assert ask(live.query, "POST", "/v1/counts/users/members", asked)[1] == {"members": [True] * len(VALUES)}
    for value in VALUES:
        url = f"/v1/counts/cities/member?state=NY&city={quote(value, safe='')}"
        assert ask(live.query, "GET", url) == (200, {"member": True})
    ((distinct,),) = sql(live.primary, "SELECT count(DISTINCT username) FROM message")
    assert count(live) == distinct


def test_a_composed_and_a_decomposed_are_three_members(live: Stack) -> None:
    before = count(live)
    for name in ("third-a", "third-\u00e1", "third-a\u0301"):
        assert ask(live.ingest, "POST", "/v1/messages", row(username=name))[0] == 201
    assert before is not None and count(live) == before + 3


# Of no service's making, and refused by each: what is sent, and with which headers.
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \r\n\t",
    "NUL": json.dumps(row(username="a\0b")).encode(),
    "raw NUL": b"\0",
    "half a surrogate pair": b'{"state": "NY", "city": "x", "username": "\\ud800", "message": ""}',
    "two halves the wrong way": b'{"state": "NY", "city": "x", "username": "\\udc00\\ud800", "message": ""}',
    "a surrogate in UTF-8": b'{"state": "NY", "city": "x", "username": "\xed\xa0\x80", "message": ""}',
    "not UTF-8": b'{"state": "NY", "city": "x", "username": "\xff", "message": ""}',
    "overlong UTF-8": b'{"state": "NY", "city": "x", "username": "\xc0\xaf", "message": ""}',
    "UTF-16": json.dumps(row()).encode("utf-16"),
    "Latin-1": json.dumps(row(username="é"), ensure_ascii=False).encode("latin-1"),
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf" + json.dumps(row()).encode(),
    "a number for a string": json.dumps(row(username=1)).encode(),
    "null for a string": json.dumps(row(username=None)).encode(),
    "NaN": b'{"state": NaN, "city": "x", "username": "x", "message": ""}',
    "a huge number": b'{"state": 1e999999, "city": "x", "username": "x", "message": ""}',
    "a million digits": b"[" + b"9" * 1_000_000 + b"]",
    "65 characters": json.dumps(row(username="😀" * 65)).encode(),
    "deep nesting": b"[" * 100_000,
    "deep and closed": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "many fields": b"{" + b",".join(b'"f%d":0' % n for n in range(60_000)) + b"}",
    "a long name": b'{"' + b"n" * 500_000 + b'": 1}',
    "trailing comma": b'{"state": "NY",}',
    "two documents": json.dumps(row()).encode() * 2,
    "a comment": b'/* */ {"state": "NY"}',
    "single quotes": b"{'state': 'NY'}",
    "an unknown field": json.dumps(row(xact=1)).encode(),
    "proto": json.dumps(row(__proto__={})).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_makes_no_sense_is_refused_with_a_reason_by_all(live: Stack, name: str) -> None:
    paths = [(live.ingest, "/v1/messages"), (live.manage, "/v1/runs"), (live.query, "/v1/counts/users/members")]
    before = sql(live.primary, "SELECT count(*) FROM message")
    for service, path in paths:
        status, answer = ask(service, "POST", path, BODIES[name])
        assert 400 <= status < 500, (service.name, status, answer)
        assert answer["type"].startswith("urn:rollcall:") and answer["detail"]
        assert len(json.dumps(answer)) < 5_000, "nobody reads more"
    assert sql(live.primary, "SELECT count(*) FROM message") == before


def test_the_last_of_two_keys_counts_and_a_byte_order_mark_is_skipped(live: Stack) -> None:
    body = b'\xef\xbb\xbf{"username": "first", "state": "NY", "city": "x", "username": "last", "message": ""}\r\n'
    assert ask(live.ingest, "POST", "/v1/messages", body)[0] == 201
    assert sql(live.primary, "SELECT username FROM message ORDER BY id DESC LIMIT 1") == [("last",)]


PACKED = gzip.compress(json.dumps(row()).encode())
ENCODED: dict[str, tuple[bytes, dict[str, str]]] = {
    "a truncated gzip": (PACKED[:-5], {"Content-Encoding": "gzip"}),
    "no gzip": (b"{}", {"Content-Encoding": "gzip"}),
    "a wrong checksum": (PACKED[:-8] + b"\0" * 8, {"Content-Encoding": "gzip"}),
    "something behind it": (PACKED + b"x", {"Content-Encoding": "gzip"}),
    "gzip twice": (gzip.compress(PACKED), {"Content-Encoding": "gzip, gzip"}),
    "another encoding": (b"{}", {"Content-Encoding": "br"}),
    "another charset": (json.dumps(row()).encode("utf-16"), {"Content-Type": "application/json; charset=utf-16"}),
    "no type": (json.dumps(row()).encode(), {"Content-Type": ""}),
    "a strange type": (json.dumps(row()).encode(), {"Content-Type": "application/json;;; =x; charset=\x80"}),
    "a form": (b"username=x", {"Content-Type": "application/x-www-form-urlencoded"}),
    "a multipart form without a boundary": (b"--x", {"Content-Type": "multipart/form-data"}),
    "a key that is none": (json.dumps(row()).encode(), {"Idempotency-Key": "é"}),
    "an empty key": (json.dumps(row()).encode(), {"Idempotency-Key": ""}),
    "a key too long": (json.dumps(row()).encode(), {"Idempotency-Key": "k" * 256}),
}


@pytest.mark.parametrize("name", ENCODED)
def test_headers_that_do_not_fit_are_refused(live: Stack, name: str) -> None:
    body, headers = ENCODED[name]
    status, answer = ask(live.ingest, "POST", "/v1/messages", body, **headers)
    assert 400 <= status < 500 and answer["detail"], (status, answer)


def memory_bytes(service: Web) -> int:
    """The largest that any process of the service has been."""
    process = service.running()
    assert process is not None
    peaks = []
    for each in [process, *process.children(recursive=True)]:
        status = Path(f"/proc/{each.pid}/status").read_text()
        peaks += [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
    return max(peaks)


def test_a_gzip_bomb_costs_no_memory(live: Stack) -> None:
    """4 MB that would be 4 GB: no more than the limit is unpacked, and a part of that is kept."""
    bomb = gzip.compress(b" " * (1 << 20)) * 4096
    before = memory_bytes(live.ingest)
    for path, kind in (("/v1/messages/batch", "application/x-ndjson"), ("/v1/messages", "application/json")):
        headers = {"Content-Encoding": "gzip", "Content-Type": kind}
        status, answer = ask(live.ingest, "POST", path, bomb, **headers)
        assert (status, answer["type"]) == (413, "urn:rollcall:body-too-large")
    assert memory_bytes(live.ingest) - before < 300 << 20


def test_an_object_of_a_million_fields_is_one_bad_row(live: Stack) -> None:
    huge = b"{" + b",".join(b'"f%d":0' % n for n in range(1_000_000)) + b"}"
    body = huge + b"\n" + json.dumps(row(username="beside-a-million")).encode()
    status, answer = ask(live.ingest, "POST", "/v1/messages/batch", body, **{"Content-Type": "application/x-ndjson"})
    assert (status, answer["accepted"], answer["rejected"]) == (200, 1, 1)
    assert len(answer["errors"][0]["detail"]) < 5000


@pytest.mark.parametrize(
    "path",
    [
        "/v1/%00",
        "/v1/../../etc/passwd",
        "/v1/%2e%2e/%2e%2e/etc/passwd",
        "/static/../query_service/settings.py",
        "/static/%2e%2e/%2e%2e/settings.py",
        "/static//etc/passwd",
        "//evil.example/",
        "/v1/counts/%ff",
        "/v1/counts/users%00",
        "/v1/counts/users%2f",
        "/v1/counts/" + "x" * 3000,
        "/v1/runs/%0d%0aSet-Cookie:%20x=1",
        "/v1/runs/*",
        "/v1/runs?limit=-1",
        "/v1/runs?limit=99999999999999999999",
        "/v1/runs?limit=1&limit=x",
        "/v1/counts/users/member?username=%ff",
        "/v1/counts/users/member?" + "&".join(f"a{n}=" for n in range(200)),
        "/v1/counts/users/member?username=a&username=b",
        "/?" + "a" * 3000,
    ],
)
def test_paths_that_lead_nowhere_are_refused_by_all(live: Stack, path: str) -> None:
    for service in (live.ingest, live.manage, live.query):
        for method in ("GET", "POST", "DELETE", "OPTIONS", "PROPFIND"):
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in service.authorization().items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            assert answer.status < 500, (service.name, method, answer.status, body)
            assert not (answer.status == 200 and b"root:" in body)
            assert answer.getheader("Set-Cookie") is None


RAW = [
    b"",
    b"\r\n\r\n",
    b"\0" * 1000,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\nHost: localhost\n\n",
    b"get / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \xff\xfe\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xc3\xa9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("number", range(len(RAW)))
def test_what_is_no_http_ends_in_a_refusal_or_a_closed_connection(live: Stack, number: int) -> None:
    for service in (live.ingest, live.manage, live.query):
        with socket.create_connection(("127.0.0.1", service.port), 10) as raw:
            raw.sendall(RAW[number])
            raw.shutdown(socket.SHUT_WR)
            try:
                answer = raw.recv(65536)
            except ConnectionError:
                answer = b""
        refused = answer == b"" or (answer[:5] == b"HTTP/" and (answer[9:10] in b"24" or answer[9:12] == b"501"))
        assert refused, (service.name, answer[:300])
        assert b"Traceback" not in answer
        assert ask(service, "GET", "/readyz")[0] == 200 if service is not live.manage else service.health() == "ok"


def test_no_service_has_logged_a_fault(live: Stack) -> None:
    """Last of this file: none of all this was more than a refusal."""
    for service in (live.ingest, live.manage, live.query):
        log = service.log.read_text(errors="replace")
        assert "Traceback" not in log, log[max(0, log.index("Traceback") - 500) :][:5000]
