"""A limit of requests per token and second, counted in Redis, so that all workers of a service count together.

Windows last one second. So a client may send twice the limit within a second that covers parts of two windows. That is
accepted: the limit only stops one client from taking the others' place.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared_models.nodes import AsyncNodes
from shared_models.protocol import keys
from shared_models.web.problems import TOO_MANY_REQUESTS, Problem

log = structlog.get_logger()

# Every request first waits for this answer, which takes a fraction of a millisecond.
ANSWER_SECONDS = 0.2
# After Redis has not answered, no request asks it for this long: the limit must not cost more than it protects.
PAUSE_SECONDS = 1.0
# Longer than a window by more than clocks differ.
KEEP_SECONDS = 10


class RateLimit:
    """Counts requests. While Redis does not answer, all requests pass, and the log says so."""

    def __init__(self, service: str, redis_url: str, limit: int) -> None:
        self.service, self.limit = service, limit
        self._paused_until = 0.0
        self._nodes = AsyncNodes(redis_url, connect)

    async def check(self, name: str) -> None:
        """Count a request by the token of this name ("": by all clients together). Raises Problem 429."""
        if await self.count(name) > self.limit:
            raise too_many(self.limit)

    async def count(self, name: str) -> int:
        """How many requests this token has sent in this second; 0 if Redis does not answer."""
        if time.monotonic() < self._paused_until:
            return 0
        key = keys.of_rate(self.service, name, int(time.time()))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):  # to read the map of a cluster may take longer
                await self._nodes.ready()
            # On a cluster the seconds are spread over the servers.
            async with self._nodes.of(key).pipeline(transaction=True) as pipe:
                pipe.incr(key)
                pipe.expire(key, KEEP_SECONDS)
                return int((await pipe.execute())[0])
        except (RedisError, OSError) as error:
            self._nodes.look_again()
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            log.warning("rate.not_limited", reason=str(error) or type(error).__name__)
            return 0


def connect(url: str) -> Redis:
    """A client of one server."""
    return Redis.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-rates",
    )


def too_many(limit: int) -> Problem:
    """The limit, by number."""
    return Problem(
        TOO_MANY_REQUESTS,
        f"the limit is {limit} requests a second for each token; try again in a second",
        limit_per_second=limit,
    )
