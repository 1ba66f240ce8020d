"""Whether a Redis may be trusted with counts: the shape of its URL, and how it runs."""

from __future__ import annotations

from urllib.parse import urlsplit

from environs import ValidationError
from redis import Redis


def is_redis_url(url: str) -> None:
    """Refuses what redis-py would refuse at the first request only."""
    if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise ValidationError("must be redis://…, rediss://… or unix://…, such as redis://127.0.0.1:6379/0")


def check_noeviction(client: Redis) -> str | None:
    """None, or the sentence that says why this Redis may lose members: it evicts keys when memory is short.

    Asks INFO, which ordinary users may be given, rather than CONFIG. Raises redis.RedisError.
    """
    policy = client.info("memory").get("maxmemory_policy")
    if policy == "noeviction":
        return None
    return f"Redis runs with maxmemory-policy {policy}: it may drop members unnoticed; set it to noeviction"
