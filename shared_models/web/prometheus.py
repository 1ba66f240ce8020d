"""The metric that all services have: their requests, by route and status; and how a service's metrics are read.

Each of several workers writes its numbers to files in PROMETHEUS_MULTIPROC_DIR (gunicorn.conf.py makes it). The
worker that is asked for /metrics adds them up.
"""

from __future__ import annotations

import os
from functools import cache

from django.conf import settings
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

REQUEST_SECONDS = Histogram(
    "rollcall_request_seconds",
    "Time from a request's head to its answer; the count is the number of requests.",
    ["service", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)


@cache
def requests(route: str, status: int) -> Histogram:
    """Of one route and status. Kept, because looking it up by labels takes longer than noting a request."""
    return REQUEST_SECONDS.labels(settings.SERVICE, route, str(status))


def exposition(*more: Collector) -> bytes:
    """All metrics of all workers as Prometheus reads them, and those of these collectors."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    text: bytes = generate_latest(registry)
    for collector in more:
        beside = CollectorRegistry(auto_describe=False)
        beside.register(collector)
        text += generate_latest(beside)
    return text
