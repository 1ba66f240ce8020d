"""Requests to the services of a stack, with the token that each wants."""

from __future__ import annotations

import http.client
import json
from typing import Any

from compose.services import Web
from compose.stack import Stack
from tests.servers import wait_for


def ask(service: Web, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of one request; a body that is not bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(
            method, path, raw, {"Content-Type": "application/json", **service.authorization(), **headers}
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def count(stack: Stack, name: str = "users") -> int | None:
    """What query says now, read from Redis; None where it says that it cannot say."""
    status, answer = ask(stack.query, "GET", f"/v1/counts/{name}", **{"Cache-Control": "no-cache"})
    return answer["count"] if status == 200 and answer["state"] == "live" else None


def mend(stack: Stack) -> None:
    """Repair every counter, and look again: tests that share a stack leave rows deleted."""
    for mode in ("repair", "check"):
        run = ask(stack.manage, "POST", "/v1/runs", {"mode": mode})[1]
        path = f"/v1/runs/{run['id']}"
        wait_for(lambda path=path: ask(stack.manage, "GET", path)[1]["finished_at"], f"the {mode}", seconds=60)  # type: ignore[misc]
