"""Ingest as in production: gunicorn with its configuration, real sockets, bodies that arrive in pieces or break off."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ingest.producing import Producer, message, ndjson
from tests.servers import DEADLINE_SECONDS, free_port, sql, started_primary, started_valkey, wait_for

ROOT = Path(__file__).resolve().parents[2]
HEADERS = {"Content-Type": "application/x-ndjson"}


class Gunicorn:
    """The service in processes of its own."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.port = free_port()
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "ingest_service/gunicorn.conf.py"],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PORT": str(self.port),
                    "TMPDIR": str(folder),
                    "DATABASE_URL": started_primary().url,
                    "REDIS_URL": started_valkey().url,
                    **env,
                },
                stderr=log,
                stdout=log,
            )

    def ready(self) -> bool:
        """It answers; the test fails where it has ended instead."""
        if self.process.poll() is not None:
            pytest.fail(self.log.read_text())
        try:
            return self.request("GET", "/livez")[0] == 200
        except OSError:
            return False

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """A request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_SECONDS)
        named = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)  # type: ignore[arg-type]
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def workers(self) -> list[int]:
        """Its worker processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def memory(self) -> Callable[[], int]:
        """Asks how many bytes of memory its one worker has needed, at most, beyond what it has now."""
        (worker,) = self.workers()

        def most() -> int:
            status = Path(f"/proc/{worker}/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) << 10

        Path(f"/proc/{worker}/clear_refs").write_text("5")  # forget what was
        before = most()
        return lambda: most() - before

    def lines(self) -> list[dict[str, object]]:
        """What it has logged about requests."""
        read = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in read if line["event"] == "request.answered"]


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    running = Gunicorn(tmp_path_factory.mktemp("gunicorn"), WORKERS="2", PULSE_SECONDS="0.1")
    wait_for(running.ready, "gunicorn to answer")
    yield running
    running.process.terminate()
    running.process.wait(DEADLINE_SECONDS)


def test_a_body_in_chunks_is_read_whole(producer: Producer, gunicorn: Gunicorn) -> None:
    pieces = [ndjson(message(f"user{n}", message="x" * 1000)) for n in range(500)]
    status, answer = gunicorn.request("POST", "/v1/messages/batch", iter(pieces))
    assert (status, json.loads(answer)["accepted"]) == (200, 500)
    assert len(producer.rows()) == 500


@pytest.mark.parametrize("chunked", [False, True])
def test_a_batch_that_breaks_off_is_not_stored_in_part(producer: Producer, gunicorn: Gunicorn, chunked: bool) -> None:
    body = ndjson(*(message(f"user{n}") for n in range(10)))
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body) * 2}"
    head = (
        f"POST /v1/messages/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n{length}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=10) as raw:
        raw.sendall(head.encode() + (b"%x\r\n%s\r\n" % (len(body), body) if chunked else body))
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(1000) == b"", "the service has seen the end, and closed"
    assert gunicorn.request("POST", "/v1/messages/batch", ndjson(message("whole")))[0] == 200
    assert producer.usernames() == ["whole"]


def test_a_connection_goes_on_after_a_refusal(producer: Producer, gunicorn: Gunicorn) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gunicorn.port, timeout=5)
    for path, status in (("/v1/letters", 404), ("/v1/messages", 415), ("/v1/messages/batch", 200)) * 20:
        connection.request("POST", path, ndjson(message()), HEADERS)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


def test_one_who_sends_too_much_is_heard_out_and_reads_why(producer: Producer, gunicorn: Gunicorn) -> None:
    for body in (b" " * (20 << 20), iter([b" " * (1 << 20)] * 20)):
        status, answer = gunicorn.request("POST", "/v1/messages", body, Content_Type="application/json")
        assert status == 413
        assert b"the limit is 1048576 bytes" in answer


def test_a_log_line_says_what_was_asked_and_nothing_of_who_asked(producer: Producer, gunicorn: Gunicorn) -> None:
    before = len(gunicorn.lines())
    json_type = {"Content_Type": "application/json"}
    gunicorn.request("POST", "/v1/messages?token=secret", json.dumps(message("ann-of-the-log")), **json_type)
    gunicorn.request("GET", "/ann-of-the-log")
    gunicorn.request("GET", "/livez")

    def written() -> list[Any]:
        # On a busy machine the line of the request before, which sent too much, may come after it.
        return [line for line in gunicorn.lines()[before:] if line["status"] != 413]

    lines = wait_for(lambda: written()[1:] and written(), "two lines")
    # Two workers, each of which writes its lines a moment later: in either order.
    assert sorted((line["method"], line["route"], line["status"]) for line in lines) == [
        ("GET", "none", 404),
        ("POST", "/v1/{collection}", 400),
    ]
    assert not any(word in gunicorn.log.read_text() for word in ("secret", "ann-of-the-log"))
    assert {line["service"] for line in lines} == {"ingest"}, "also in a thread's line"


SECRET = "ann-of-the-log"


def test_the_log_holds_nothing_of_what_was_sent(producer: Producer, gunicorn: Gunicorn) -> None:
    before = len(gunicorn.log.read_text())
    json_type, key = {"Content_Type": "application/json"}, {"Idempotency_Key": SECRET}
    asked = [
        (201, "/v1/messages", json.dumps(message(SECRET)), json_type | key),
        (201, "/v1/messages", json.dumps(message(SECRET)), json_type | key),
        (422, "/v1/messages", json.dumps(message("other")), json_type | key),
        (422, "/v1/messages", json.dumps({**message(), SECRET: SECRET}), json_type),
        (400, "/v1/messages", f'{{"{SECRET}', json_type),
        (200, "/v1/messages/batch", ndjson(message(SECRET), message(SECRET, city="")), {}),
        (422, "/v1/messages/batch?strict=1", ndjson(message(SECRET), message(SECRET * 9)), {}),
        (404, f"/v1/{SECRET}", "", {}),
    ]
    for status, path, body, headers in asked:
        assert gunicorn.request("POST", path, body, X_Request_ID=f"asked-{status}", **headers)[0] == status, path
    with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=10) as raw:
        raw.sendall(f"GET /?{SECRET} HTTP/9.{SECRET}\r\nHost: localhost\r\n\r\n".encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    # Each worker writes its lines a moment later.
    wait_for(lambda: gunicorn.log.read_text()[before:].count('"request.') >= len(asked), "a line of each")
    wait_for(lambda: "Invalid HTTP request" in gunicorn.log.read_text()[before:], "the server's own line")
    said = gunicorn.log.read_text()[before:]
    assert SECRET not in said
    lines = [json.loads(line) for line in said.splitlines()]
    assert all(line["request_id"] == f"asked-{line['status']}" for line in lines if line["event"] == "request.answered")


def test_what_is_no_http_is_refused_and_its_connection_closed(gunicorn: Gunicorn) -> None:
    for sent in (b"what is this?\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nno header\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=10) as raw:
            raw.sendall(sent)
            answer = b"".join(iter(lambda: raw.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request")


def test_the_servers_own_lines_look_like_all_others(gunicorn: Gunicorn) -> None:
    with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=10) as raw:
        raw.sendall(b"what is this?\r\n\r\n")
    wait_for(lambda: "Invalid HTTP request received." in gunicorn.log.read_text(), "a line")
    lines = [json.loads(line) for line in gunicorn.log.read_text().splitlines()]
    assert any(line["event"].startswith("Invalid HTTP") and line["service"] == "ingest" for line in lines)


def test_the_metrics_are_those_of_all_workers(producer: Producer, gunicorn: Gunicorn) -> None:
    def total() -> float:
        text = gunicorn.request("GET", "/metrics")[1].decode()
        found = re.search(r'rollcall_ingest_rows_total\{collection="messages"\} (\S+)', text)
        return float(found[1]) if found else 0.0

    before = total()
    for _ in range(20):
        assert gunicorn.request("POST", "/v1/messages/batch", ndjson(message(), message()))[0] == 200
    assert [total() for _ in range(5)] == [before + 40] * 5


def test_an_idle_service_has_a_pulse(producer: Producer, gunicorn: Gunicorn) -> None:
    def xact() -> int:
        return int(sql(started_primary(), "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0])

    before = xact()
    wait_for(lambda: xact() >= before + 4, "a few commits of nothing")


def test_many_clients_at_once_are_all_answered(producer: Producer, gunicorn: Gunicorn) -> None:
    answers: list[tuple[int, bytes]] = []

    def send(client: int) -> None:
        for number in range(10):
            body = json.dumps(message(f"u{client}-{number}"))
            answers.append(gunicorn.request("POST", "/v1/messages", body, Content_Type="application/json"))

    threads = [threading.Thread(target=send, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [201] * 80
    assert len({json.loads(body)["id"] for _, body in answers}) == 80
    assert producer.members("users") == {f"u{client}-{number}".encode() for client in range(8) for number in range(10)}


def test_a_killed_worker_is_replaced_and_a_terminated_service_ends(producer: Producer, tmp_path: Path) -> None:
    running = Gunicorn(tmp_path, WORKERS="1")
    wait_for(running.ready, "gunicorn to answer")
    for worker in running.workers():
        os.kill(worker, signal.SIGKILL)
    wait_for(running.ready, "another worker to answer")
    assert running.request("POST", "/v1/messages/batch", ndjson(message()))[0] == 200
    kept = http.client.HTTPConnection("127.0.0.1", running.port)
    kept.request("GET", "/livez")
    kept.getresponse().read()
    running.process.terminate()
    assert running.process.wait(DEADLINE_SECONDS) == 0
    kept.close()


def test_a_service_without_a_setting_does_not_start_and_says_so_once(tmp_path: Path) -> None:
    running = Gunicorn(tmp_path, MAX_BATCH_ROWS="many")
    assert running.process.wait(DEADLINE_SECONDS) != 0
    (line,) = [line for line in running.log.read_text().splitlines() if line]
    assert line.startswith('ingest_service: Environment variable "MAX_BATCH_ROWS" invalid')


def test_a_chunk_that_is_none_is_refused_and_nothing_is_stored(producer: Producer, gunicorn: Gunicorn) -> None:
    head = b"POST /v1/messages/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    with socket.create_connection(("127.0.0.1", gunicorn.port), timeout=10) as raw:
        raw.sendall(head + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n{}\r\n0\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    assert sql(started_primary(), "SELECT count(*) FROM message") == [(0,)]
