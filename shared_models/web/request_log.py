"""What is noted of a request: an id, which the client may choose, and gets back; one log line; one measurement."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from functools import cache
from secrets import token_hex
from typing import Any

import structlog
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse

from shared_models.web import prometheus
from shared_models.web.problems import Problem

log = structlog.get_logger()

HEADER = "X-Request-ID"
# What others send goes into our log lines: no blanks, no quotes, no control characters, and not too much of it.
SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")

# Asked every few seconds by machines; a line for each would bury the others.
QUIET_ROUTES = {"/livez", "/readyz", "/metrics"}
# Of a request that leads nowhere, or is refused before it is known where it leads. Paths are made up by others: they would
# be metrics without end, and somebody's name in a log.
NO_ROUTE = "none"

# In the ASGI scope: the name of the token that the request came with.
TOKEN = "rollcall.token"  # noqa: S105


def id_of(sent: str) -> str:
    """The id that the client sent, where it is fit for a log; else a new one."""
    return sent if SANE.fullmatch(sent) else token_hex(8)


class RequestIdMiddleware:
    """Binds `request_id` to every log line of the request, and gives it back with the answer; binds the token's name.

    For async stacks; in the others the door does it.
    """

    sync_capable, async_capable = False, True

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        bound = {"request_id": id_of(request.META.get("HTTP_X_REQUEST_ID", ""))}
        name = request.scope.get(TOKEN)  # type: ignore[attr-defined]
        with structlog.contextvars.bound_contextvars(**bound, **({"token": name} if name else {})):
            response = await self.get_response(request)
        response[HEADER] = bound["request_id"]
        return response


class NoteMiddleware:
    """Notes what Django answers. Sync and async.

    The token's name and the request's id are bound to the line by those who know them.
    """

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if self.is_async:
            return self._acall(request)
        begun = time.perf_counter()
        response = self.get_response(request)
        note(request.method or "", route_of(request), response.status_code, time.perf_counter() - begun)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponse:
        begun = time.perf_counter()
        response = await self.get_response(request)
        note(request.method or "", route_of(request), response.status_code, time.perf_counter() - begun)
        return response


def route_of(request: HttpRequest) -> str:
    """The pattern that the request's path has matched, as the API describes it: /v1/counts/{counter}."""
    return as_route(request.resolver_match.route) if request.resolver_match else NO_ROUTE


@cache
def as_route(pattern: str) -> str:
    """Django's pattern as a route."""
    return "/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", pattern)


def note(method: str, route: str, status: int, seconds: float) -> None:
    """Log and measure one request: no bodies, no query strings, no addresses, no keys."""
    prometheus.requests(route, status).observe(seconds)
    if route not in QUIET_ROUTES:
        write_line(method, route, status, seconds)


def unreadable(error: Exception, status: int = 400) -> Problem:
    """A request that is no HTTP, or more of a head than is read."""
    statuses = {"LimitRequestLine": 414, "LimitRequestHeaders": 431, "UnsupportedTransferCoding": 501}
    status = statuses.get(type(error).__name__, status)
    return Problem(status, "unreadable-request", "The request cannot be read", str(error) or type(error).__name__)


def note_unread(problem: Problem) -> None:
    """Log and measure a refusal of what was not understood, or has not arrived: of its method and route nothing is known."""
    prometheus.requests(NO_ROUTE, problem.status).observe(0.0)
    log.info("request.unread", type=problem.slug, status=problem.status)


def write_line(method: str, route: str, status: int, seconds: float, **more: str) -> None:
    """The log line of a request."""
    log.info(
        "request.answered", method=method, route=route, status=status, milliseconds=round(seconds * 1000, 1), **more
    )
