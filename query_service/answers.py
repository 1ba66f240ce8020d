"""The answers to the standing questions, as bytes: made from what was read, before anybody asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Any

import msgspec
from django.http import HttpResponse

from query_service import refusals
from query_service.counters import Reading
from shared_models.protocol.states import State
from shared_models.web.problems import Problem

# Stored by a cache, but asked for again each time: an unchanged count is a 304 of a few bytes.
REVALIDATE = "no-cache"
NEVER_STORE = "no-store"

COUNTS, COUNTER, STATS = "/v1/counts", "/v1/counts/{counter}", "/stats/get/"

NOTHING_KNOWN = {"complete_through": None, "verified_at": None, "drift": None}

Headers = list[tuple[bytes, bytes]]


class Condition(Enum):
    """How much the last reading is worth."""

    FRESH = "fresh"
    STALE = "stale"  # Redis could not be read since, but this is recent enough to be given, marked
    LOST = "lost"  # too old, or there never was one


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, ready to be sent: as ASGI messages, or as a Django response."""

    route: str
    status: int
    headers: Headers
    body: bytes
    tag: bytes | None  # the opaque part of the ETag, with its quotes

    def is_known_as(self, if_none_match: bytes) -> bool:
        """Whether the client has this answer already. The weak comparison of RFC 9110: `W/` does not count.

        A tag is hex digits in quotes, so that it cannot be found inside another one.
        """
        return self.tag is not None and (self.tag in if_none_match or if_none_match.strip() == b"*")

    def pick(self, if_none_match: bytes, is_head: bool) -> tuple[int, Headers, bytes]:
        """Status, headers and body for this request."""
        if if_none_match and self.is_known_as(if_none_match):
            return 304, [header for header in self.headers if header[0] != b"content-length"], b""
        return self.status, self.headers, b"" if is_head else self.body


def as_response(picked: tuple[int, Headers, bytes]) -> HttpResponse:
    """What `Answer.pick` gave, as a Django response."""
    status, headers, body = picked
    response = HttpResponse(body, status=status)
    del response["Content-Type"]
    for name, value in headers:
        response[name.decode()] = value.decode()
    return response


def describe(state: State | None, condition: Condition) -> dict[str, Any]:
    """One counter as the API shows it. Only a counter that is complete has a count."""
    if state is None or condition is Condition.LOST:
        return {"count": None, "state": "unavailable", **NOTHING_KNOWN}
    if state.cold:
        return {
            "count": None,
            "state": "cold",
            "reason": state.why_cold,
            **NOTHING_KNOWN,
            "progress": refusals.describe_progress(state),
        }
    return {
        "count": state.count,
        "state": "stale" if condition is Condition.STALE else "live",
        "complete_through": state.complete_through,
        "verified_at": state.verified_at,
        "drift": state.drift,
        "repaired": state.repaired,
    }


def describe_all(names: Iterable[str], reading: Reading | None, condition: Condition) -> dict[str, Any]:
    """All counters as the API, the stream and the page show them."""
    states = {} if reading is None else reading.states
    return {
        "counters": {name: describe(states.get(name), condition) for name in names},
        "as_of": None if reading is None else reading.as_of,
    }


def render(names: Iterable[str], reading: Reading | None, condition: Condition) -> dict[str, Answer]:
    """The answer at each path."""
    described = describe_all(names, reading, condition)
    answers = {COUNTS: _all_counts(described, condition), STATS: _stats(described, condition)}
    for name in described["counters"]:
        state = None if reading is None else reading.states.get(name)
        answers[COUNTER.format(counter=name)] = _one_count(name, described, state, condition)
    return answers


def _all_counts(described: dict[str, Any], condition: Condition) -> Answer:
    states = {counter["state"] for counter in described["counters"].values()}
    if "unavailable" in states:
        return _refuse(COUNTS, refusals.redis_is_unavailable())
    if states == {"cold"}:
        return _refuse(COUNTS, refusals.every_counter_is_cold(described["counters"]))
    return _give(COUNTS, described, described["counters"], condition)


def _one_count(name: str, described: dict[str, Any], state: State | None, condition: Condition) -> Answer:
    counter = described["counters"][name]
    if state is None or condition is Condition.LOST:
        return _refuse(COUNTER, refusals.redis_is_unavailable())
    if state.cold:
        return _refuse(COUNTER, refusals.counter_is_cold(name, state))
    return _give(COUNTER, {"counter": name, **counter, "as_of": described["as_of"]}, counter, condition)


def _stats(described: dict[str, Any], condition: Condition) -> Answer:
    """The one answer with a shape of its own, which the frontends of the first demo know: all counts, or an error."""
    counts = {name: counter["count"] for name, counter in described["counters"].items()}
    unknown = [name for name, count in counts.items() if count is None]
    if not unknown:
        return _give(STATS, {"result": "success", **counts}, counts, condition)
    if condition is Condition.LOST:
        detail, retry_seconds = refusals.redis_is_unavailable().detail, refusals.REDIS_RETRY_SECONDS
    else:
        detail, retry_seconds = f"not complete yet: {', '.join(unknown)}", refusals.COLD_RETRY_SECONDS
    body = msgspec.json.encode({"result": "error", "detail": detail})
    return _answer(STATS, 503, body, "application/json", None, {"Retry-After": str(retry_seconds)})


def _give(route: str, document: Any, counted: Any, condition: Condition) -> Answer:
    """A count. Its tag is made of what was counted, not of when: `as_of` moves on with every read, and a client that
    is told "304" holds the same counts, read a little earlier."""
    tag = b'"' + blake2b(msgspec.json.encode(counted), digest_size=8).hexdigest().encode() + b'"'
    return _answer(
        route, 200, msgspec.json.encode(document), "application/json", tag, {"Rollcall-State": condition.value}
    )


def _refuse(route: str, problem: Problem) -> Answer:
    return _answer(route, problem.status, problem.body(), "application/problem+json", None, problem.headers)


def _answer(route: str, status: int, body: bytes, content_type: str, tag: bytes | None, more: dict[str, str]) -> Answer:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", (NEVER_STORE if tag is None else REVALIDATE).encode()),
        (b"x-content-type-options", b"nosniff"),
        *((name.lower().encode(), value.encode()) for name, value in more.items()),
    ]
    if tag is not None:
        headers.append((b"etag", b"W/" + tag))
    return Answer(route, status, headers, body, tag)
