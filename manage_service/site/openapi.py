"""The description of manage's API: what operations take, answer and refuse. It makes /openapi.json and the routes."""

from __future__ import annotations

from functools import lru_cache

from django.conf import settings

from manage_service.runs import registry
from manage_service.runs.registry import Mode
from manage_service.runs.report import RunReport
from manage_service.site.problems import (
    INVALID_REQUEST,
    REDIS_UNAVAILABLE,
    TOO_MANY_RUNS,
    UNKNOWN_COUNTER,
    UNKNOWN_RUN,
)
from manage_service.site.schemas import TOTALS, DriftHistory, RunList, RunRequest
from manage_service.status.schemas import StatusReport
from shared_models.web.asgi import JSON
from shared_models.web.openapi import OF_A_BODY, Access, Answer, Operation, describe, header, parameter, reference
from shared_models.web.problems import INVALID_QUERY

RUN_ID = parameter(
    "run_id", "path", {"type": "string"}, "The id of a run; `last` is the newest one.", example=registry.LAST
)
LIMIT = parameter(
    "limit",
    "query",
    {"type": "integer", "minimum": 1, "maximum": registry.HISTORY_RUNS, "default": 50},
    "The largest number of runs to list.",
    example=10,
)

CREATE_RUN = Operation(
    method="POST",
    path="/v1/runs",
    id="createRun",
    tag="runs",
    summary="Ask for a reconcile",
    description="The keeper executes it. Follow it at the URL in `Location`. If the same run is queued already, the "
    "answer is that one.\n\nThe name of a counter means its total and all its groupings; `users:state` is one grouping."
    f"\n\n{registry.MOST_OPEN} runs may be queued or running; one more is a 429.",
    body={JSON: {"schema": reference(RunRequest), "example": {"counters": TOTALS, "mode": Mode.CHECK}}},
    answers={202: Answer(RunReport, headers={"Location": header("The URL of the run.")})},
    refusals=(INVALID_QUERY, INVALID_REQUEST, UNKNOWN_COUNTER, TOO_MANY_RUNS, REDIS_UNAVAILABLE),
)
LIST_RUNS = Operation(
    method="GET",
    path="/v1/runs",
    id="listRuns",
    tag="runs",
    summary="List the last runs, the newest first",
    parameters=(LIMIT,),
    answers={200: Answer(RunList)},
    refusals=(INVALID_QUERY, INVALID_REQUEST, REDIS_UNAVAILABLE),
)
GET_RUN = Operation(
    method="GET",
    path="/v1/runs/{run_id}",
    id="getRun",
    tag="runs",
    summary="Get one run: its progress, its drift, some of the members",
    parameters=(RUN_ID,),
    answers={200: Answer(RunReport)},
    refusals=(INVALID_QUERY, UNKNOWN_RUN, REDIS_UNAVAILABLE),
)
CANCEL_RUN = Operation(
    method="POST",
    path="/v1/runs/{run_id}/cancel",
    id="cancelRun",
    tag="runs",
    summary="Ask a run to stop after its current step",
    description="Until it has stopped, `cancelling` is true. A run that has ended stays as it is. What the run has repaired "
    "stays repaired.",
    parameters=(RUN_ID,),
    answers={202: Answer(RunReport)},
    refusals=(INVALID_QUERY, UNKNOWN_RUN, REDIS_UNAVAILABLE, *OF_A_BODY),
)
GET_STATUS = Operation(
    method="GET",
    path="/v1/status",
    id="getStatus",
    tag="status",
    summary="Get the state of every counter, the replica and the keeper",
    answers={200: Answer(StatusReport)},
    refusals=(INVALID_QUERY, REDIS_UNAVAILABLE),
)
GET_DRIFT = Operation(
    method="GET",
    path="/v1/drift",
    id="getDrift",
    tag="status",
    summary="List the drift that the kept runs have found in each counter, the oldest first",
    answers={200: Answer(DriftHistory)},
    refusals=(INVALID_QUERY, REDIS_UNAVAILABLE),
)
OPERATIONS = (CREATE_RUN, LIST_RUNS, GET_RUN, CANCEL_RUN, GET_STATUS, GET_DRIFT)


def describe_api() -> bytes:
    """The OpenAPI document."""
    return _describe(
        Access(
            tokens=settings.TOKENS is not None,
            metrics_public=settings.METRICS_PUBLIC,
            limited=bool(settings.RATE_LIMIT_PER_SECOND),
        )
    )


@lru_cache(maxsize=4)
def _describe(access: Access) -> bytes:
    return describe(
        "Rollcall manage",
        "Keeps the counters equal to their tables: their state, and runs that reconcile them.",
        OPERATIONS,
        RunRequest,
        access=access,
    )
