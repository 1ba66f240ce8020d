"""Every metric of query, except that of its requests; and how standing answers are counted at almost no cost."""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import Counter, Gauge, Histogram

from query_service.reads import Reading

STANDING_ANSWERS = Counter(
    "rollcall_query_standing_answers_total",
    "Requests for counts that were answered from memory; all others are in rollcall_request_seconds",
    ["service", "route", "status"],
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
SHARED = Counter(
    "rollcall_query_questions_total",
    "Questions about groups, windows and sets: read from Redis, shared with one that was being read, or kept",
    ["kind", "answer"],
)
SHARED_SECONDS = Histogram(
    "rollcall_query_question_seconds",
    "Time of a read of groups, windows or sets from Redis",
    ["kind"],
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
)
STREAMS = Gauge("rollcall_query_streams_open", "Event streams open", multiprocess_mode="livesum")
COUNT = Gauge(
    "rollcall_query_count",
    "Distinct members of a counter; NaN if it is not known",
    ["counter"],
    multiprocess_mode="mostrecent",
)
COMPLETE_THROUGH = Gauge(
    "rollcall_query_complete_through_timestamp_seconds",
    "Every row committed before this moment is counted; NaN if it is not known",
    ["counter"],
    multiprocess_mode="mostrecent",
)


# Standing answers that were sent and not counted yet, by route and status. Only the worker's event loop uses it.
given: Tally[tuple[str, int]] = Tally()


def note_standing_answers() -> None:
    """Count the standing answers since the last call: after each read of the counts.

    A metric that several workers share takes a quarter of the time of such an answer; adding one to a number takes
    almost none.
    """
    for (route, status), times in given.items():
        STANDING_ANSWERS.labels("query", route, str(status)).inc(times)
    given.clear()


def set_counts(names: list[str], reading: Reading | None) -> None:
    """Set the gauges of the counters to the values of a reading; None: to unknown."""
    for name in names:
        state = None if reading is None else reading.states.get(name)
        known = state is not None and not state.cold
        COUNT.labels(name).set(state.count if state and known else float("nan"))
        through = state.complete_through if state and known else None
        COMPLETE_THROUGH.labels(name).set(float("nan") if through is None else through.timestamp())
