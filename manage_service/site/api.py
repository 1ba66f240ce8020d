"""What operators ask over HTTP. Each view parses, calls one function of the domain, and answers."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg2
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI, Query, Status
from ninja.errors import HttpError, ValidationError
from ninja.renderers import BaseRenderer
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from manage_service import stores
from manage_service.runs import registry
from manage_service.runs.registry import Mode, Run, UnknownRun
from manage_service.site.metrics import Facts
from manage_service.site.schemas import DriftsOut, Refusal, RunOut, RunRequest, RunsOut, StatusOut
from manage_service.status.judging import Limits, one_line
from manage_service.status.report import read_drift, read_status
from shared_models.declarations import COUNTERS, UnknownCounter
from shared_models.stores import check_noeviction
from shared_models.web import prometheus
from shared_models.web.openapi import complete
from shared_models.web.problems import Problem


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
            "run_id": registry.LAST,
            "/v1/runs": {"counters": [counter.name for counter in COUNTERS], "mode": Mode.CHECK},
        }
        limited = bool(settings.RATE_LIMIT_PER_SECOND)
        return complete(document, tokens=settings.TOKENS is not None, limited=limited, examples=examples)


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


@api.post("/v1/runs", response={202: RunOut, **refusals(400, 413, 422, 429, 503)}, summary="Ask for a reconcile")
def create_run(request: HttpRequest, response: HttpResponse, asked: RunRequest) -> Status:
    """The keeper executes it; follow it at Location. Where the same run is queued already, it is that one.

    100 runs may be queued or running; one more is a 429 with `Retry-After`.
    """
    names = asked.counters or [counter.name for counter in COUNTERS]
    try:
        run = registry.create(stores.redis_of_requests(), names, asked.mode, asked_by="api")
    except registry.TooManyRuns as error:
        raise Problem(
            429, "too-many-runs", "Too many runs", str(error), headers={"Retry-After": "10"}, limit=registry.MOST_OPEN
        ) from None
    response["Location"] = f"/v1/runs/{run.id}"
    return Status(202, run.as_json())


@api.get("/v1/runs", response={200: RunsOut, **refusals(400, 422, 503)}, summary="The last runs, the newest first")
def list_runs(request: HttpRequest, limit: int = Query(50, ge=1, le=registry.HISTORY_RUNS)) -> Any:
    return {"runs": [run.as_json() for run in registry.latest(stores.redis_of_requests(), limit)]}


@api.get(
    "/v1/runs/{run_id}",
    response={200: RunOut, **refusals(400, 404, 503)},
    summary="One run: its progress, its drift, sample members",
)
def get_run(request: HttpRequest, run_id: str) -> Any:
    return registry.get(stores.redis_of_requests(), run_id).as_json()


@api.post(
    "/v1/runs/{run_id}/cancel",
    response={202: RunOut, **refusals(400, 404, 413, 503)},
    summary="Ask a run to stop after its current step",
)
def cancel_run(request: HttpRequest, run_id: str) -> Status:
    """Until it has stopped, `cancelling` is true. A run that has ended stays as it is. What it has mended so far stays mended."""
    run: Run = registry.request_cancel(stores.redis_of_requests(), run_id)
    return Status(202, run.as_json())


@api.get(
    "/v1/status",
    response={200: StatusOut, **refusals(400, 503)},
    summary="How every counter, the replica and the keeper stand",
)
def get_status(request: HttpRequest) -> Any:
    limits = Limits.of(settings.CATCH_UP_SECONDS, settings.RECONCILE_SECONDS)
    return read_status(stores.redis_of_requests(), stores.replica_of_requests(), limits)


@api.get(
    "/v1/drift",
    response={200: DriftsOut, **refusals(400, 503)},
    summary="What the kept runs have found in each counter, the oldest first",
)
def get_drift(request: HttpRequest) -> Any:
    return {"counters": read_drift(stores.redis_of_requests())}


def livez(request: HttpRequest) -> HttpResponse:
    """The process answers. Touches nothing."""
    return HttpResponse("alive\n", content_type="text/plain")


def readyz(request: HttpRequest) -> HttpResponse:
    """Whether Redis and the replica can be worked with; names what cannot."""
    missing: dict[str, str] = {}
    try:
        evicting = check_noeviction(stores.redis_of_requests())
        if evicting:
            missing["redis"] = evicting
    except RedisError as error:
        missing["redis"] = f"cannot be reached: {error}"
    try:
        with stores.replica_of_requests().snapshot():
            pass
    except psycopg2.Error as error:
        missing["replica"] = f"cannot be reached: {one_line(str(error))}"
    if missing:
        detail = "; ".join(f"{name} {reason}" for name, reason in missing.items())
        return Problem(503, "not-ready", "Not ready", detail, missing=missing).response()
    return HttpResponse("ready\n", content_type="text/plain")


def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus text. Everything is read from Redis at the scrape, so that every worker says the same."""
    try:
        return HttpResponse(prometheus.exposition(Facts(stores.redis_of_requests())), content_type=CONTENT_TYPE_LATEST)
    except RedisError as error:
        return redis_failed(request, error)


@api.exception_handler(ValidationError)
def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    errors = [
        {"field": ".".join(str(part) for part in one["loc"][1:] if part != "asked") or "body", "detail": one["msg"]}
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
