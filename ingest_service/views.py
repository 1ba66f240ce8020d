"""HTTP and nothing else: read the request, call, answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from prometheus_client import CONTENT_TYPE_LATEST

from ingest_service import bodies, metrics
from ingest_service.api import health, openapi, payloads
from ingest_service.api.problems import problem_of
from ingest_service.catalog import Collection, read_collections
from ingest_service.writing import idempotency, recording
from ingest_service.writing.idempotency import RequestClaim
from ingest_service.writing.recording import Recorded
from shared_models.http.door import OWNER
from shared_models.web import prometheus
from shared_models.web.parameters import not_understood
from shared_models.web.problems import Problem, method_not_allowed

View = Callable[[HttpRequest, str], HttpResponse]


def answering(view: View) -> View:
    """Answers the errors of the domain with their problems."""

    @wraps(view)
    def call(request: HttpRequest, collection: str) -> HttpResponse:
        try:
            return view(request, collection)
        except Exception as error:
            if problem := problem_of(error):
                raise problem from error
            raise

    return call


@answering
def post_row(request: HttpRequest, collection: str) -> HttpResponse:
    """POST /v1/<collection>: one row -> 201 {"id": 17, "counted": true}."""
    target = find_collection(request, collection)
    check_content_type(request, (payloads.JSON,))
    body = bodies.read_body(request, settings.MAX_BODY_BYTES)
    row = payloads.read_row(target, body)
    return answer(target, 201, recording.record_one(target, row, claim_of(request, body)))


@answering
def post_batch(request: HttpRequest, collection: str) -> HttpResponse:
    """POST /v1/<collection>/batch: many rows -> 200 {"accepted": 998, "rejected": 2, "errors": […], "counted": true}."""
    target = find_collection(request, collection)
    check_content_type(request, (*payloads.NDJSON, payloads.JSON))
    strict = is_strict(request)
    body = bodies.read_body(request, settings.MAX_BATCH_BYTES)
    claim = claim_of(request, body)
    batch = payloads.read_batch(target, body, request.content_type or "", settings.MAX_BATCH_ROWS)
    if batch.errors:
        metrics.REJECTED_ROWS.labels(target.name).inc(len(batch.errors))
    if strict and batch.errors:
        raise Problem(
            422,
            "invalid-rows",
            "Some rows are not valid",
            f"{len(batch.errors)} of {len(batch.errors) + len(batch.rows)} rows are not valid; nothing was stored, "
            "because the request says strict=1",
            errors=batch.errors,
        )
    summary = {"accepted": len(batch.rows), "rejected": len(batch.errors), "errors": batch.errors}
    return answer(target, 200, recording.record_batch(target, batch.rows, summary, claim))


def find_collection(request: HttpRequest, name: str) -> Collection:
    """The collection that the address names; raises Problem 404, or 405 where this is no POST."""
    collections = read_collections()
    if name not in collections:
        raise Problem(
            404, "unknown-collection", "There is no such collection", f"there are: {', '.join(sorted(collections))}"
        )
    check_method(request, "POST")
    return collections[name]


def check_method(request: HttpRequest, *allowed: str) -> None:
    """Raises Problem 405."""
    if request.method not in allowed:
        raise method_not_allowed(", ".join(allowed))


def check_content_type(request: HttpRequest, accepted: tuple[str, ...]) -> None:
    """Raises Problem 415."""
    charset = (request.content_params or {}).get("charset", "")
    if request.content_type not in accepted or charset.lower() not in ("", "utf-8", "utf8"):
        raise Problem(
            415,
            "unsupported-content-type",
            "This Content-Type is not understood",
            f"send Content-Type: {' or '.join(accepted)}, in UTF-8",
            accepted=accepted,
        )


def is_strict(request: HttpRequest) -> bool:
    """?strict=1: all rows or none. Raises Problem 400 for what is neither 0 nor 1: silence would store half a batch."""
    value = request.GET.get("strict", "0")
    if value not in ("0", "1"):
        raise not_understood("strict is 0 or 1")
    return value == "1"


def claim_of(request: HttpRequest, body: bytes) -> RequestClaim | None:
    """What the Idempotency-Key stands for: the method, the address, how the body is to be read, and the body.

    The body is taken unpacked: gzip writes the time into its header, and never makes the same bytes twice.
    """
    return idempotency.read_claim(
        request.META.get(OWNER, ""),
        request.headers.get("Idempotency-Key"),
        request.method or "",
        request.get_full_path(),
        request.content_type or "",
        body,
    )


def answer(collection: Collection, status: int, recorded: Recorded) -> HttpResponse:
    """The answer to a request that has been carried out, now or before."""
    response = as_json({**recorded.answer, "counted": recorded.counted}, status)
    if recorded.replayed:
        metrics.REPLAYS.labels(collection.name).inc()
        response["Idempotent-Replay"] = "true"
    return response


def as_json(value: Any, status: int = 200) -> HttpResponse:
    """A JSON response."""
    return HttpResponse(msgspec.json.encode(value), status=status, content_type="application/json")


def get_livez(request: HttpRequest) -> HttpResponse:
    """The process answers. Touches nothing."""
    check_method(request, "GET", "HEAD")
    return as_json({"alive": True})


def get_readyz(request: HttpRequest) -> HttpResponse:
    """200 where rows can be stored; 503 with the reason where not. Redis is named, but is not needed for that."""
    check_method(request, "GET", "HEAD")
    found = health.read_health()
    checks = {"primary": found.primary or "ok", "redis": found.redis or "ok"}
    if not found.ready:
        raise Problem(
            503,
            "not-ready",
            "Ingest cannot store rows",
            found.primary or "",
            headers={"Retry-After": "2"},
            checks=checks,
        )
    return as_json({"ready": True, "degraded": found.redis is not None, "checks": checks})


def get_metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus' text format."""
    check_method(request, "GET", "HEAD")
    return HttpResponse(prometheus.exposition(), content_type=CONTENT_TYPE_LATEST)


def get_openapi(request: HttpRequest) -> HttpResponse:
    """The API, described for programs."""
    check_method(request, "GET", "HEAD")
    return as_json(openapi.describe_api())


def get_docs(request: HttpRequest) -> HttpResponse:
    """The same, for people."""
    check_method(request, "GET", "HEAD")
    return render(request, "ingest_service/docs.html", {"title": openapi.TITLE})
