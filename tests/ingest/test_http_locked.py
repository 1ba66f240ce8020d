"""Access to ingest: tokens, request ids, rate limits; and it never reveals secrets, SQL or traces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from redis import Redis
from structlog.testing import CapturingLogger

from ingest_service import asgi
from ingest_service.api.application import Ingest
from shared_models.protocol import keys
from shared_models.web import rate_limits
from shared_models.web.application import Limits
from shared_models.web.rate_limits import RateLimit
from shared_models.web.tokens import Tokens, make
from tests.ingest.producing import Producer, message, ndjson, running_loop
from tests.ingest.test_gunicorn import ROOT, Gunicorn
from tests.servers import DEADLINE_SECONDS, free_port, started_valkey, wait_for

JSON = {"Content_Type": "application/json"}
PLANTED = "planted-Zq7vX2-secret"


class Locked(Gunicorn):
    """The service with a file of tokens."""

    def __init__(self, folder: Path, **env: str) -> None:
        (self.old, old_line), (self.new, self.new_line) = make("till-old"), make("till-new")
        self.tokens = folder / "tokens"
        self.tokens.write_text(old_line)
        super().__init__(folder, AUTH="", TOKENS_FILE=str(self.tokens), WORKERS="1", **env)

    def post(self, token: str, **headers: str) -> tuple[int, bytes]:
        body = json.dumps(message())
        return self.request("POST", "/v1/messages", body, Authorization=f"Bearer {token}", **JSON, **headers)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    running = Locked(tmp_path_factory.mktemp("locked"))
    wait_for(running.ready, "gunicorn to answer")
    yield running
    running.process.terminate()
    running.process.wait(DEADLINE_SECONDS)


def test_who_has_no_token_stores_nothing(producer: Producer, locked: Locked) -> None:
    for authorization in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {locked.old}"}):
        for path in ("/v1/messages", "/v1/messages/batch", "/nowhere", "/metrics"):
            status, answer = locked.request("POST", path, ndjson(message()), **authorization)
            assert (status, json.loads(answer)["type"]) == (401, "urn:rollcall:unauthorized")
    assert producer.rows() == []
    assert locked.post(locked.old)[0] == 201


def test_what_machines_ask_is_open(producer: Producer, locked: Locked) -> None:
    assert {locked.request("GET", path)[0] for path in ("/livez", "/readyz", "/openapi.json", "/docs")} == {200}
    assert "securitySchemes" in json.loads(locked.request("GET", "/openapi.json")[1])["components"]


def test_a_token_is_rotated_while_requests_go_on(producer: Producer, locked: Locked) -> None:
    old = locked.tokens.read_text()
    assert [locked.post(token)[0] for token in (locked.old, locked.new)] == [201, 401]
    locked.tokens.write_text(f"{old}\n{locked.new_line}\n")
    wait_for(lambda: locked.post(locked.new)[0] == 201, "the new token")
    assert locked.post(locked.old)[0] == 201
    locked.tokens.write_text(locked.new_line)
    wait_for(lambda: locked.post(locked.old)[0] == 401, "the old token's end")
    assert locked.post(locked.new)[0] == 201
    locked.tokens.write_text(old)
    wait_for(lambda: locked.post(locked.old)[0] == 201, "the old token")


def test_a_key_belongs_to_the_token_that_sent_it(producer: Producer, locked: Locked) -> None:
    """Two producers number their requests from 1 on, and say the same: both are stored, and each is replayed to its own."""
    old = locked.tokens.read_text()
    locked.tokens.write_text(f"{old}\n{locked.new_line}\n")
    wait_for(lambda: locked.post(locked.new)[0] == 201, "the new token")
    before = len(producer.rows())
    for path, kind, body in (
        ("/v1/messages", "application/json", json.dumps(message())),
        ("/v1/messages/batch?strict=1", "application/x-ndjson", ndjson(message())),
    ):
        headers = {"Content_Type": kind, "Idempotency_Key": "17" + path}
        answers = [
            locked.request("POST", path, body, Authorization=f"Bearer {token}", **headers)
            for token in (locked.old, locked.new, locked.old, locked.new)
        ]
        assert {status for status, _ in answers} <= {200, 201}
        assert answers[0] == answers[2] and answers[1] == answers[3]
    assert len(producer.rows()) == before + 4
    locked.tokens.write_text(old)
    wait_for(lambda: locked.post(locked.new)[0] == 401, "the new token's end")


def test_a_log_line_names_the_token_and_the_request_and_not_what_opens_the_door(
    producer: Producer, locked: Locked
) -> None:
    locked.post(locked.old, X_Request_ID="order-17")
    locked.post(locked.old, X_Request_ID='"}\\n{"event": "forged')
    locked.request("GET", "/nowhere", X_Request_ID="refused-18")
    lines = wait_for(
        lambda: (found := locked.lines()[-3:]) and found[-1].get("request_id") == "refused-18" and found, ""
    )
    assert (lines[0]["token"], lines[0]["request_id"], lines[0]["service"]) == ("till-old", "order-17", "ingest")
    assert len(str(lines[1]["request_id"])) == 16
    assert lines[2]["status"] == 401 and "token" not in lines[2]
    assert locked.old not in locked.log.read_text() and "forged" not in locked.log.read_text()


def test_a_large_body_that_is_not_let_in_takes_no_memory_and_leaves_the_connection(locked: Locked) -> None:
    body, took = b" " * (100 << 20), locked.memory()
    with contextlib.closing(HTTPConnection("127.0.0.1", locked.port, timeout=DEADLINE_SECONDS)) as connection:
        connection.connect()
        kept = connection.sock
        for sent in (body, iter([body])):
            connection.request("POST", "/v1/messages/batch", sent, {"Authorization": "Bearer nobody"})
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Connection"]) == (401, None)
            answer.read()
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        assert connection.sock is kept, "it was told that it may stay, and may"
    assert took() < 30 << 20


@pytest.mark.parametrize("variables", [{"AUTH": ""}, {"AUTH": "on"}, {"TOKENS": "till"}, {"TOKENS": "x" * 40}])
def test_a_service_that_would_be_open_by_accident_does_not_start(tmp_path: Path, variables: dict[str, str]) -> None:
    running = Gunicorn(tmp_path, **variables)
    assert running.process.wait(DEADLINE_SECONDS) != 0
    (line,) = [line for line in running.log.read_text().splitlines() if line]
    assert line.startswith("ingest_service: ") and ("AUTH" in line or "TOKENS" in line)
    assert "x" * 40 not in line


def test_a_start_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "AUTH": ""}
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    refused = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "ingest_service/gunicorn.conf.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0 and "TOKENS" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("service", "variables"),
    [
        ("ingest", {"DATABASE_URL": "postgres://a:b@c/d", "AUTH": "", "TOKENS": make("till")[1]}),
        ("manage", {"DATABASE_URL": "postgres://a:b@c/d", "AUTH": "", "TOKENS": make("till")[1]}),
        ("query", {"AUTH": ""}),
    ],
)
def test_djangos_own_check_of_a_deployment_finds_nothing(service: str, variables: dict[str, str]) -> None:
    production = {"REDIS_URL": "rediss://a:b@c/0", "ALLOWED_HOSTS": "rollcall.example", "HSTS_SECONDS": "31536000"}
    checked = subprocess.run(
        [sys.executable, "-m", f"{service}_service", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **production, **variables},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


def test_nothing_of_the_inside_goes_out(producer: Producer, tmp_path: Path) -> None:
    """The passwords of both stores are planted, and both fail; so are a key, a token and a value."""
    running = Locked(
        tmp_path,
        DATABASE_URL=f"postgres://{PLANTED}-user:{PLANTED}@127.0.0.1:{free_port()}/{PLANTED}-name",
        REDIS_URL=f"redis://{PLANTED}-user:{PLANTED}@127.0.0.1:{free_port()}/0",
        RATE_LIMIT_PER_SECOND="1000",
        SECRET_KEY=PLANTED,
    )
    wait_for(running.ready, "gunicorn to answer")
    answers = b""
    planted = message(username=PLANTED)
    for body in (
        json.dumps(planted),
        f'{{"username": "{PLANTED}"',
        "[" * 100_000,
        json.dumps({**planted, "message": "\0"}),
    ):
        for path in ("/v1/messages", "/v1/messages/batch", "/readyz", f"/v1/messages?password={PLANTED}"):
            for authorization in (running.old, PLANTED):
                headers = {"Authorization": f"Bearer {authorization}", "Idempotency_Key": PLANTED, **JSON}
                status, answer = running.request("GET" if path == "/readyz" else "POST", path, body, **headers)
                assert status in (200, 400, 401, 422, 503)
                answers += answer
    running.process.terminate()
    running.process.wait(DEADLINE_SECONDS)
    for said in (answers.decode(), running.log.read_text()):
        for secret in (PLANTED, running.old, "INSERT", "SELECT", "Traceback"):
            assert secret not in said, said[max(0, said.index(secret) - 300) :][:600]


@pytest.fixture
def ask_often(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Asks several times within one second, with the token `one` or `two`, where 3 requests are allowed; the statuses."""
    known = {name: make(name) for name in ("one", "two")}
    monkeypatch.setattr("shared_models.web.rate_limits.time.time", lambda: 1_800_000_000.5)

    def ask(times: int, name: str = "one", path: str = "/v1/letters", url: str = started_valkey().url) -> list[int]:
        tokens = Tokens(",".join(line for _, line in known.values()))
        rate = RateLimit("ingest", url, 3)
        limited = Producer(producer.redis, Ingest(asgi.django, Limits(tokens=tokens, rate=rate)))
        authorization = {"Authorization": f"Bearer {known[name][0]}"}
        try:
            return [limited.get(path, **authorization).status_code for _ in range(times)]
        finally:
            asyncio.run_coroutine_threadsafe(rate._nodes.aclose(), running_loop()).result()

    return ask


def test_a_token_above_its_limit_waits_and_others_do_not(ask_often: Callable[..., list[int]], redis: Redis) -> None:
    assert ask_often(5) == [404, 404, 404, 429, 429]
    assert ask_often(1) == [429], "other workers count along"
    assert ask_often(1, "two") == [404]
    assert ask_often(5, path="/livez") == [200] * 5
    assert 0 < redis.ttl(keys.of_rate("ingest", "one", 1_800_000_000)) <= 10


def test_without_redis_nobody_is_limited_and_the_log_says_so(
    ask_often: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(rate_limits, "log", log)
    assert ask_often(9, url=f"redis://127.0.0.1:{free_port()}/0") == [404] * 9
    assert [(call.method_name, call.args) for call in log.calls] == [("warning", ("rate.not_limited",))]
