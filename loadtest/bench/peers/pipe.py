"""The least that a service in front of COPY can do: the body is COPY's own text, and goes to Postgres unread.

It checks nothing and counts nothing. What it takes longer than COPY is HTTP, on the processors that COPY needs too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from threading import local
from typing import Any

import psycopg2

COPY_SQL = "COPY message (state, city, username, message) FROM STDIN"

_thread = local()


def connection() -> Any:
    """The connection of this thread."""
    if not hasattr(_thread, "connection"):
        _thread.connection = psycopg2.connect(os.environ["DATABASE_URL"])
        _thread.connection.autocommit = True
    return _thread.connection


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Every request is a batch."""
    with connection().cursor() as cursor:
        cursor.copy_expert(COPY_SQL, environ["wsgi.input"], 1 << 18)
        answer = b'{"accepted":%d,"counted":false}' % cursor.rowcount
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]
