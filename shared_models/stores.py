"""Whether a Redis may be trusted with counts: the shape of its URL, and how it runs."""

from __future__ import annotations

from urllib.parse import urlsplit

from environs import ValidationError
from redis import Redis
from redis.exceptions import RedisError

from shared_models import nodes
from shared_models.nodes import Nodes


def is_redis_url(url: str) -> None:
    """Check the URL now: redis-py would refuse it only at the first request. See `shared_models.nodes`."""
    parts = urlsplit(url)
    scheme, plus, kind = parts.scheme.partition("+")
    if not plus and scheme in nodes.SCHEMES:
        return
    if scheme not in ("redis", "rediss") or kind not in ("cluster", "sentinel"):
        raise ValidationError(
            "must be redis://…, rediss://… or unix://…, such as redis://127.0.0.1:6379/0; "
            "or redis+cluster://… or redis+sentinel://…, see docs/cluster.md"
        )
    try:
        list(nodes.addresses(parts))
    except ValueError as error:  # a port that is none
        raise ValidationError(f"{error}: write host:port,host:port") from error
    if kind == "cluster" and parts.path.strip("/") not in ("", "0"):
        raise ValidationError("a cluster has no database numbers: leave out what comes after the servers")
    if kind == "sentinel" and not parts.path.strip("/"):
        raise ValidationError("name the service, as the sentinels do: redis+sentinel://host:26379,host:26379/SERVICE/0")


def check_servers(servers: Nodes[Redis]) -> str | None:
    """None, or the sentence that says why one of the servers is not fit. Raises redis.RedisError if one does not answer.

    Another server may have taken its place: then that one is asked.
    """
    try:
        return next(filter(None, map(check_noeviction, servers.each())), None)
    except RedisError:
        servers.look_again()
        if not servers.is_stale:
            raise
        return next(filter(None, map(check_noeviction, servers.each())), None)


def check_noeviction(client: Redis) -> str | None:
    """None, or the sentence that says why this Redis may lose members: it evicts keys when memory is short.

    Uses INFO and not CONFIG, because ordinary users may have the right to it. Raises redis.RedisError.
    """
    policy = client.info("memory").get("maxmemory_policy")
    if policy == "noeviction":
        return None
    return f"Redis runs with maxmemory-policy {policy}: it may drop members without notice; set it to noeviction"
