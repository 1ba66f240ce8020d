"""Requests to the services of a stack, with the token of each."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from datetime import datetime
from itertools import count as count_up
from typing import Any

from compose.local.services import Web
from compose.local.stack import Stack
from tests.servers import sql, wait_for


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


def distinct_users(stack: Stack) -> int:
    """What the count has to be."""
    return int(sql(stack.primary, "SELECT count(DISTINCT username) FROM message")[0][0])


class Witness:
    """Within its block somebody asks for the count of users all the time, and judges every answer by what was posted here.

    `queries`: whom it asks in turn. `refused`: answers without a count.

    A count has no member that nobody has sent, and lacks none that had been acknowledged before its `complete_through`.
    It begins with a counter that is exact.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.queries: list[Web] = [stack.query]
        self.answers: list[tuple[int, str]] = []  # a count, and how complete it is
        self.refused: list[str] = []
        self.wrong: list[str] = []
        self._at_first = distinct_users(stack)
        self._sent = 0
        self._acknowledged: list[datetime] = []
        self._stopping = threading.Event()
        self._asker = threading.Thread(target=self._ask_all_the_time, daemon=True)

    def __enter__(self) -> Witness:
        self._asker.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._asker.join()

    def post(self, username: str) -> bool:
        """A user who was not there before; whether the answer says that it was counted."""
        self._sent += 1
        row = {"state": "NY", "city": "Rome", "username": username, "message": ""}
        status, answer = ask(self.stack.ingest, "POST", "/v1/messages", row)
        assert status == 201, answer
        # By the clock of the primary, which is that of `complete_through`.
        self._acknowledged.append(sql(self.stack.primary, "SELECT clock_timestamp()")[0][0])
        return bool(answer["counted"])

    def _ask_all_the_time(self) -> None:
        for turn in count_up():
            if self._stopping.wait(0.02):
                return
            # Query may be away, or be ended in the middle of an answer.
            with contextlib.suppress(OSError, http.client.HTTPException):
                query = self.queries[turn % len(self.queries)]
                status, answer = ask(query, "GET", "/v1/counts/users", **{"Cache-Control": "no-cache"})
                if status == 200:
                    self._judge(answer["count"], answer["complete_through"])
                else:
                    self.refused.append(f"{query.name}: {status} {answer}")

    def _judge(self, number: int, complete_through: str) -> None:
        self.answers.append((number, complete_through))
        through = datetime.fromisoformat(complete_through)
        least = self._at_first + sum(moment < through for moment in list(self._acknowledged))
        most = self._at_first + self._sent
        if not least <= number <= most:
            self.wrong.append(f"{number} through {complete_through}: not from {least} to {most}")
