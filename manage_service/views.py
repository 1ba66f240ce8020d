"""What operators ask over HTTP. Each view parses, calls one function of the domain, and answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
import psycopg2
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI, Query, Schema, Status
from ninja.errors import HttpError, ValidationError
from ninja.renderers import BaseRenderer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field, WithJsonSchema
from redis.exceptions import RedisError

from manage_service import metrics as measures
from manage_service import runs, stores
from manage_service.runs import Mode, Run, UnknownRun
from manage_service.status import read_status
from shared_models.counters import COUNTERS, UnknownCounter
from shared_models.http.describing import complete
from shared_models.http.problems import Problem
from shared_models.stores import check_noeviction


class Renderer(BaseRenderer):
    """msgspec writes datetimes as RFC 3339, and everything else quickly."""

    media_type = "application/json"

    def render(self, request: HttpRequest, data: Any, *, response_status: int) -> bytes:
        return msgspec.json.encode(data, enc_hook=str)


class Api(NinjaAPI):
    """Ninja's, with refusals described as what they are."""

    def get_openapi_schema(self, **kwargs: Any) -> Any:
        document = super().get_openapi_schema(**kwargs)
        examples = {
            "run_id": runs.LAST,
            "/v1/runs": {"counters": [counter.name for counter in COUNTERS], "mode": Mode.CHECK},
        }
        limited = bool(settings.RATE_LIMIT_PER_SECOND)
        return complete(document, tokens=settings.TOKENS is not None, limited=limited, examples=examples)


class Refusal(Schema):
    """A problem; `complete` describes it."""


def refusals(*statuses: int) -> dict[int, Any]:
    """With which statuses an operation may refuse, for its description."""
    return dict.fromkeys(statuses, Refusal)


api = Api(
    title="Rollcall manage",
    version="1",
    description="Keeps the counters true to the table: how they stand, and runs that reconcile them.",
    renderer=Renderer(),
    openapi_url="/openapi.json",
    docs_url="/docs",
)


NAME_OF_A_COUNTER = {"type": "string", "enum": [counter.name for counter in COUNTERS]}


class RunRequest(Schema):
    """Which counters to reconcile, and whether to mend what is found."""

    counters: list[Annotated[str, WithJsonSchema(NAME_OF_A_COUNTER)]] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="names of counters; all of them where this is left out",
        examples=[[counter.name for counter in COUNTERS]],
    )
    mode: Mode = Field(Mode.REPAIR, description="check finds the same drift, but adds nothing and takes nothing out")

    model_config = {"extra": "forbid"}


class ProgressOut(Schema):
    counter: str
    phase: str
    read: int
    expected: int
    eta_seconds: float | None


class DriftOut(Schema):
    missing: int
    extra: int
    missing_sample: list[dict[str, str]]
    extra_sample: list[dict[str, str]]
    verified_at: datetime | None


class RunOut(Schema):
    """A run, under way or from the history."""

    id: str
    status: runs.Status
    mode: Mode
    counters: list[str]
    asked_at: datetime
    asked_by: str
    started_at: datetime | None
    finished_at: datetime | None
    detail: str
    progress: ProgressOut
    drift: dict[str, DriftOut]


class RunsOut(Schema):
    runs: list[RunOut]


@api.post("/v1/runs", response={202: RunOut, **refusals(400, 422, 503)}, summary="Ask for a reconcile")
def create_run(request: HttpRequest, response: HttpResponse, asked: RunRequest) -> Status:
    """The keeper executes it; follow it at Location."""
    names = asked.counters or [counter.name for counter in COUNTERS]
    run = runs.create(stores.connect_redis(), names, asked.mode, asked_by="api")
    response["Location"] = f"/v1/runs/{run.id}"
    return Status(202, run.as_json())


@api.get("/v1/runs", response={200: RunsOut, **refusals(422, 503)}, summary="The last runs, the newest first")
def list_runs(request: HttpRequest, limit: int = Query(50, ge=1, le=runs.HISTORY_RUNS)) -> Any:
    return {"runs": [run.as_json() for run in runs.latest(stores.connect_redis(), limit)]}


@api.get(
    "/v1/runs/{run_id}",
    response={200: RunOut, **refusals(404, 503)},
    summary="One run: its progress, its drift, sample members",
)
def get_run(request: HttpRequest, run_id: str) -> Any:
    return runs.get(stores.connect_redis(), run_id).as_json()


@api.post(
    "/v1/runs/{run_id}/cancel",
    response={202: RunOut, **refusals(404, 503)},
    summary="Ask a run to stop after its current step",
)
def cancel_run(request: HttpRequest, run_id: str) -> Status:
    """A run that has ended stays as it is. What it has mended so far stays mended."""
    run: Run = runs.request_cancel(stores.connect_redis(), run_id)
    return Status(202, run.as_json())


@api.get(
    "/v1/status",
    response={200: dict, **refusals(503)},
    summary="How every counter, the replica and the keeper stand",
)
def get_status(request: HttpRequest) -> Any:
    replica = stores.connect_replica()
    try:
        return read_status(stores.connect_redis(), replica)
    finally:
        replica.close()


def livez(request: HttpRequest) -> HttpResponse:
    """The process answers. Touches nothing."""
    return HttpResponse("alive\n", content_type="text/plain")


def readyz(request: HttpRequest) -> HttpResponse:
    """Whether Redis and the replica can be worked with; names what cannot."""
    missing: dict[str, str] = {}
    try:
        evicting = check_noeviction(stores.connect_redis())
        if evicting:
            missing["redis"] = evicting
    except RedisError as error:
        missing["redis"] = f"cannot be reached: {error}"
    replica = stores.connect_replica()
    try:
        with replica.snapshot():
            pass
    except psycopg2.Error as error:
        missing["replica"] = f"cannot be reached: {str(error).strip()}"
    finally:
        replica.close()
    if missing:
        detail = "; ".join(f"{name} {reason}" for name, reason in missing.items())
        return Problem(503, "not-ready", "Not ready", detail, missing=missing).response()
    return HttpResponse("ready\n", content_type="text/plain")


def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus text. Everything is read from Redis at the scrape, so that every worker says the same."""
    try:
        return HttpResponse(measures.render(stores.connect_redis()), content_type=CONTENT_TYPE_LATEST)
    except RedisError as error:
        return redis_failed(request, error)


@api.exception_handler(ValidationError)
def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    errors = [
        {"field": ".".join(str(part) for part in one["loc"][1:] if part != "asked"), "detail": one["msg"]}
        for one in error.errors
    ]
    detail = "; ".join(f"{one['field']}: {one['detail']}" for one in errors)
    return Problem(422, "invalid-request", "Invalid request", detail, errors=errors).response()


@api.exception_handler(HttpError)
def refused(request: HttpRequest, error: HttpError) -> HttpResponse:
    """A body that is no JSON."""
    return Problem(error.status_code, "bad-request", "Bad request", str(error)).response()


@api.exception_handler(UnknownCounter)
def unknown_counter(request: HttpRequest, error: UnknownCounter) -> HttpResponse:
    return Problem(422, "unknown-counter", "Unknown counter", str(error)).response()


@api.exception_handler(UnknownRun)
def unknown_run(request: HttpRequest, error: UnknownRun) -> HttpResponse:
    return Problem(404, "unknown-run", "Unknown run", str(error)).response()


@api.exception_handler(RedisError)
def redis_failed(request: HttpRequest, error: RedisError) -> HttpResponse:
    return Problem(
        503,
        "redis-unavailable",
        "Redis cannot be reached",
        "runs and the state of counters lie in Redis; try again in a moment",
        headers={"Retry-After": "1"},
    ).response()


@api.exception_handler(Problem)
def problem(request: HttpRequest, error: Problem) -> HttpResponse:
    return error.response()
