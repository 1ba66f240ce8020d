"""The connections to the primary and to Redis. Only this module makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from weakref import WeakKeyDictionary

import psycopg2.extensions
from django.conf import settings
from django.db import connection
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared_models.deadlines import cut_after
from shared_models.nodes import Nodes
from shared_models.protocol.timeline import SOURCE_SQL

# The source of each open connection. A primary that is replaced ends its connections first, so it is enough to ask once
# for each connection. A standby keeps its connections when it is promoted, so a connection to a standby is not cached.
_sources: WeakKeyDictionary[psycopg2.extensions.connection, str] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Session:
    """This thread's connection to the primary, in autocommit mode."""

    raw: psycopg2.extensions.connection
    source: str
    # It was opened by an earlier request, and may have died since.
    reused: bool
    # The server was a standby a moment ago. Do not write over this connection: the source may change in the transaction.
    is_standby: bool = False


def open_primary() -> Session:
    """This thread's connection, opened if there is none. Raises django.db.Error or psycopg2.Error."""
    # Too old, or failed: Django checks that before and after each request, this only if a connection is needed.
    connection.close_if_unusable_or_obsolete()
    reused = connection.connection is not None
    connection.ensure_connection()
    raw = connection.connection
    if raw not in _sources:
        # A primary may stop right after accepting the connection: this query has a deadline like every other.
        with cut_after(raw, settings.DATABASE_ANSWER_SECONDS), raw.cursor() as cursor:
            cursor.execute(f"SELECT {SOURCE_SQL}, pg_is_in_recovery()")
            source, is_standby = cursor.fetchone()
        if is_standby:
            return Session(raw, source, reused, is_standby=True)
        _sources[raw] = source
    return Session(raw, _sources[raw], reused)


def close_primary() -> None:
    """Close this thread's connection; the next `open_primary` makes a new one."""
    connection.close()


@cache
def redis_nodes() -> Nodes[Redis]:
    """The servers of Redis, with one client of this process for each; threads share their pools."""
    return Nodes(settings.REDIS_URL, connect_redis)


def connect_redis(url: str) -> Redis:
    """A client of one server.

    It retries nothing: the producer would wait twice for a second attempt, and catch-up does it
    better. If Redis has closed a pooled connection, the client notices and replaces it before use.
    """
    return Redis.from_url(
        url,
        socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-ingest",
    )
