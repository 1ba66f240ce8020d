"""The least that an ASGI application can do: the same answer to everybody."""

from __future__ import annotations

from typing import Any

# About as long as an answer of query's.
BODY = b'{"counters":' + b"x" * 280 + b"}"
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
}
ANSWER = {"type": "http.response.body", "body": BODY}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Hello."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send(START)
    await send(ANSWER)
