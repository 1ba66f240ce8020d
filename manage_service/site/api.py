"""The API for operators. Each view parses, calls one function of the domain, and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from redis.exceptions import RedisError

from manage_service import stores
from manage_service.runs import registry
from manage_service.runs.registry import TooManyRuns, UnknownRun
from manage_service.runs.report import report
from manage_service.site.bodies import decode, read_integer
from manage_service.site.problems import as_problem
from manage_service.site.schemas import DriftHistory, RunList, RunRequest
from manage_service.status.judging import Limits
from manage_service.status.report import read_drift, read_status
from shared_models import declarations
from shared_models.declarations import UnknownCounter, with_groupings
from shared_models.web.asgi import JSON
from shared_models.web.openapi import Operation
from shared_models.web.parameters import check_parameters
from shared_models.web.problems import method_not_allowed

View: TypeAlias = Callable[..., HttpResponse]


def create_run(request: HttpRequest) -> HttpResponse:
    """Ask for a run."""
    asked = decode(request.body, RunRequest)
    names = with_groupings(asked.counters or [counter.name for counter in declarations.COUNTERS])
    run = registry.create(stores.runs_of_requests(), names, asked.mode, asked_by="api")
    return answer(report(run), 202, Location=f"/v1/runs/{run.id}")


def list_runs(request: HttpRequest) -> HttpResponse:
    """The last runs."""
    limit = read_integer(request, "limit", 50, least=1, most=registry.HISTORY_RUNS)
    return answer(RunList([report(run) for run in registry.latest(stores.runs_of_requests(), limit)]))


def get_run(request: HttpRequest, run_id: str) -> HttpResponse:
    """One run."""
    return answer(report(registry.get(stores.runs_of_requests(), run_id)))


def cancel_run(request: HttpRequest, run_id: str) -> HttpResponse:
    """Ask a run to stop."""
    return answer(report(registry.request_cancel(stores.runs_of_requests(), run_id)), 202)


def get_status(request: HttpRequest) -> HttpResponse:
    """The state of everything."""
    limits = Limits.of(settings.CATCH_UP_SECONDS, settings.RECONCILE_SECONDS)
    with stores.replica_of_requests() as replica:
        return answer(read_status(stores.nodes_of_requests(), replica, limits))


def get_drift(request: HttpRequest) -> HttpResponse:
    """The drift that runs have found."""
    return answer(DriftHistory(read_drift(stores.runs_of_requests())))


def answer(document: msgspec.Struct, status: int = 200, **headers: str) -> HttpResponse:
    """A document as JSON. msgspec writes moments as RFC 3339."""
    return HttpResponse(msgspec.json.encode(document), status=status, content_type=JSON, headers=headers)


def by_method(*answers: tuple[Operation, View]) -> View:
    """The view of a path: it calls the view of the requested operation. HEAD is the same as GET."""
    views = {operation.method: (operation, view) for operation, view in answers}
    allowed = ", ".join(["HEAD", *views] if "GET" in views else views)

    def view(request: HttpRequest, **of_path: Any) -> HttpResponse:
        method = "GET" if request.method == "HEAD" else request.method or ""
        if method not in views:
            raise method_not_allowed(allowed)
        operation, answering = views[method]
        known = [each["name"] for each in operation.parameters if each["in"] == "query"]
        check_parameters(request.META["QUERY_STRING"], known)
        try:
            return answering(request, **of_path)
        except (UnknownCounter, UnknownRun, TooManyRuns, RedisError) as error:
            raise as_problem(error) from error

    return view
