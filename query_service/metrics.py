"""Every metric of query, beside that of its requests; and how a standing answer is counted in next to no time."""

from __future__ import annotations

from time import perf_counter

from prometheus_client import Counter, Gauge, Histogram

from query_service.counters import Reading
from shared_models.web import prometheus

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


# An answer that takes less than this lies in the first bucket of the histogram.
QUICK_SECONDS = 0.001


class Given:
    """Quick answers of one route and status that have been given and not yet noted."""

    __slots__ = ("seconds", "times")

    def __init__(self) -> None:
        self.times, self.seconds = 0, 0.0


# Touched by the worker's event loop only.
_given: dict[tuple[str, int], Given] = {}


def note_standing_answer(route: str, status: int, begun: float) -> None:
    """Note an answer to a request that came at `begun` (perf_counter).

    A histogram that several workers share takes longer than such an answer does; to add two numbers takes nothing.
    """
    seconds = perf_counter() - begun
    if seconds >= QUICK_SECONDS:
        prometheus.requests(route, status).observe(seconds)
        return
    given = _given.get((route, status))
    if given is None:
        given = _given[route, status] = Given()
    given.times += 1
    given.seconds += seconds


def pass_on_standing_answers() -> None:
    """Note those that have been given since the last time. The board does so after each of its reads."""
    for (route, status), given in _given.items():
        observed = prometheus.requests(route, status)
        # What `observe` does, for many at once; prometheus_client has no method for it.
        observed._sum.inc(given.seconds)
        observed._buckets[0].inc(given.times)
    _given.clear()


def set_counts(names: list[str], reading: Reading | None) -> None:
    """Set the gauges of the counters to what a reading says; None: to unknown."""
    for name in names:
        state = None if reading is None else reading.states.get(name)
        known = state is not None and not state.cold
        COUNT.labels(name).set(state.count if state and known else float("nan"))
        through = state.complete_through if state and known else None
        COMPLETE_THROUGH.labels(name).set(float("nan") if through is None else through.timestamp())
