"""The connections to Redis: made here, passed in everywhere else. The caller sees every failure at once."""

from __future__ import annotations

from django.conf import settings
from redis import Redis
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


def connect_nodes(url: str | None = None) -> AsyncNodes:
    """The servers of Redis, for all reads of a worker. Each reader has one round trip to a server under way at most, so there are
    a few connections to each."""
    return AsyncNodes(url or settings.REDIS_URL, connect_redis)


def connect_redis(url: str) -> AsyncRedis:
    """A client of one server."""
    return AsyncRedis.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        retry=AsyncRetry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-query",
    )


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
