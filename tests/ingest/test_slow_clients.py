"""Slow clients of ingest, and the memory for their bodies. Hundreds of each kind at once: tests/hostile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import psycopg2
import pytest

from shared_models.web import bodies
from shared_models.web.asgi import Message
from tests.ingest.producing import Producer, message, ndjson, running_loop
from tests.ingest.test_gunicorn import Gunicorn
from tests.servers import DEADLINE_SECONDS, sql, started_primary, wait_for

HEAD = "POST /v1/messages/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"


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


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/batch"])
def test_a_client_that_is_too_slow_is_told_so(producer: Producer, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(bodies, "ARRIVE_SECONDS", 0.1)
    headers = {"Content-Type": "application/json", "Content-Length": "100000"}
    response = producer.ask("POST", path, [b"{"], headers, stays_silent=True)
    assert (response.status_code, response.json()["type"]) == (408, "urn:rollcall:request-timeout")
    assert response["Connection"] == "close"


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


def test_one_who_asks_first_is_told_to_continue(
    producer: Producer, gunicorn: Gunicorn, connect: Callable[[], socket.socket]
) -> None:
    body = ndjson(message())
    asking = connect()
    asking.sendall(f"{HEAD}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
    assert asking.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    asking.sendall(body)
    assert read_answer(asking).startswith(b"HTTP/1.1 200 ")


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
