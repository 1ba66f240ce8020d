"""The operations of manage's API: what they are called, take, answer and refuse. `/openapi.json` is made of this table."""

from __future__ import annotations

from functools import cache

import msgspec
from django.conf import settings

from manage_service.runs import registry
from manage_service.runs.registry import Mode
from manage_service.runs.report import RunReport
from manage_service.site.schemas import NAMES, DriftHistory, RunList, RunRequest
from manage_service.status.schemas import StatusReport
from shared_models.web.asgi import JSON
from shared_models.web.openapi import HEALTH, Operation, describe, parameter, reference

RUN_ID = parameter("run_id", "path", {"type": "string"}, "the id of a run, or `last`", example=registry.LAST)
LIMIT = parameter(
    "limit",
    "query",
    {"type": "integer", "minimum": 1, "maximum": registry.HISTORY_RUNS, "default": 50},
    "how many runs to give at most",
)

CREATE_RUN = Operation(
    method="POST",
    path="/v1/runs",
    id="createRun",
    tag="runs",
    summary="Ask for a reconcile",
    description="The keeper executes it; follow it at Location. Where the same run is queued already, it is that one.\n\n"
    f"{registry.MOST_OPEN} runs may be queued or running; one more is a 429 with `Retry-After`.",
    body={JSON: {"schema": reference(RunRequest), "example": {"counters": NAMES, "mode": Mode.CHECK}}},
    answers={202: RunReport},
    refusals=(400, 408, 413, 422, 429, 503),
)
LIST_RUNS = Operation(
    method="GET",
    path="/v1/runs",
    id="listRuns",
    tag="runs",
    summary="The last runs, the newest first",
    parameters=(LIMIT,),
    answers={200: RunList},
    refusals=(400, 422, 503),
)
GET_RUN = Operation(
    method="GET",
    path="/v1/runs/{run_id}",
    id="getRun",
    tag="runs",
    summary="One run: its progress, its drift, sample members",
    parameters=(RUN_ID,),
    answers={200: RunReport},
    refusals=(400, 404, 503),
)
CANCEL_RUN = Operation(
    method="POST",
    path="/v1/runs/{run_id}/cancel",
    id="cancelRun",
    tag="runs",
    summary="Ask a run to stop after its current step",
    description="Until it has stopped, `cancelling` is true. A run that has ended stays as it is. What it has mended so far "
    "stays mended.",
    parameters=(RUN_ID,),
    answers={202: RunReport},
    refusals=(400, 404, 408, 413, 503),
)
GET_STATUS = Operation(
    method="GET",
    path="/v1/status",
    id="getStatus",
    tag="status",
    summary="How every counter, the replica and the keeper stand",
    answers={200: StatusReport},
    refusals=(400, 503),
)
GET_DRIFT = Operation(
    method="GET",
    path="/v1/drift",
    id="getDrift",
    tag="status",
    summary="What the kept runs have found in each counter, the oldest first",
    answers={200: DriftHistory},
    refusals=(400, 503),
)
OPERATIONS = (CREATE_RUN, LIST_RUNS, GET_RUN, CANCEL_RUN, GET_STATUS, GET_DRIFT)


@cache
def document(*, tokens: bool, limited: bool) -> bytes:
    """The OpenAPI document."""
    return msgspec.json.encode(
        describe(
            "Rollcall manage",
            "Keeps the counters true to the table: how they stand, and runs that reconcile them.",
            (*OPERATIONS, *HEALTH),
            RunRequest,
            tokens=tokens,
            limited=limited,
        )
    )


def current_document() -> bytes:
    """The same, for this process's settings."""
    return document(tokens=settings.TOKENS is not None, limited=bool(settings.RATE_LIMIT_PER_SECOND))
