"""The floor of a service in front of COPY: the body is COPY's own text, and goes to Postgres unread.

It checks nothing and counts nothing. Its time beyond COPY's is HTTP, on the processors that COPY needs, too.
"""

from __future__ import annotations

import asyncio
import os
from io import BytesIO
from threading import local
from typing import Any

import psycopg2

from loadtest.bench.peers.hello import live

COPY_SQL = "COPY message (state, city, username, message) FROM STDIN"

_thread = local()


def connection() -> Any:
    """The connection of this thread."""
    if not hasattr(_thread, "connection"):
        _thread.connection = psycopg2.connect(os.environ["DATABASE_URL"])
        _thread.connection.autocommit = True
    return _thread.connection


def copy(lines: bytearray) -> int:
    """Store them; how many rows they were."""
    with connection().cursor() as cursor:
        cursor.copy_expert(COPY_SQL, BytesIO(lines), 1 << 18)
        return int(cursor.rowcount)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Every request is a batch."""
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    body, message = bytearray(), {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    answer = b'{"accepted":%d,"counted":false}' % await asyncio.to_thread(copy, body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
