"""Slow and hostile clients on real sockets: each kind holds a connection, and normal requests go on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import psycopg2
import pytest

from shared_models.web import bodies
from shared_models.web.asgi import Message
from tests.ingest.producing import Producer, message, ndjson, running_loop
from tests.ingest.test_gunicorn import Gunicorn
from tests.servers import DEADLINE_SECONDS, sql, started_primary, wait_for

SLOW_CLIENTS = 800
# A request among all of them takes milliseconds; an event loop that waited for one of them would take this long.
NORMAL_SECONDS = 5.0

HEAD = "POST /v1/messages/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
SCRIPT = b"GET /static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js HTTP/1.1\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module", autouse=True)
def many_descriptors() -> None:
    """Of this process: a connection is one."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    running = Gunicorn(tmp_path_factory.mktemp("gunicorn"), WORKERS="1")
    wait_for(running.ready, "gunicorn to answer")
    yield running
    running.process.terminate()
    running.process.wait(DEADLINE_SECONDS)


@pytest.fixture
def connect(gunicorn: Gunicorn) -> Iterator[Callable[[], socket.socket]]:
    """A factory of connections, closed at the end."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(socket.create_connection(("127.0.0.1", gunicorn.port), DEADLINE_SECONDS))


def silent(number: int) -> bytes:
    return b""


def in_the_head(number: int) -> bytes:
    return HEAD.encode()[: 1 + number % 100]


def in_the_body(number: int) -> bytes:
    return f"{HEAD}Content-Length: 100000\r\n\r\n{{".encode()


def in_a_chunk(number: int) -> bytes:
    return f"{HEAD}Transfer-Encoding: chunked\r\n\r\nffff\r\n{{".encode()


def in_tiny_chunks(number: int) -> bytes:
    return f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\n \r\n" * 1_000


def after_half_a_megabyte(number: int) -> bytes:
    return f"{HEAD}Content-Length: 9000000\r\n\r\n".encode() + b" " * (1 << 19) if number < 50 else silent(number)


def before_more_than_can_be_counted(number: int) -> bytes:
    """Nobody reads the body of such a question."""
    return LIVEZ + b"Content-Length: 1000000000000000000\r\n\r\n"


def not_reading(number: int) -> bytes:
    """Files of more than a megabyte, one after the other: more than a socket holds."""
    return (SCRIPT + b"Host: localhost\r\n\r\n") * 10 if number < 100 else silent(number)


def not_closing(number: int) -> bytes:
    return LIVEZ + b"Connection: close\r\n\r\n"


KINDS = [
    *(silent, in_the_head, in_the_body, in_a_chunk, in_tiny_chunks, after_half_a_megabyte),
    *(before_more_than_can_be_counted, not_reading, not_closing),
]


@pytest.mark.parametrize("say", KINDS, ids=lambda f: f.__name__)
def test_hundreds_of_slow_clients_hold_nobody_up(
    producer: Producer, gunicorn: Gunicorn, connect: Callable[[], socket.socket], say: Callable[[int], bytes]
) -> None:
    workers, took = gunicorn.workers(), []
    for number in range(SLOW_CLIENTS):
        connect().sendall(say(number))
    for number in range(20):
        began = time.monotonic()
        body = json.dumps(message(f"normal-{number}"))
        assert gunicorn.request("POST", "/v1/messages", body, Content_Type="application/json")[0] == 201
        took.append(time.monotonic() - began)
    # The first ones wait until what has just been sent is read.
    assert sorted(took)[len(took) // 2] < NORMAL_SECONDS
    assert gunicorn.workers() == workers


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batch"])
def test_a_client_that_is_too_slow_is_told_so(producer: Producer, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(bodies, "ARRIVE_SECONDS", 0.1)
    headers = {"Content-Type": "application/json", "Content-Length": "100000"}
    response = producer.ask("POST", path, [b"{"], headers, stays_silent=True)
    assert (response.status_code, response.json()["type"]) == (408, "urn:rollcall:request-timeout")
    assert response["Connection"] == "close"


def test_many_large_uploads_at_once_are_held_within_a_limit_and_the_others_read_why(
    producer: Producer, gunicorn: Gunicorn
) -> None:
    workers, took = gunicorn.workers(), gunicorn.memory()
    body, answers = b" " * (60 << 20), []
    together = threading.Barrier(8)

    def send() -> None:
        together.wait()
        answers.append(gunicorn.request("POST", "/v1/messages/batch", body))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {json.loads(answer)["type"] for _, answer in answers}
    assert len(answers) == 8
    assert found <= {"urn:rollcall:empty-body", "urn:rollcall:no-room"}
    assert "urn:rollcall:empty-body" in found
    assert took() < 2 * bodies.HELD_BYTES
    assert gunicorn.workers() == workers
    assert gunicorn.request("POST", "/v1/messages/batch", ndjson(message()))[0] == 200


def test_what_is_being_answered_takes_room_from_what_arrives(producer: Producer) -> None:
    """A batch waits in a thread for a lock; another one is too much until that one is answered."""
    batch = [message(f"user{n}", message="x" * 1000) for n in range(1_200)]
    producer.application.bodies.most_bytes = 2 << 20
    answers = []
    first = threading.Thread(target=lambda: answers.append(producer.send_batch(*batch).status_code), daemon=True)
    with contextlib.closing(psycopg2.connect(started_primary().url)) as other:
        other.cursor().execute("LOCK TABLE message IN EXCLUSIVE MODE")
        first.start()
        wait_for(lambda: sql(started_primary(), "SELECT 1 FROM pg_locks WHERE NOT granted"), "a batch to wait")
        response = producer.send_batch(*batch)
        assert (response.status_code, response.json()["type"]) == (503, "urn:rollcall:no-room")
        assert response["Retry-After"] == "2"
    first.join()
    assert answers == [200]
    assert producer.send_batch(*batch).status_code == 200
    assert len(producer.rows()) == 2_400


def test_while_blanks_are_unpacked_and_looked_at_others_are_answered(producer: Producer, gunicorn: Gunicorn) -> None:
    """An array of 60 MB of blanks is 58 kB of gzip."""
    packed, answers = gzip.compress(b"[7" + b" " * (60 << 20) + b"]"), []
    hostile = {"Content_Type": "application/json", "Content_Encoding": "gzip"}
    threads = [
        threading.Thread(
            target=lambda: answers.append(gunicorn.request("POST", "/v1/messages/batch", packed, **hostile))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        assert gunicorn.request("GET", "/livez")[0] == 200
        assert time.monotonic() - began < NORMAL_SECONDS
    assert [(status, json.loads(answer)["rejected"]) for status, answer in answers] == [(200, 1)] * 3


def test_a_request_that_comes_byte_by_byte_is_answered_like_any_other(
    producer: Producer, gunicorn: Gunicorn, connect: Callable[[], socket.socket]
) -> None:
    body = ndjson(message("in-pieces"))
    chunked = b"%x\r\n%s\r\n" % (len(body[:20]), body[:20]) + b"%x;x=y\r\n%s\r\n" % (len(body[20:]), body[20:])
    plain = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    both = [plain, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + chunked + b"0\r\nX-Trailer: 1\r\n\r\n"]
    kept = connect()
    for request in both * 2:
        for byte in request:
            kept.sendall(bytes([byte]))
        assert read_answer(kept).startswith(b"HTTP/1.1 200 ")
    assert len(producer.rows()) == 4


def test_requests_that_come_together_are_answered_one_after_the_other(
    producer: Producer, gunicorn: Gunicorn, connect: Callable[[], socket.socket]
) -> None:
    body = ndjson(message())
    request = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    kept = connect()
    kept.sendall(request * 5 + request[:50])
    answers = [read_answer(kept) for _ in range(5)]
    kept.sendall(request[50:])
    answers.append(read_answer(kept))
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert len(producer.rows()) == 6


def test_one_who_asks_first_is_told_to_continue(
    producer: Producer, gunicorn: Gunicorn, connect: Callable[[], socket.socket]
) -> None:
    body = ndjson(message())
    asking = connect()
    asking.sendall(f"{HEAD}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
    assert asking.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    asking.sendall(body)
    assert read_answer(asking).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 300000000000\r\n\r\n", b"413"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"400"),
        (b"Content-Length: -5\r\n\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", b"400"),
        (b"Transfer-Encoding: gzip\r\n\r\n", b"400"),
        (b"Content-Length: 1000000000000000000\r\n\r\n", b"413"),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
        (b"Bad Header: 1\r\n\r\n", b"400"),
        (b"NUL: \x00\r\n\r\n", b"400"),
    ],
)
def test_tricks_with_the_head_are_refused_at_once(
    gunicorn: Gunicorn, connect: Callable[[], socket.socket], head: bytes, status: bytes
) -> None:
    tricky = connect()
    with contextlib.suppress(ConnectionError):
        tricky.sendall(HEAD.encode() + head)
    began = time.monotonic()
    answer = tricky.recv(1000)
    assert answer.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status)), answer
    assert time.monotonic() - began < NORMAL_SECONDS


def test_large_batches_at_once_are_stored_whole(producer: Producer, gunicorn: Gunicorn) -> None:
    body = ndjson(*(message(f"user{n}", message="x" * 1000) for n in range(10_000)))
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(gunicorn.request("POST", "/v1/messages/batch", body)[0]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert len(producer.rows()) == 40_000


def read_answer(connection: socket.socket) -> bytes:
    """One answer, by its length."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = connection.recv(1)
        assert more, answer
        answer += more
    head = answer.lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while length:
        more = connection.recv(length)
        answer, length = answer + more, length - len(more)
    return answer


@pytest.mark.parametrize(
    ("pieces", "headers", "status"),
    [
        ([b"{" * 70_000], {"Content-Length": "100000"}, 408),
        ([b"{" * 70_000] * 20, {"Transfer-Encoding": "chunked"}, 413),
        ([b"{" * 70_000], {}, 400),
    ],
    ids=["too slow", "too large", "no JSON"],
)
def test_a_body_is_not_held_when_its_request_has_ended(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], headers: dict[str, str], status: int
) -> None:
    monkeypatch.setattr(bodies, "ARRIVE_SECONDS", 0.1)
    named = {"Content-Type": "application/json", **headers}
    silent = "Content-Length" in headers
    assert producer.ask("POST", "/v1/messages", pieces, named, stays_silent=silent).status_code == status
    assert producer.application.bodies.held_bytes == 0


def test_the_body_of_a_client_that_has_gone_is_not_held(producer: Producer) -> None:
    came: list[Message] = [
        {"type": "http.request", "body": b"{" * 70_000, "more_body": True},
        {"type": "http.disconnect"},
    ]
    held: list[int] = []

    async def receive() -> Message:
        held.append(producer.application.bodies.held_bytes)
        return came.pop(0)

    async def send(message: Message) -> None:
        pytest.fail("nobody is there to be answered")

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/v1/messages", "query_string": b"", "headers": headers}
    asyncio.run_coroutine_threadsafe(producer.application(scope, receive, send), running_loop()).result(
        DEADLINE_SECONDS
    )
    assert (held, producer.application.bodies.held_bytes) == ([0, 70_000], 0)
