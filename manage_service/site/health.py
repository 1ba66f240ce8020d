"""Manage's readiness and metrics, which need no Django view."""

from __future__ import annotations

import psycopg2
from redis.exceptions import RedisError

from manage_service import stores
from manage_service.site.metrics import Facts
from manage_service.site.problems import as_problem
from manage_service.status.judging import one_line
from shared_models.stores import check_servers
from shared_models.web.health import Readiness
from shared_models.web.prometheus import exposition

NEEDED = frozenset({"redis", "replica"})


def look() -> Readiness:
    """Whether manage can use Redis and the replica."""
    return Readiness({"redis": look_at_redis(), "replica": look_at_replica()}, NEEDED)


def look_at_redis() -> str | None:
    try:
        return check_servers(stores.nodes_of_requests())
    except RedisError as error:
        return f"cannot be reached: {one_line(str(error))}"


def look_at_replica() -> str | None:
    try:
        with stores.replica_of_requests() as replica, replica.snapshot():
            return None
    except psycopg2.Error as error:
        return f"cannot be reached: {one_line(str(error))}"


def read_metrics() -> bytes:
    """Prometheus text. It reads everything from Redis at the scrape, so that every worker gives the same. Raises Problem."""
    try:
        return exposition(Facts(stores.nodes_of_requests()))
    except RedisError as error:
        raise as_problem(error) from error
