"""Whether a Redis may be trusted with counts: the shape of its URL, and how it runs."""

from __future__ import annotations

from urllib.parse import urlsplit

from environs import ValidationError
from redis import Redis


def is_redis_url(url: str) -> None:
    """Check the URL now: redis-py would refuse it only at the first request."""
    if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise ValidationError("must be redis://…, rediss://… or unix://…, such as redis://127.0.0.1:6379/0")


def check_noeviction(client: Redis) -> str | None:
    """None, or the sentence that says why this Redis may lose members: it evicts keys when memory is short.

    Uses INFO and not CONFIG, because ordinary users may have the right to it. Raises redis.RedisError.
    """
    policy = client.info("memory").get("maxmemory_policy")
    if policy == "noeviction":
        return None
    return f"Redis runs with maxmemory-policy {policy}: it may drop members without notice; set it to noeviction"
