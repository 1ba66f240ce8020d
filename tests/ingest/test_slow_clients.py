"""Slow clients, hundreds of them, on real sockets: each kind holds what it can, and normal requests go on meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from shared_models.http import arriving
from tests.ingest.producing import Producer, message, ndjson
from tests.ingest.test_gunicorn import Gunicorn
from tests.servers import DEADLINE_SECONDS, sql, started_primary, wait_for

# Many times as many as there are threads.
SLOW_CLIENTS = 300
# A request among all of them takes milliseconds; a thread or a loop that waited for one of them would take this long.
NORMAL_SECONDS = 5.0

HEAD = "POST /v1/messages/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    running = Gunicorn(tmp_path_factory.mktemp("gunicorn"), WORKERS="1", THREADS="4")
    wait_for(running.ready, "gunicorn to answer")
    yield running
    running.process.terminate()
    running.process.wait(DEADLINE_SECONDS)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    """A factory of a service of one's own, with other settings."""
    every: list[Gunicorn] = []

    def start(**env: str) -> Gunicorn:
        every.append(Gunicorn(tmp_path, WORKERS="1", **env))
        wait_for(every[-1].ready, "gunicorn to answer")
        return every[-1]

    yield start
    for running in every:
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


def after_half_a_megabyte(number: int) -> bytes:
    return f"{HEAD}Content-Length: 9000000\r\n\r\n".encode() + b" " * (1 << 19) if number < 50 else silent(number)


def where_a_chunk_ends_for_some(number: int) -> bytes:
    """gunicorn goes on looking for the end, which has to be CRLF."""
    return f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0\n\n".encode()


def before_more_than_can_be_counted(number: int) -> bytes:
    """Nobody reads the body of such a question."""
    return b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000000000\r\n\r\n"


def not_closing(number: int) -> bytes:
    return b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "say",
    [
        silent,
        in_the_head,
        in_the_body,
        in_a_chunk,
        after_half_a_megabyte,
        where_a_chunk_ends_for_some,
        before_more_than_can_be_counted,
        not_closing,
    ],
    ids=lambda f: f.__name__,
)
def test_hundreds_of_slow_clients_hold_nobody_up(
    producer: Producer, gunicorn: Gunicorn, connect: Callable[[], socket.socket], say: Callable[[int], bytes]
) -> None:
    for number in range(SLOW_CLIENTS):
        connect().sendall(say(number))
    took = []
    for number in range(20):
        began = time.monotonic()
        body = json.dumps(message(f"normal-{number}"))
        assert gunicorn.request("POST", "/v1/messages", body, Content_Type="application/json")[0] == 201
        took.append(time.monotonic() - began)
    assert max(took) < NORMAL_SECONDS


def test_more_connections_than_there_is_room_for_push_out_the_oldest(
    producer: Producer, gunicorn: Gunicorn, connect: Callable[[], socket.socket]
) -> None:
    oldest = connect()
    oldest.sendall(in_the_head(50))
    for number in range(1_100):
        connect().sendall(in_the_head(number))
    assert gunicorn.request("POST", "/v1/messages/batch", ndjson(message()))[0] == 200
    assert oldest.recv(100) == b""


@pytest.mark.parametrize(
    "say", [b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["arriving", "kept"]
)
def test_a_client_that_speaks_just_when_its_place_is_taken_ends_nobody(
    started: Callable[..., Gunicorn], say: bytes
) -> None:
    """One look at the sockets finds a new connection, and something to read on the one that has to go for it."""
    running = started(THREADS="1", GUNICORN_CMD_ARGS="--worker-connections=6")
    (worker,) = running.workers()

    def accepted() -> int:
        sockets = psutil.Process(worker).net_connections("tcp")
        return sum(each.laddr.port == running.port and each.status != psutil.CONN_LISTEN for each in sockets)

    wait_for(lambda: accepted() == 0, "whoever asked whether it is ready to be gone")
    with contextlib.ExitStack() as opened:
        clients = [
            opened.enter_context(socket.create_connection(("127.0.0.1", running.port), DEADLINE_SECONDS))
            for _ in range(5)
        ]
        for client in clients:
            client.sendall(say)
            if say.endswith(b"\r\n\r\n"):
                assert read_answer(client).startswith(b"HTTP/1.1 200 ")
        wait_for(lambda: accepted() == 5, "all to be accepted")
        os.kill(worker, signal.SIGSTOP)
        try:
            opened.enter_context(socket.create_connection(("127.0.0.1", running.port), DEADLINE_SECONDS))
            for client in clients:
                client.sendall(b"G")
        finally:
            os.kill(worker, signal.SIGCONT)
        with contextlib.suppress(ConnectionResetError):  # what it has just said was not read
            assert clients[0].recv(100) == b"", "the one that has been there longest has gone"
    assert running.request("GET", "/livez")[0] == 200
    assert running.workers() == [worker]


def test_a_client_that_is_too_slow_is_told_so(gunicorn: Gunicorn, connect: Callable[[], socket.socket]) -> None:
    slow = connect()
    slow.sendall(in_the_body(0))
    slow.settimeout(arriving.ARRIVE_SECONDS + 5)
    assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_its_answers_holds_no_other_up(
    producer: Producer, gunicorn: Gunicorn, connect: Callable[[], socket.socket]
) -> None:
    """More than its socket takes: gunicorn waits for it in a thread, for CLIENT_SECONDS."""
    rows = b"{}\n" * 20_000
    request = f"{HEAD}Content-Length: {len(rows)}\r\n\r\n".encode() + rows
    for _ in range(2):
        connect().sendall(request)
    assert gunicorn.request("POST", "/v1/messages/batch", ndjson(message()))[0] == 200


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
        (b"X: " + b"x" * (70 << 10), b"431"),
        (b"Content-Length: 300000000000\r\n\r\n", b"413"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"400"),
        (b"Content-Length: -5\r\n\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n\r\n0\n\n", b"400"),
        (b"Transfer-Encoding: gzip\r\n\r\n", b"400"),
        (b"Content-Length: 1000000000000000000\r\n\r\n", b"413"),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", b"413"),
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


def test_large_bodies_lie_on_the_disk_and_not_in_the_memory(producer: Producer, gunicorn: Gunicorn) -> None:
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


def test_a_large_body_of_which_the_rest_cannot_be_read_is_forgotten_where_it_lies(
    gunicorn: Gunicorn, connect: Callable[[], socket.socket]
) -> None:
    """It has arrived, but gunicorn stops at its first chunk."""
    took, client = gunicorn.memory(), connect()
    client.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1;=\r\n \r\n{100 << 20:x}\r\n".encode())
    client.sendall(b" " * (100 << 20) + b"\r\n0\r\n\r\n")
    assert read_answer(client).startswith(b"HTTP/1.1 400 ")
    assert client.recv(1) == b"", "closed"
    assert took() < 30 << 20


@pytest.mark.parametrize("beyond", [1_000, 3 << 20], ids=["with the last bytes", "long before"])
def test_a_body_that_the_disk_has_no_room_for_is_refused_and_nobody_else(
    producer: Producer, gunicorn: Gunicorn, beyond: int
) -> None:
    (worker,) = gunicorn.workers()
    limits = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        status, answer = gunicorn.request("POST", "/v1/messages/batch", b" " * ((1 << 20) + beyond))
    finally:
        resource.prlimit(worker, resource.RLIMIT_FSIZE, limits)
    assert (status, json.loads(answer)["type"]) == (503, "urn:rollcall:no-room")
    assert gunicorn.request("POST", "/v1/messages/batch", ndjson(message()))[0] == 200
    assert gunicorn.workers() == [worker]


def test_what_is_being_answered_takes_room_from_what_arrives(
    producer: Producer, started: Callable[..., Gunicorn]
) -> None:
    """A batch waits in a thread for a lock; another one is too much until that one is answered."""
    # The first batch waits for as long as the second one takes, however busy the machine is.
    patient = dict.fromkeys(("DATABASE_LOCK_SECONDS", "DATABASE_STATEMENT_SECONDS", "DATABASE_ANSWER_SECONDS"), "0")
    running = started(THREADS="2", GUNICORN_CMD_ARGS="--worker-class=tests.ingest.cramped.Worker", **patient)
    body = ndjson(*(message(f"user{n}", message="x" * 1000) for n in range(1_200)))
    answers = []
    first = threading.Thread(
        target=lambda: answers.append(running.request("POST", "/v1/messages/batch", body)[0]), daemon=True
    )
    with contextlib.closing(psycopg2.connect(started_primary().url)) as other:
        other.cursor().execute("LOCK TABLE message IN EXCLUSIVE MODE")
        first.start()
        wait_for(lambda: sql(started_primary(), "SELECT 1 FROM pg_locks WHERE NOT granted"), "a batch to wait")
        status, answer = running.request("POST", "/v1/messages/batch", body)
        assert (status, json.loads(answer)["type"]) == (503, "urn:rollcall:no-room")
    first.join()
    assert answers == [200]
    # The answer is sent a moment before its room is given back.
    wait_for(lambda: running.request("POST", "/v1/messages/batch", body)[0] == 200, "room again")
    assert len(producer.rows()) == 2_400


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
