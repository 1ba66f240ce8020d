"""The connections to the primary and to Redis: made here and nowhere else."""

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
from shared_models.protocol.timeline import SOURCE_SQL

# Which history each open connection writes to. A primary that is put in another's place ends its connections first: it is
# enough to ask once for each. A standby does not when it is promoted: of a connection to one, nothing is kept.
_sources: WeakKeyDictionary[psycopg2.extensions.connection, str] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Session:
    """This thread's connection to the primary, in autocommit mode."""

    raw: psycopg2.extensions.connection
    source: str
    # It was opened by an earlier request, and may have died since.
    reused: bool
    # The server was a standby a moment ago. Nothing is written over it: the source may change under the transaction.
    is_standby: bool = False


def open_primary() -> Session:
    """This thread's connection, opened if there is none. Raises django.db.Error or psycopg2.Error."""
    # Too old, or failed: Django asks that before and after each request, this only if a connection is needed.
    connection.close_if_unusable_or_obsolete()
    reused = connection.connection is not None
    connection.ensure_connection()
    raw = connection.connection
    if raw not in _sources:
        # A primary may stop right after it has let us in: this question has its limit as every other.
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
def open_redis() -> Redis:
    """The client of this process; threads share its pool.

    Nothing is retried: by the time that a second attempt is answered, the producer has waited twice; catch-up does it
    better. A pooled connection that Redis has closed is noticed, and replaced, before it is used.
    """
    return Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-ingest",
    )
