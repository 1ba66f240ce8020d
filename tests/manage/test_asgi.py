"""The application in front of manage's Django: who has access, and what it answers without Django."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from manage_service.asgi import make_application
from shared_models.web.tokens import make, open_tokens
from tests.asgi import Client
from tests.manage.serving import CONFIGURATION, ROOT, Gunicorn
from tests.manage.world import World
from tests.servers import wait_for

TOKEN, LINE = make("operator")


@pytest.fixture
def locked() -> Iterator[Client]:
    """A client of a service that asks for tokens, and brings none."""
    with override_settings(AUTH="", TOKENS=open_tokens("", LINE, None)):
        client = Client(make_application())
        yield client
        client.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/status"),
        ("GET", "/v1/drift"),
        ("GET", "/v1/runs"),
        ("POST", "/v1/runs"),
        ("GET", "/v1/runs/last"),
        ("POST", "/v1/runs/last/cancel"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
        ("GET", "//v1/status"),
        ("GET", "/docs/"),
    ],
)
def test_without_a_token_nothing_is_told(world: World, locked: Client, method: str, path: str) -> None:
    answer = locked.request(method, path)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, 'Bearer realm="rollcall"')
    assert answer.json()["type"] == "urn:rollcall:unauthorized"
    wrong = locked.request(method, path, Authorization="Bearer rollcall_wrong")
    assert wrong.status_code == 401 and "not valid" in wrong.json()["detail"]
    assert locked.request(method, path, Authorization=f"Bearer {TOKEN}").status_code != 401


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/livez", "/readyz", "/static/manage/console.js"])
def test_pages_and_health_need_no_token(world: World, locked: Client, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_the_description_says_that_tokens_are_asked_for(locked: Client) -> None:
    document = locked.get("/openapi.json").json()
    asked = document["paths"]["/v1/runs"]["post"]
    assert asked["security"] == [{"token": []}] and "401" in asked["responses"]
    with override_settings(TOKENS=None):
        asked = locked.get("/openapi.json").json()["paths"]["/v1/runs"]["post"]
    assert not asked["security"] and "401" not in asked["responses"]


def test_more_requests_than_the_limit_are_refused(world: World, tmp_path: Path) -> None:
    running = Gunicorn(tmp_path, RATE_LIMIT_PER_SECOND="2")
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)

    def refused() -> dict[str, Any] | None:
        connection.request("GET", "/v1/runs")
        answer = connection.getresponse()
        body = json.load(answer)
        return {**body, **answer.headers} if answer.status == 429 else None

    try:
        refusal = wait_for(refused, "a third request within one second")
        assert refusal["limit_per_second"] == 2 and refusal["retry-after"] == "1"
    finally:
        connection.close()
        running.stop()


def test_a_host_that_is_not_ours_is_not_answered(client: Client) -> None:
    answer = client.get("/v1/status", Host="elsewhere.example")
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:rollcall:bad-request")


def test_every_answer_carries_the_id_of_its_request_and_tells_a_browser_to_run_nothing(
    world: World, client: Client
) -> None:
    for path in ("/", "/v1/runs", "/v1/runs/none", "/nowhere", "/readyz", "/metrics", "/static/manage/console.js"):
        answer = client.get(path, **{"X-Request-ID": "mine-7"})
        assert answer["X-Request-ID"] == "mine-7"
        assert answer["X-Content-Type-Options"] == "nosniff", path
    for path in ("/", "/docs", "/v1/runs", "/nowhere", "/static/manage/console.js"):  # Django's, pages among them
        answer = client.get(path)
        assert answer["X-Frame-Options"] == "DENY" and "default-src 'none'" in answer["Content-Security-Policy"]
    assert len(client.get("/livez", **{"X-Request-ID": "not fit for a log"})["X-Request-ID"]) == 16


def test_a_service_without_tokens_does_not_start_unless_it_is_told_to() -> None:
    with override_settings(AUTH="", TOKENS=None), pytest.raises(ImproperlyConfigured, match="it has no TOKENS"):
        make_application()
    environment = {name: value for name, value in os.environ.items() if name != "AUTH"}
    said = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", CONFIGURATION],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert said.returncode != 0 and "it has no TOKENS" in said.stderr and "Traceback" not in said.stderr
