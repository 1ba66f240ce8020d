"""The connections to Redis and to the replica. Only this module makes them; other code gets them as arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from queue import LifoQueue

from django.conf import settings
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError
from redis.retry import Retry

from manage_service.replica.snapshots import Replica
from shared_models.nodes import Nodes
from shared_models.protocol import keys

# A chunk takes a millisecond of Redis' time. If five seconds pass without an answer, Redis is stopped or the network is
# down; a busy Redis is faster.
REDIS_ANSWER_SECONDS = 5.0
REDIS_CONNECT_SECONDS = 2.0
# How many requests of a worker use the replica at once; the others wait for their turn.
REQUESTS_AT_REPLICA = 8


class ConnectsOnce:
    """A mixin for a connection class of redis-py, so that a broken connection stays broken.

    redis-py would reconnect at the next command, perhaps to another server. A primary that was replaced, and does not know it,
    would take what a pass adds, and lose it. See `manage_service.protocol.catch_up`.
    """

    def _connect(self):  # type: ignore[no-untyped-def]
        if getattr(self, "_connected_once", False):
            raise ConnectionError("the connection to Redis was lost in the middle of a pass")
        self._connected_once = True
        return super()._connect()  # type: ignore[misc]


def connect_nodes() -> Nodes[Redis]:
    """The servers of Redis, for single commands: status, runs, locks."""
    return Nodes(settings.REDIS_URL, connect_redis)


def connect_redis(url: str | None = None) -> Redis:
    """A client of one server. It retries nothing: the caller gets every error."""
    return Redis.from_url(
        url or settings.REDIS_URL,
        socket_timeout=REDIS_ANSWER_SECONDS,
        socket_connect_timeout=REDIS_CONNECT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-manage",
    )


def nodes_for_passes() -> Nodes[Redis]:
    """The servers of Redis, each over one connection that never reconnects."""
    return Nodes(settings.REDIS_URL, connect_for_passes)


def connect_for_passes(url: str | None = None) -> Redis:
    """A client over one connection that never reconnects. After an error, close it and make another."""
    pool = ConnectionPool.from_url(
        url or settings.REDIS_URL,
        socket_timeout=REDIS_ANSWER_SECONDS,
        socket_connect_timeout=REDIS_CONNECT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-pass",
        max_connections=1,
    )
    # The class that the URL needs (plain, TLS, unix socket), with the mixin.
    pool.connection_class = type("ConnectsOnce", (ConnectsOnce, pool.connection_class), {})
    return Redis(connection_pool=pool)


def connect_replica(dsn: str | None = None) -> Replica:
    """The replica. Connects at the first snapshot, and again at the next one after a failure."""
    return Replica(dsn or settings.DATABASE_URL)


# Permanent connections for requests. Jobs have connections of their own, which stay broken after an error.


def nodes_of_requests() -> Nodes[Redis]:
    """One client of each server for all threads of this process. A connection that Redis has closed meanwhile is not used again."""
    return _kept_nodes(settings.REDIS_URL)


def runs_of_requests() -> Redis:
    """The client of the server that has the runs."""
    return nodes_of_requests().of(keys.RUNS)


@cache
def _kept_nodes(url: str) -> Nodes[Redis]:
    return Nodes(url, connect_redis)


@contextmanager
def replica_of_requests() -> Iterator[Replica]:
    """A connection for the block, which no other thread uses meanwhile. A lost one is closed.

    Django runs each request in a thread of its own, so connections belong to the process, and not to a thread.
    """
    idle = _kept_replicas(settings.DATABASE_URL)
    replica = idle.get()
    try:
        replica.close_if_lost()
        yield replica
    finally:
        idle.put(replica)


@cache
def _kept_replicas(dsn: str) -> LifoQueue[Replica]:
    """The pool: its connections connect at their first use, and the last used one is used next."""
    idle: LifoQueue[Replica] = LifoQueue()
    for _ in range(REQUESTS_AT_REPLICA):
        idle.put(connect_replica(dsn))
    return idle
