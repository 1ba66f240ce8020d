"""How Redis is asked whether it may be trusted with counts."""

from __future__ import annotations

from redis import Redis


def check_noeviction(client: Redis) -> str | None:
    """None, or the sentence that says why this Redis may lose members: it evicts keys when memory is short.

    Asks INFO, which ordinary users may be given, rather than CONFIG. Raises redis.RedisError.
    """
    policy = client.info("memory").get("maxmemory_policy")
    if policy == "noeviction":
        return None
    return f"Redis runs with maxmemory-policy {policy}: it may drop members unnoticed; set it to noeviction"
