"""What a test of ingest does and sees: requests go in, rows and members are looked up where they should be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from django.http import HttpResponse
from django.test import Client
from redis import Redis

from shared_models.protocol import keys, states
from tests.servers import sql, started_primary

NDJSON = "application/x-ndjson"


def message(username: str = "ann", state: str = "NY", city: str = "New York", message: str = "hello") -> dict[str, str]:
    """A valid message."""
    return {"state": state, "city": city, "username": username, "message": message}


def ndjson(*rows: Any) -> bytes:
    """The rows, a line each, as a client that writes UTF-8 would send them."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@dataclass
class Producer:
    """Sends requests to the application, in this process and thread."""

    redis: Redis

    def __post_init__(self) -> None:
        self.client = Client(raise_request_exception=False, SERVER_NAME="localhost")

    def post(
        self, path: str, body: bytes | Any, content_type: str = "application/json", **headers: str
    ) -> HttpResponse:
        """POST; `headers` with _ for -. What is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        # Said here as well, because Django's client leaves it out where the body is empty.
        named = {"Content-Type": content_type} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(path, data, content_type=content_type, headers=named)

    def send(self, row: Any, **headers: str) -> HttpResponse:
        """One message."""
        return self.post("/v1/messages", row, **headers)

    def send_batch(self, *rows: Any, query: str = "", **headers: str) -> HttpResponse:
        """Many, as NDJSON."""
        return self.post(f"/v1/messages/batch{query}", ndjson(*rows), NDJSON, **headers)

    def rows(self) -> list[tuple[str, ...]]:
        """What the table holds, in the order of insertion."""
        return sql(started_primary(), "SELECT state, city, username, message FROM message ORDER BY id")

    def usernames(self) -> list[str]:
        """The same, one field."""
        return [row[2] for row in self.rows()]

    def members(self, counter: str) -> set[bytes]:
        """What the counter's set holds."""
        return set(self.redis.smembers(keys.of_counter(counter).members))

    def state(self, counter: str) -> states.State:
        """What Redis knows of the counter."""
        return states.read_state(self.redis, counter)
