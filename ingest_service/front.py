"""The ordinary request, answered in front of Django: one valid row as JSON, to a collection that there is.

Django takes longer over such a request than everything that is done with the row. Whatever is out of the ordinary (a
query string, gzip, chunks, a row that is not valid, a host that is not allowed …) goes to Django as if it had not
been looked at, so that there is one place for refusals, and one answer to every request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from io import BytesIO
from typing import Any

import msgspec
import structlog
from django.conf import settings

from ingest_service import metrics
from ingest_service.api import payloads
from ingest_service.api.problems import problem_of
from ingest_service.catalog import Collection, read_collections
from ingest_service.writing import idempotency, recording
from ingest_service.writing.idempotency import KeyNotUsable
from ingest_service.writing.recording import Recorded
from shared_models.http.discarding import UNREADABLE
from shared_models.http.door import OWNER
from shared_models.web import problems
from shared_models.web.hosts import is_allowed
from shared_models.web.request_log import note
from shared_models.web.security_headers import PLAIN

log = structlog.get_logger()

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]

PREFIX = "/v1/"
# What the log and the metrics call the address, also where Django answers.
ROUTE = "/v1/{collection}"


class Front:
    """The WSGI application of one worker."""

    def __init__(self, django: Any) -> None:
        self.django = django

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        begun = time.perf_counter()
        collection = ordinary(environ)
        if collection is None:
            return self.django(environ, start_response)
        body = read_body(environ)
        try:
            row = payloads.decode(collection, body)
            claim = idempotency.read_claim(
                *(environ.get(OWNER, ""), environ.get("HTTP_IDEMPOTENCY_KEY")),
                *("POST", environ["PATH_INFO"], payloads.JSON, body),
            )
        except (ValueError, RecursionError, KeyNotUsable):
            environ["wsgi.input"] = BytesIO(body)
            return self.django(environ, start_response)
        try:
            recorded = recording.record_one(collection, row, claim)
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                log.exception("request.error", route=ROUTE)
            response = problem.response() if problem else problems.server_error()
        else:
            note("POST", ROUTE, 201, time.perf_counter() - begun)
            return send_answer(start_response, collection, recorded)
        note("POST", ROUTE, response.status_code, time.perf_counter() - begun)
        return send(start_response, response.status_code, dict(response.items()), response.content)


def ordinary(environ: Environ) -> Collection | None:
    """The collection that one row is sent to; None where this is another request, or an unusual one."""
    if (
        environ["REQUEST_METHOD"] != "POST"
        or environ.get("CONTENT_TYPE") != payloads.JSON
        or environ.get("QUERY_STRING")
        or environ.get("SCRIPT_NAME")
        or "HTTP_CONTENT_ENCODING" in environ
    ):
        return None
    path, length = environ["PATH_INFO"], environ.get("CONTENT_LENGTH") or ""
    if not path.startswith(PREFIX) or not length.isdigit() or not 0 < int(length) <= settings.MAX_BODY_BYTES:
        return None
    return read_collections().get(path[len(PREFIX) :]) if is_allowed(environ.get("HTTP_HOST", "")) else None


def read_body(environ: Environ) -> bytes:
    """The bytes of the body; fewer than were announced where the client is gone, which Django then finds as well."""
    length, read = int(environ["CONTENT_LENGTH"]), b""
    try:
        read = environ["wsgi.input"].read(length)
    except UNREADABLE as error:
        log.debug("request.cut_short", reason=str(error))
    # A body that ends early may still be valid, such as a row with blanks announced behind it.
    return read if len(read) == length else b""


def send_answer(start_response: StartResponse, collection: Collection, recorded: Recorded) -> list[bytes]:
    """What `views.answer` makes of it."""
    headers = {"Content-Type": payloads.JSON}
    if recorded.replayed:
        metrics.REPLAYS.labels(collection.name).inc()
        headers["Idempotent-Replay"] = "true"
    return send(start_response, 201, headers, msgspec.json.encode({**recorded.answer, "counted": recorded.counted}))


def send(start_response: StartResponse, status: int, headers: dict[str, str], body: bytes) -> list[bytes]:
    """The answer, with the headers that Django's middleware would add to it."""
    every = {**headers, "Content-Length": str(len(body)), **PLAIN}
    start_response(f"{status} {HTTPStatus(status).phrase}", list(every.items()))
    return [body]
