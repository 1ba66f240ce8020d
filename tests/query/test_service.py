"""The service as in production: gunicorn, its ASGI worker, a socket."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from compose.local.servers import Valkey
from shared_models.web import bodies
from shared_models.web.tokens import make
from tests.query.grouped import FILE, World, declare
from tests.query.rolls_in_redis import Rolls
from tests.query.running import ROOT, Running
from tests.rolling import workers_of
from tests.servers import wait_for


@pytest.fixture(scope="module")
def running(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = Running(valkey.url, tmp_path_factory.mktemp("query"))
    yield service
    service.stop()


class TestOverASocket:
    def test_it_answers_everything_that_there_is(self, running: Running, rolls: Rolls) -> None:
        rolls.make_all_live(cities=3, users=2)
        for path in (
            "/v1/counts",
            "/v1/counts/users",
            "/stats/get/",
            "/readyz",
            "/openapi.json",
            "/docs",
            "/",
            "/metrics",
        ):
            status, headers, body = running.get(path, cache_control="no-cache")
            assert (status, int(headers["content-length"])) == (200, len(body)), path

    def test_P2_counted_means_counted_over_every_worker(self, running: Running, rolls: Rolls) -> None:
        rolls.make_all_live(users=0)
        for n in range(1, 21):
            rolls.record("users", b"user %d" % n)
            _, _, body = running.get("/v1/counts/users", cache_control="no-cache")
            assert json.loads(body)["count"] == n

    def test_a_connection_is_kept_and_understands_304_and_head(self, running: Running, rolls: Rolls) -> None:
        rolls.make_all_live()
        connection = running.connect()
        connection.request("GET", "/v1/counts")
        response = connection.getresponse()
        length, etag = len(response.read()), response.headers["ETag"]
        for _ in range(3):
            connection.request("GET", "/v1/counts", headers={"If-None-Match": etag})
            response = connection.getresponse()
            assert (response.status, response.read()) == (304, b"")
            connection.request("HEAD", "/v1/counts")
            response = connection.getresponse()
            assert (response.status, response.headers["Content-Length"]) == (200, str(length))
            assert response.read() == b""
        connection.close()

    def test_a_stream_follows_the_counts(self, running: Running, rolls: Rolls) -> None:
        rolls.make_all_live(users=2)
        connection = running.connect()
        connection.request("GET", "/v1/stream")
        response = connection.getresponse()
        assert next_counts(response)["counters"]["users"]["count"] == 2
        rolls.record("users", b"one more")
        assert next_counts(response)["counters"]["users"]["count"] == 3
        connection.close()
        response.close()
        wait_for(
            lambda: b"rollcall_query_streams_open 0.0" in running.get("/metrics")[2],
            "the place of the stream to be free",
        )


def next_counts(response: http.client.HTTPResponse) -> Any:
    """The data of the next event; None at the end of the stream."""
    while line := response.readline():
        if line.startswith(b"data: "):
            return json.loads(line.removeprefix(b"data: "))
    return None


def test_groups_and_badges_over_a_socket_and_only_badges_need_no_token(
    valkey: Valkey, rolls: Rolls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch)
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    world = World(rolls)
    world.make_live()
    today = str(datetime.now(ZoneInfo("Europe/Berlin")).date())
    world.record("customers", ((today,), "ann"))
    world.record("customers:state,day(created_at)", (("NY", today), "ann"))
    (tmp_path / "rollcall.toml").write_text(FILE)
    token, line = make("dash")
    service = Running(valkey.url, tmp_path, ROLLCALL_FILE=str(tmp_path / "rollcall.toml"), BADGES="on", TOKENS=line)
    try:
        for path in ("/v1/badge/customers.svg", "/embed/customers?window=7d"):
            assert service.get(path)[0] == 200
        for path in ("/v1/counts/customers?window=7d", "/v1/counts/customers/groups?by=state", "/v1/algebra", "/"):
            assert service.get(path)[0] == 401
        client = importlib.import_module("client").Query(f"http://127.0.0.1:{service.port}", token)
        assert client.count_window("customers", 7).count == 1
        counted = client.count_group("customers", "state,day", "NY", today)
        assert (counted.count, counted.state) == (1, "live")
        described = json.loads(service.get("/openapi.json")[2])["paths"]
        assert described["/v1/badge/{counter}.svg"]["get"]["parameters"]
    finally:
        service.stop()


def test_sigterm_ends_the_streams_and_the_service_in_good_order(valkey: Valkey, rolls: Rolls, tmp_path: Path) -> None:
    rolls.make_all_live()
    service = Running(valkey.url, tmp_path)
    connection = service.connect()
    connection.request("GET", "/v1/stream")
    response = connection.getresponse()
    next_counts(response)
    service.process.send_signal(signal.SIGTERM)
    # Within the time for streams, not that for whatever does not end (graceful_timeout).
    wait_for(lambda: next_counts(response) is None, "the stream to end", seconds=8)
    connection.close()
    response.close()
    assert service.stop() == 0
    assert "Forcing close" not in service.log.read_text()
    assert [left.name for left in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"REDIS_URL": None}, "REDIS_URL"),
        ({"REDIS_URL": "localhost:6379"}, "redis://"),
        ({"REFRESH_SECONDS": "often"}, "REFRESH_SECONDS"),
        ({"MAX_MEMBERS": "0"}, "MAX_MEMBERS"),
    ],
)
def test_a_missing_or_mistyped_variable_ends_the_start_with_one_sentence(
    changed: dict[str, str | None], says: str, tmp_path: Path
) -> None:
    variables = {"PATH": os.environ["PATH"], "REDIS_URL": "redis://127.0.0.1:1/0", "TMPDIR": str(tmp_path), **changed}
    for command in (["gunicorn", "-c", "query_service/gunicorn.conf.py"], ["query_service", "check"]):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={name: value for name, value in variables.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode != 0
        assert says in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_it_runs_without_a_database_driver() -> None:
    program = (
        "import sys; sys.modules['psycopg2'] = sys.modules['psycopg'] = None; import query_service.asgi; "
        "from django.urls import get_resolver; get_resolver().url_patterns; "
        "from django.conf import settings; assert settings.DATABASES == {}; "
        "assert 'shared_models.models' not in sys.modules"
    )
    environment = {"PATH": os.environ["PATH"], "REDIS_URL": "redis://127.0.0.1:1/0"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True, timeout=30)


SECRET = "ann-of-the-log"


@pytest.mark.parametrize("access_log", ["off", "on"])
def test_the_log_holds_nothing_of_what_was_asked(valkey: Valkey, rolls: Rolls, tmp_path: Path, access_log: str) -> None:
    rolls.make_live("users", [SECRET.encode()])
    rolls.make_live("cities", [])
    service = Running(valkey.url, tmp_path, ACCESS_LOG=access_log)
    service.get("/v1/counts", cache_control="no-cache")  # answers are made, in this worker at least
    before = len(service.log.read_text())
    for path, status in (
        (f"/v1/counts/users/member?username={SECRET}", 200),
        (f"/v1/counts/users/member?{SECRET}={SECRET}", 400),
        (f"/{SECRET}?{SECRET}", 404),
        (f"/v1/counts/users?{SECRET}", 400),
        ("/v1/counts/users", 200),
    ):
        got, headers, _ = service.get(path, x_request_id="mine")
        assert (got, headers["x-request-id"]) == (status, "mine")
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as raw:
        raw.sendall(f"GET /?{SECRET} HTTP/9.{SECRET}\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: raw.recv(1000), b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400") and body == b"Invalid HTTP request received."
    service.stop()
    said = service.log.read_text()[before:]
    assert SECRET not in said
    lines = [json.loads(line) for line in said.splitlines()]
    # Without the line of the first request, which was written a moment later.
    answered = [line for line in lines if line["event"] == "request.answered" and line["route"] != "/v1/counts"]
    assert {line["request_id"] for line in answered} == {"mine"}
    # In any order: two workers write. One that has no answers yet reads them, and writes its line in any case.
    lines_of = sorted((line["route"], line["status"]) for line in answered)
    standing, member = "/v1/counts/{counter}", "/v1/counts/{counter}/member"
    others = [(standing, 400), (member, 200), (member, 400), ("none", 404)]
    assert [line for line in lines_of if line != (standing, 200)] == others
    assert access_log == "off" or (standing, 200) in lines_of


def test_standing_answers_leave_a_line_only_where_it_is_asked_for(valkey: Valkey, rolls: Rolls, tmp_path: Path) -> None:
    rolls.make_all_live()
    for access_log, expected in (("off", 0), ("on", 20)):
        (tmp_path / access_log).mkdir()
        service = Running(valkey.url, tmp_path / access_log, ACCESS_LOG=access_log, WORKERS="1")
        service.get("/v1/counts")
        before = len(service.log.read_text())
        for _ in range(20):
            assert service.get("/v1/counts")[0] == 200
        text = service.get("/metrics")[2].decode()
        assert 'rollcall_query_standing_answers_total{route="/v1/counts",service="query",status="200"} 20.0' in text
        assert 'rollcall_request_seconds_count{route="/v1/counts",service="query",status="200"} 1.0' in text
        service.stop()
        said = service.log.read_text()[before:]
        assert said.count('"route":"/v1/counts"') in (expected, expected + 1)  # … and the first, written a moment later


SLOW_CLIENTS = 300


POST = b"POST /v1/counts/users/members HTTP/1.1\r\nHost: localhost\r\n"
UNFINISHED = [
    POST + b"Content-Length: 50\r\n\r\n{}",
    POST + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{}",
]


def test_a_body_that_does_not_come_is_not_waited_for(running: Running) -> None:
    with contextlib.ExitStack() as opened:
        clients = []
        for said in UNFINISHED:
            clients.append(opened.enter_context(socket.create_connection(("127.0.0.1", running.port), 10)))
            clients[-1].sendall(said)
        for client in clients:
            client.settimeout(bodies.ARRIVE_SECONDS + 5)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert (answer.status, json.load(answer)["type"]) == (408, "urn:rollcall:request-timeout")
            assert client.recv(100) == b""


def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_fault_of_ours(
    valkey: Valkey, rolls: Rolls, tmp_path: Path
) -> None:
    service = Running(valkey.url, tmp_path, WORKERS="1")
    for said in (*UNFINISHED, POST + b"Transfer-Encoding: chunked\r\n\r\nrubbish\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), 10) as client:
            client.sendall(said)
            # Until the worker has it: one event loop takes them in order.
            assert service.get("/livez")[0] == 200
    assert b'status="500"' not in service.get("/metrics")[2]
    assert service.stop() == 0
    assert '"status":500' not in service.log.read_text().replace(" ", "")
    assert "internal-error" not in service.log.read_text()


def test_what_is_no_http_is_refused(running: Running) -> None:
    """By the server, with its own message: Rollcall's code has not seen a request."""
    for said in (POST + b"Transfer-Encoding: xchunked\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02"):
        with socket.create_connection(("127.0.0.1", running.port), 10) as client:
            client.sendall(said)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert answer.status == 400


def test_a_reader_that_does_not_read_holds_a_connection_and_no_more(running: Running, rolls: Rolls) -> None:
    rolls.make_all_live()
    large = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
    assert len(running.get(large)[2]) > 1_000_000
    with contextlib.ExitStack() as opened:
        for _ in range(SLOW_CLIENTS):
            client = opened.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", running.port))
            client.sendall(f"GET {large} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert running.get("/v1/counts", cache_control="no-cache")[0] in (200, 503)
        held = sum(memory_of(worker) for worker in workers_of(running.process.pid))
    # Of each client a piece of the file, in the worker and on its way; and not the whole.
    assert held < 2 * (100 << 20) + SLOW_CLIENTS * (1 << 18)


def memory_of(pid: int) -> int:
    """The memory of a process, in bytes."""
    (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) * 1024
