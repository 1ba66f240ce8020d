"""The connections to Redis: made here, passed in everywhere else. The caller sees every failure at once."""

from __future__ import annotations

from django.conf import settings
from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared_models.nodes import AsyncNodes, Nodes

# A read takes Redis less than a millisecond, and waits behind one chunk at most. What does take longer is the fork of
# a save with many gigabytes: up to some 200 ms. Half a second is a Redis that is stopped, or a network that is gone,
# and somebody is waiting for the answer.
ANSWER_SECONDS = 0.5
CONNECT_SECONDS = 0.5
# Round trips that are under way in one worker; more wait for their turn, as long as an answer may take.
MEMBERSHIP_CONNECTIONS = 16


def nodes_for_counts(url: str | None = None) -> AsyncNodes:
    """The servers of Redis, each with the one connection over which a worker reads the counts."""
    return AsyncNodes(url or settings.REDIS_URL, connect_for_counts)


def connect_for_counts(url: str) -> AsyncRedis:
    """A client of one server."""
    return AsyncRedis.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        retry=AsyncRetry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-query-counts",
        max_connections=1,
    )


def nodes_for_members(url: str | None = None) -> AsyncNodes:
    """The servers of Redis, each with a few connections for the questions that no standing answer fits."""
    return AsyncNodes(url or settings.REDIS_URL, connect_for_members)


def connect_for_members(url: str) -> AsyncRedis:
    """A client of one server."""
    pool = BlockingConnectionPool.from_url(
        url,
        timeout=ANSWER_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        retry=AsyncRetry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-query-members",
        max_connections=MEMBERSHIP_CONNECTIONS,
    )
    return AsyncRedis.from_pool(pool)


def nodes_for_readiness(url: str | None = None) -> Nodes[Redis]:
    """The servers, as somebody who has just come finds them."""
    return Nodes(url or settings.REDIS_URL, connect_for_readiness)


def connect_for_readiness(url: str) -> Redis:
    """A connection that is made for one look at a server: that one can be made is part of the answer."""
    return Redis.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-query-ready",
    )
