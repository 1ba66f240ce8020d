"""Every metric of ingest, and how they are read: over all workers, where gunicorn runs several."""

from __future__ import annotations

import os
from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

ROWS = Counter("rollcall_ingest_rows", "Rows stored on the primary.", ["collection"])
UNCOUNTED_ROWS = Counter(
    "rollcall_ingest_uncounted_rows", 'Rows stored and acknowledged with "counted": false.', ["collection"]
)
REJECTED_ROWS = Counter("rollcall_ingest_rejected_rows", "Rows of batches that were not valid.", ["collection"])
REPLAYS = Counter("rollcall_ingest_replays", "Requests answered from a receipt.", ["collection"])
REQUESTS = Histogram(
    "rollcall_ingest_request_seconds",
    "Time from the request's head to its answer; the count is the number of requests.",
    ["route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)


@cache
def requests(route: str, status: int) -> Histogram:
    """Of one route and status. Kept, because looking it up by labels takes longer than to note a request."""
    return REQUESTS.labels(route, str(status))


def read_metrics() -> bytes:
    """All of them in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)
