"""A client of an ASGI application in this process: no socket and no server, so that a test can change settings under it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from shared_models.web.asgi import ASGI, Message


class Response:
    """A whole answer."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
        self.status_code, self.content = status, content
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}

    def __getitem__(self, name: str) -> str:
        return self.headers[name.lower()]

    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Asks one thing at a time, in an event loop of its own. To be closed."""

    def __init__(self, application: ASGI, **headers: str) -> None:
        self.application, self.headers = application, {"Host": "localhost", **headers}
        self._runner = asyncio.Runner()

    def get(self, path: str, **headers: str) -> Response:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: str | bytes = b"", content_type: str = "application/json") -> Response:
        return self.request("POST", path, body, **{"Content-Type": content_type})

    def request(self, method: str, path: str, body: str | bytes = b"", **headers: str) -> Response:
        return self._runner.run(self._request(method, path, body.encode() if isinstance(body, str) else body, headers))

    async def _request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Response:
        all_headers = {**self.headers, **headers, **({"Content-Length": str(len(body))} if body else {})}
        raw_path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": raw_path,
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in all_headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if not pending:
                await asyncio.Event().wait()  # the client stays
            return pending.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        await self.application(scope, receive, send)
        start, *pieces = sent
        return Response(start["status"], start["headers"], b"".join(piece.get("body", b"") for piece in pieces))

    def close(self) -> None:
        self._runner.close()
