"""A minimal ASGI application: the same answer to every request."""

from __future__ import annotations

from typing import Any

# About as long as one of query's answers.
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
        await live(receive, send)
        return
    await send(START)
    await send(ANSWER)


async def live(receive: Any, send: Any) -> None:
    """ASGI's lifespan protocol, of an application that has nothing to begin or to end."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
