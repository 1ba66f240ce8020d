"""The problems that query answers with: each `type` in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from query_service.schemas import Count, Progress
from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.protocol.states import State
from shared_models.web.parameters import shortened
from shared_models.web.problems import NO_ROOM, Problem, ProblemType

# A build takes seconds to minutes; a restart of Redis about a second.
COLD_RETRY_SECONDS = 5
REDIS_RETRY_SECONDS = 1
STREAMS_RETRY_SECONDS = 10


class ColdCounter(msgspec.Struct):
    """The counter (by what, and the group, if it is that alone), and how far its build is; or all counters, if none is
    complete."""

    counter: str | msgspec.UnsetType = msgspec.UNSET
    by: list[str] | msgspec.UnsetType = msgspec.UNSET
    group: list[str] | msgspec.UnsetType = msgspec.UNSET
    progress: Progress | msgspec.UnsetType = msgspec.UNSET
    counters: dict[str, Count] | msgspec.UnsetType = msgspec.UNSET


class WrongField(msgspec.Struct):
    """The wrong field, and in a list the index of its member, from 0."""

    field: str | msgspec.UnsetType = msgspec.UNSET
    index: int | msgspec.UnsetType = msgspec.UNSET


class WrongParameter(msgspec.Struct):
    """The wrong parameter, what there is to choose from, and the limit."""

    parameter: str
    declared: list[str] | msgspec.UnsetType = msgspec.UNSET
    limit: int | msgspec.UnsetType = msgspec.UNSET


class LargeSet(msgspec.Struct):
    """Which of the sets is too large, from 0, how many members it has, and the limit."""

    set: int
    members: int
    limit: int


class Limit(msgspec.Struct):
    """The limit, by number."""

    limit: int


WRONG_MEMBER = ProblemType(
    400,
    "wrong-member",
    "Not a member of this counter",
    "A field of the counter is missing or is given twice, or the counter has no such field.",
    members=WrongField,
)
WRONG_QUESTION = ProblemType(
    400,
    "wrong-question",
    "Not a question about this counter",
    "The counter is not declared by this, a group has another form, or a number is out of its limits.",
    members=WrongParameter,
)
UNREADABLE_BODY = ProblemType(
    400, "unreadable-body", "The body cannot be read", "The body is not JSON, or does not have the described shape."
)
UNKNOWN_COUNTER = ProblemType(
    404,
    "unknown-counter",
    "Unknown counter",
    "There is no counter of this name; the detail names the declared ones.",
)
TOO_MANY_MEMBERS = ProblemType(
    413, "too-many-members", "Too many members", "The request asks for more members than the limit.", members=Limit
)
SETS_TOO_LARGE = ProblemType(
    422,
    "sets-too-large",
    "The sets are too large",
    "To intersect these sets would keep Redis from everybody else for too long.",
    members=LargeSet,
)
TOP_TOO_EVEN = ProblemType(
    422,
    "top-too-even",
    "Too many groups are about equally large",
    "The counter has several shards. To find its largest groups, query would read more names from them than the limit.",
    members=Limit,
)
TOO_MANY_STREAMS = ProblemType(
    429,
    "too-many-streams",
    "Too many streams",
    "The client has opened as many streams as it may.",
    retry_seconds=STREAMS_RETRY_SECONDS,
)
COUNTER_COLD = ProblemType(
    503,
    "counter-cold",
    "The counter is not complete",
    "The counter is being built, or waits to be built: there is no correct number.",
    retry_seconds=COLD_RETRY_SECONDS,
    members=ColdCounter,
)
REDIS_UNAVAILABLE = ProblemType(
    503,
    "redis-unavailable",
    "The counts cannot be read",
    "Redis cannot be read, and the last answer is too old to serve.",
    retry_seconds=REDIS_RETRY_SECONDS,
)


def describe_progress(state: State) -> dict[str, int] | None:
    """The progress of a cold counter's fill, {"read": 4, "expected": 10} members; None if there is no fill."""
    return None if state.filled is None else {"read": state.filled[0], "expected": state.filled[1]}


def counter_is_cold(name: str, state: State) -> Problem:
    """One counter that is not complete."""
    return cold(f"counter {name!r}", state.why_cold, **progress_of(state), counter=name)


def part_is_cold(counter: Counter, state: State) -> Problem:
    """A counter by group (or a total) that is not complete."""
    if not counter.of:
        return counter_is_cold(counter.name, state)
    return groups_are_cold(counter, state.why_cold, **progress_of(state))


def groups_are_cold(counter: Counter, why: str, **more: Any) -> Problem:
    """A counter whose groups cannot be counted now."""
    described = f"counter {counter.of!r} by {', '.join(counter.by_names)}"
    return cold(described, why, **more, counter=counter.of, by=counter.by_names)


def group_is_cold(counter: Counter, group: Sequence[str], why: str) -> Problem:
    """One group that cannot be counted now; the others go on."""
    described = f"group {quoted(group)} of counter {counter.of!r} by {', '.join(counter.by_names)}"
    return cold(described, why, counter=counter.of, by=counter.by_names, group=group)


def cold(described: str, why: str, **more: Any) -> Problem:
    """What cannot be counted now, and why."""
    return Problem(COUNTER_COLD, f"{described} cannot be counted now: {why}; ask again in a while", **more)


def progress_of(state: State) -> dict[str, object]:
    """How far the build has come, as a member of the problem."""
    progress = describe_progress(state)
    return {} if progress is None else {"progress": progress}


def quoted(group: Sequence[str]) -> str:
    """A group, for people; not longer than they read."""
    return ", ".join(repr(shortened(value)) for value in group)


def wrong_question(parameter: str, detail: str, **more: Any) -> Problem:
    """A parameter, or a part of a body, that the counter cannot be asked with: `more` has what is declared, and the limit."""
    return Problem(WRONG_QUESTION, detail, parameter=parameter, **more)


def sets_too_large(operation: str, number: int, members: int, work: int, limit: int) -> Problem:
    """Sets that take too long to intersect."""
    detail = (
        f"this {operation} would look at {work:,} members, {members:,} of them of set {number} (from 0); the limit is "
        f"{limit:,} (ALGEBRA_MEMBERS): ask for smaller groups"
    )
    return Problem(SETS_TOO_LARGE, detail, set=number, members=members, limit=limit)


def top_is_too_even(counter: Counter, limit: int) -> Problem:
    """A counter by group with several shards, whose largest groups nobody can tell with so much reading."""
    detail = (
        f"to tell the largest groups of counter {counter.of!r} by {', '.join(counter.by_names)}, query would read more than "
        f"{limit:,} names from its {counter.shards} shards: too many groups are about equally large; ask for fewer, or list all"
    )
    return Problem(TOP_TOO_EVEN, detail, limit=limit)


def every_counter_is_cold(counters: Mapping[str, object]) -> Problem:
    """None of the counters is complete."""
    detail = "no counter is complete: all are being built, or wait to be built; ask again in a while"
    return Problem(COUNTER_COLD, detail, counters=counters)


def redis_is_unavailable() -> Problem:
    """Redis cannot be read, and the last answer is too old to serve."""
    return Problem(REDIS_UNAVAILABLE, "Redis does not answer, or is still loading; try again in a second")


def counter_is_away(name: str, state: State) -> Problem:
    """A server of Redis that holds a part of this counter does not answer; others may."""
    return Problem(REDIS_UNAVAILABLE, f"counter {name!r} cannot be read now: {state.why_cold}; try again in a second")


def known_counter(name: str) -> Counter:
    """The declared counter. Raises Problem 404, which names the declared ones."""
    for counter in declarations.COUNTERS:
        if counter.name == name:
            return counter
    known = ", ".join(counter.name for counter in declarations.COUNTERS)
    raise Problem(UNKNOWN_COUNTER, f"there is no counter {shortened(name)!r}; there are: {known}")


def wrong_member(detail: str, **where: Any) -> Problem:
    """This is not a member of the counter: `where` names the field, and the index in the list."""
    return Problem(WRONG_MEMBER, detail, **where)


def unreadable_body(detail: str) -> Problem:
    """The body of a request has a wrong form."""
    return Problem(UNREADABLE_BODY, detail)


def too_many_members(limit: int) -> Problem:
    """The request asks for too many members."""
    return Problem(TOO_MANY_MEMBERS, f"ask for at most {limit} members in one request", limit=limit)


def too_many_streams_of_client(limit: int) -> Problem:
    """One client has opened as many event streams as it may."""
    detail = f"you have {limit} streams open at this worker already, the limit; close one, or try again later"
    return Problem(TOO_MANY_STREAMS, detail)


def too_many_streams(limit: int) -> Problem:
    """All places for event streams are taken."""
    detail = f"this worker has {limit} streams open already, the limit; try again later"
    return Problem(NO_ROOM, detail, headers={"Retry-After": str(STREAMS_RETRY_SECONDS)})
