"""What Django's answers have in common: Django's side of `application`, as middleware and as its handlers of errors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import BinaryIO

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import StaticFile

from shared_models.web.application import ROUTE
from shared_models.web.problems import BAD_REQUEST, MEDIA_TYPE, NOT_FOUND, Problem, fault, method_not_allowed
from shared_models.web.security_headers import DOCS_POLICY, POLICY

GetResponse = Callable[[HttpRequest], HttpResponse]

STATIC_ROUTE = "/static/{path}"
# Of a static file, in memory for each client that it is sent to.
PIECE_BYTES = 1 << 16


def respond(problem: Problem) -> HttpResponse:
    """A problem as Django's response."""
    return HttpResponse(problem.body(), status=problem.status, content_type=MEDIA_TYPE, headers=problem.headers)


class HeadersMiddleware:
    """Adds what an answer does not tell a browser itself."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("X-Frame-Options", "DENY")
        response.headers.setdefault("Content-Security-Policy", DOCS_POLICY if request.path_info == "/docs" else POLICY)
        return response


class ProblemMiddleware:
    """Answers a Problem that a view raised, and a bare 405 of Django's, as a problem; tells the application the route."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if response.status_code != 405 or response.get("Content-Type", "") == MEDIA_TYPE:
            return response
        return respond(method_not_allowed(response.get("Allow", "")))

    def process_view(self, request: HttpRequest, *view: object) -> None:
        if request.resolver_match:
            request.scope[ROUTE] = as_route(request.resolver_match.route)  # type: ignore[attr-defined]

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return respond(exception) if isinstance(exception, Problem) else None


@cache
def as_route(pattern: str) -> str:
    """Django's pattern as the API describes it: /v1/runs/{run_id}."""
    return "/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", pattern)


class StaticFilesMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]  # it has no types
    """WhiteNoise for an event loop: a file is read as fast as the client takes it. WhiteNoise's own response is read
    whole into memory there, once for each client."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info in self.files:
            request.scope[ROUTE] = STATIC_ROUTE  # type: ignore[attr-defined]
        response: HttpResponseBase = super().__call__(request)
        return response

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> HttpResponseBase:
        found = static_file.get_response(request.method, request.META)
        status = int(found.status)
        response = (
            HttpResponse(status=status)
            if found.file is None
            else StreamingHttpResponse(pieces(found.file), status=status)
        )
        del response["Content-Type"]
        for name, value in found.headers:
            response[name] = value
        return response


async def pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    """A file, a piece at a time. It is on the local disk: a read takes less time than handing it to a thread."""
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler400: a malformed URL, too many fields."""
    return respond(Problem(BAD_REQUEST, "the request was refused before it was read; see /docs"))


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler404."""
    return respond(Problem(NOT_FOUND, f"there is nothing at {request.path}; see /docs"))


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500."""
    return respond(fault())
