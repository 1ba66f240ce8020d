"""Standing answers: the answers about counts as bytes, made from the last read, before clients ask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from hashlib import blake2b
from typing import NotRequired, TypedDict

import msgspec

from query_service import problems
from query_service.reads import Reading
from shared_models.protocol.states import Drift, State
from shared_models.web.asgi import JSON, Answer, answer, refusal

# A cache may store it, but has to ask again each time: an unchanged count is a 304 of a few bytes.
REVALIDATE = "no-cache"

COUNTS, COUNTER, STATS = "/v1/counts", "/v1/counts/{counter}", "/stats/get/"


class DescribedCount(TypedDict):
    """One counter as the API shows it."""

    count: int | None
    state: str
    complete_through: datetime | None
    verified_at: datetime | None
    drift: Drift | None
    repaired: NotRequired[bool]
    reason: NotRequired[str]
    progress: NotRequired[dict[str, int] | None]


class DescribedCounts(TypedDict):
    """Counters by name, and when they were read."""

    counters: dict[str, DescribedCount]
    as_of: datetime | None


class Condition(Enum):
    """How current the last reading is."""

    FRESH = "fresh"
    STALE = "stale"  # Redis could not be read since, but this is recent enough to serve, marked as stale
    LOST = "lost"  # too old, or there never was one


@dataclass(frozen=True, slots=True)
class CountAnswer:
    """The answer of one route, and the shorter one (304) for a client that has it already."""

    route: str
    whole: Answer
    tag: bytes = b""  # the opaque part of the ETag, with its quotes; a problem has none
    unchanged: Answer | None = None

    def pick(self, if_none_match: bytes | None) -> Answer:
        """The answer to a request with this If-None-Match.

        The weak comparison of RFC 9110: `W/` does not count. A tag is hex digits in quotes, so that it cannot be
        a part of another one.
        """
        if if_none_match and self.unchanged and (self.tag in if_none_match or if_none_match.strip() == b"*"):
            return self.unchanged
        return self.whole


def describe(state: State | None, condition: Condition) -> DescribedCount:
    """One counter as the API shows it. Only a counter that is complete has a count."""
    if state is None or condition is Condition.LOST:
        return {"count": None, "state": "unavailable", "complete_through": None, "verified_at": None, "drift": None}
    if state.away:
        unavailable = describe(None, condition)
        return {**unavailable, "reason": state.why_cold}
    if state.cold:
        return {
            "count": None,
            "state": "cold",
            "reason": state.why_cold,
            "complete_through": None,
            "verified_at": None,
            "drift": None,
            "progress": problems.describe_progress(state),
        }
    return {
        "count": state.count,
        "state": "stale" if condition is Condition.STALE else "live",
        "complete_through": state.complete_through,
        "verified_at": state.verified_at,
        "drift": state.drift,
        "repaired": state.repaired,
    }


def describe_all(names: Iterable[str], reading: Reading | None, condition: Condition) -> DescribedCounts:
    """Counters as the API, the stream and the page show them."""
    states = {} if reading is None else reading.states
    return {
        "counters": {name: describe(states.get(name), condition) for name in names},
        "as_of": None if reading is None else reading.as_of,
    }


def substance(described: DescribedCount) -> dict[str, object]:
    """The part of one counter's answer that makes it a new answer: everything except `complete_through`, which moves
    every second."""
    return {name: value for name, value in described.items() if name != "complete_through"}


def render(names: Iterable[str], reading: Reading | None, condition: Condition) -> dict[str, CountAnswer]:
    """The answer of each path."""
    described = describe_all(names, reading, condition)
    answers = {COUNTS: render_all(described, condition), STATS: _stats(described, condition)}
    for name in described["counters"]:
        state = None if reading is None else reading.states.get(name)
        answers[COUNTER.format(counter=name)] = _one_count(name, described, state, condition)
    return answers


def render_all(described: DescribedCounts, condition: Condition) -> CountAnswer:
    """The answer of `/v1/counts` for these counters."""
    states = {counter["state"] for counter in described["counters"].values()}
    if states == {"unavailable"}:
        return CountAnswer(COUNTS, refusal(problems.redis_is_unavailable()))
    if states <= {"cold", "unavailable"}:
        return CountAnswer(COUNTS, refusal(problems.every_counter_is_cold(described["counters"])))
    counted = {name: substance(counter) for name, counter in described["counters"].items()}
    return give(COUNTS, described, counted, condition)


def _one_count(name: str, described: DescribedCounts, state: State | None, condition: Condition) -> CountAnswer:
    counter = described["counters"][name]
    if state is None or condition is Condition.LOST:
        return CountAnswer(COUNTER, refusal(problems.redis_is_unavailable()))
    if state.away:
        return CountAnswer(COUNTER, refusal(problems.counter_is_away(name, state)))
    if state.cold:
        return CountAnswer(COUNTER, refusal(problems.counter_is_cold(name, state)))
    document = {"counter": name, **counter, "as_of": described["as_of"]}
    return give(COUNTER, document, substance(counter), condition)


def _stats(described: DescribedCounts, condition: Condition) -> CountAnswer:
    """The one answer with a different shape, for the frontends of the first demo: all counts, or an error."""
    counts = {name: counter["count"] for name, counter in described["counters"].items()}
    unknown = [name for name, count in counts.items() if count is None]
    if not unknown:
        return give(STATS, {"result": "success", **counts}, counts, condition)
    if any(counter["state"] == "unavailable" for counter in described["counters"].values()):
        detail, retry_seconds = problems.redis_is_unavailable().detail, problems.REDIS_RETRY_SECONDS
    else:
        detail, retry_seconds = f"not complete yet: {', '.join(unknown)}", problems.COLD_RETRY_SECONDS
    body = msgspec.json.encode({"result": "error", "detail": detail})
    return CountAnswer(STATS, answer(503, body, more={"Cache-Control": "no-store", "Retry-After": str(retry_seconds)}))


def give(route: str, document: object, counted: object, condition: Condition) -> CountAnswer:
    """A count. Its tag is made from the counts, and not from the times: `as_of` and `complete_through` move with every
    read. A client that gets a 304 has the same counts, read earlier. So the tag is a weak one."""
    return tag(route, msgspec.json.encode(document), counted, {"Rollcall-State": condition.value})


def tag(route: str, body: bytes, counted: object, headers: dict[str, str], content_type: str = JSON) -> CountAnswer:
    """An answer with the tag of what was counted."""
    opaque = b'"' + blake2b(msgspec.json.encode(counted), digest_size=8).hexdigest().encode() + b'"'
    headers = {"Cache-Control": REVALIDATE, "ETag": f"W/{opaque.decode()}", **headers}
    whole = answer(200, body, content_type, headers)
    without_length = [header for header in whole.headers if header[0] != b"content-length"]
    return CountAnswer(route, whole, opaque, Answer(304, without_length))
