"""The problems that query answers with: each `type` in one place."""

from __future__ import annotations

from typing import Any

from shared_models import declarations
from shared_models.declarations import Counter, UnknownCounter
from shared_models.protocol.states import State
from shared_models.web.problems import Problem

# A build takes seconds to minutes; a restart of Redis about a second.
COLD_RETRY_SECONDS = 5
REDIS_RETRY_SECONDS = 1
STREAMS_RETRY_SECONDS = 10


def describe_progress(state: State) -> dict[str, int] | None:
    """How far the fill of a cold counter has come, in members; None where none is under way."""
    return None if state.filled is None else {"read": state.filled[0], "expected": state.filled[1]}


def counter_is_cold(name: str, state: State) -> Problem:
    """One counter that is not complete."""
    progress = describe_progress(state)
    return Problem(
        503,
        "counter-cold",
        "The counter is not complete",
        f"counter {name!r} cannot be counted now: {state.why_cold}; ask again in a while",
        headers={"Retry-After": str(COLD_RETRY_SECONDS)},
        counter=name,
        **({} if progress is None else {"progress": progress}),
    )


def every_counter_is_cold(counters: dict[str, Any]) -> Problem:
    """None of the counters is complete."""
    return Problem(
        503,
        "counter-cold",
        "No counter is complete",
        "all counters are being built, or wait for it; ask again in a while",
        headers={"Retry-After": str(COLD_RETRY_SECONDS)},
        counters=counters,
    )


def redis_is_unavailable() -> Problem:
    """Redis cannot be read, and the last answer is too old to be given."""
    return Problem(
        503,
        "redis-unavailable",
        "The counts cannot be read",
        "Redis does not answer, or is still loading; ask again in a moment",
        headers={"Retry-After": str(REDIS_RETRY_SECONDS)},
    )


def known_counter(name: str) -> Counter:
    """The declared counter. Raises Problem 404, which names those that there are."""
    try:
        return declarations.get_counter(name)
    except UnknownCounter as error:
        raise Problem(404, "unknown-counter", "Unknown counter", str(error)) from None


def wrong_member(detail: str, **where: Any) -> Problem:
    """What was asked for is not a member of the counter: `where` names the field, and the place in the list."""
    return Problem(400, "wrong-member", "Not a member of this counter", detail, **where)


def unreadable_body(detail: str) -> Problem:
    """The body of a request is not what it should be."""
    return Problem(400, "unreadable-body", "The body cannot be read", detail)


def too_many_members(limit: int) -> Problem:
    """More members than one request may ask for."""
    return Problem(
        413, "too-many-members", "Too many members", f"ask for {limit} members at most in one request", limit=limit
    )


def too_many_streams_of_client(limit: int) -> Problem:
    """One client has all the event streams open that it may have."""
    return Problem(
        429,
        "too-many-streams",
        "Too many streams",
        f"you have {limit} streams open at this worker already; close one first, or try again in a while",
        headers={"Retry-After": str(STREAMS_RETRY_SECONDS)},
    )


def too_many_streams(limit: int) -> Problem:
    """All places for event streams are taken."""
    return Problem(
        503,
        "too-many-streams",
        "Too many streams",
        f"this worker keeps {limit} streams open already; try again in a while",
        headers={"Retry-After": str(STREAMS_RETRY_SECONDS)},
    )
