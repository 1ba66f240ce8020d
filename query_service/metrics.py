"""Every metric of query, and the middleware that measures what Django answers.

With several workers each writes its numbers to files in PROMETHEUS_MULTIPROC_DIR (gunicorn.conf.py makes it), and
whichever worker is asked for /metrics adds them up.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import cache
from time import perf_counter

from asgiref.sync import markcoroutinefunction
from django.http import HttpRequest, HttpResponse
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from query_service.counters import Reading

REQUESTS = Counter("rollcall_query_requests_total", "Requests answered", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "rollcall_query_request_seconds", "Time to answer a request that no standing answer fits", ["route"]
)
READS = Counter("rollcall_query_reads_total", "Reads of the counts from Redis", ["outcome"])
READ_SECONDS = Histogram(
    "rollcall_query_read_seconds",
    "Time of a read of the counts from Redis",
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
)
READ_AT = Gauge(
    "rollcall_query_read_timestamp_seconds",
    "When the counts were last read from Redis",
    multiprocess_mode="mostrecent",
)
STREAMS = Gauge("rollcall_query_streams_open", "Event streams open", multiprocess_mode="livesum")
COUNT = Gauge(
    "rollcall_query_count",
    "Distinct members of a counter; NaN where it is not known",
    ["counter"],
    multiprocess_mode="mostrecent",
)
COMPLETE_THROUGH = Gauge(
    "rollcall_query_complete_through_timestamp_seconds",
    "Every row committed before this moment is counted; NaN where it is not known",
    ["counter"],
    multiprocess_mode="mostrecent",
)


@cache
def requests(route: str, status: int) -> Counter:
    """The counter of one route and status. Kept, because looking it up by labels takes longer than an answer may."""
    return REQUESTS.labels(route, str(status))


# Standing answers that have been given and not yet noted, by route and status. Touched by the worker's event loop only.
_given: dict[tuple[str, int], int] = {}


def note_standing_answer(route: str, status: int) -> None:
    """Count one. A counter that several workers share takes a third of the time of such an answer, a dictionary nothing."""
    key = route, status
    _given[key] = _given.get(key, 0) + 1


def pass_on_standing_answers() -> None:
    """Note those that have been given since the last time. The board does so after each of its reads."""
    for (route, status), times in _given.items():
        requests(route, status).inc(times)
    _given.clear()


def set_counts(names: list[str], reading: Reading | None) -> None:
    """Set the gauges of the counters to what a reading says; None: to unknown."""
    for name in names:
        state = None if reading is None else reading.states.get(name)
        known = state is not None and not state.cold
        COUNT.labels(name).set(state.count if state and known else float("nan"))
        through = state.complete_through if state and known else None
        COMPLETE_THROUGH.labels(name).set(float("nan") if through is None else through.timestamp())


def exposition() -> bytes:
    """All metrics of all workers, as Prometheus reads them. Standing answers of other workers may be a read late."""
    pass_on_standing_answers()
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry)


class MetricsMiddleware:
    """Counts and times what Django answers. The standing answers count themselves."""

    sync_capable, async_capable = False, True

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        begun = perf_counter()
        response = await self.get_response(request)
        # Not the path: whoever asks for many paths that there are not would make as many series.
        match = request.resolver_match
        route = "none" if match is None else "/" + match.route.replace("<", "{").replace(">", "}")
        requests(route, response.status_code).inc()
        REQUEST_SECONDS.labels(route).observe(perf_counter() - begun)
        return response
