"""The problems in manage's answers: their types, and which error becomes which problem."""

from __future__ import annotations

import msgspec
from redis.exceptions import RedisError

from manage_service import stores
from manage_service.runs import registry
from manage_service.runs.registry import TooManyRuns, UnknownRun
from shared_models.declarations import UnknownCounter
from shared_models.web.problems import Problem, ProblemType


class Fault(msgspec.Struct):
    """An error of one field; "body" means the whole body."""

    field: str
    detail: str


class Faults(msgspec.Struct):
    """The errors, field by field."""

    errors: list[Fault]


class Limit(msgspec.Struct):
    """The limit, by number."""

    limit: int


INVALID_REQUEST = ProblemType(
    422,
    "invalid-request",
    "Invalid request",
    "The body or a query parameter is not valid; each wrong field is named.",
    members=Faults,
)
UNKNOWN_COUNTER = ProblemType(
    422,
    "unknown-counter",
    "Unknown counter",
    "There is no counter of this name; the detail names the declared ones.",
)
UNKNOWN_RUN = ProblemType(
    404, "unknown-run", "Unknown run", "There is no run of this id, or it has gone from the history."
)
TOO_MANY_RUNS = ProblemType(
    429,
    "too-many-runs",
    "Too many runs",
    "The largest number of runs is queued or running; wait, or cancel some.",
    retry_seconds=10,
    members=Limit,
)
REDIS_UNAVAILABLE = ProblemType(
    503,
    "redis-unavailable",
    "Redis cannot be reached",
    "Redis, which holds the runs and the state of counters, does not answer.",
    retry_seconds=1,
)


def invalid(*faults: Fault) -> Problem:
    """Each wrong field, by name."""
    return Problem(INVALID_REQUEST, "; ".join(f"{fault.field}: {fault.detail}" for fault in faults), errors=faults)


def as_problem(error: UnknownCounter | UnknownRun | TooManyRuns | RedisError) -> Problem:
    """Turns the domain's errors, and errors of the stores, into problems."""
    match error:
        case UnknownCounter():
            return Problem(UNKNOWN_COUNTER, str(error))
        case UnknownRun():
            return Problem(UNKNOWN_RUN, str(error))
        case TooManyRuns():
            return Problem(TOO_MANY_RUNS, str(error), limit=registry.MOST_OPEN)
    stores.nodes_of_requests().look_again()
    return Problem(
        REDIS_UNAVAILABLE,
        "runs and the state of counters are in Redis, which does not answer; try again",
    )
