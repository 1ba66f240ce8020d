"""What connects the log lines of one request: an id, which the client may choose, and gets back; and the line itself."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from secrets import token_hex

import structlog
from asgiref.sync import markcoroutinefunction
from django.http import HttpRequest, HttpResponse

log = structlog.get_logger()

HEADER = "X-Request-ID"
# What others send goes into our log lines: no blanks, no quotes, no control characters, and not too much of it.
SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")

# Asked every few seconds by machines; a line for each would bury the others.
QUIET_ROUTES = {"livez", "readyz", "metrics"}


def id_of(sent: str) -> str:
    """The id that the client sent, where it is fit for a log; else a new one."""
    return sent if SANE.fullmatch(sent) else token_hex(8)


class RequestIdMiddleware:
    """Binds `request_id` to every log line of the request, and gives it back with the answer. For async stacks."""

    sync_capable, async_capable = False, True

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        request_id = id_of(request.META.get("HTTP_X_REQUEST_ID", ""))
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            response = await self.get_response(request)
        response[HEADER] = request_id
        return response


class LogMiddleware:
    """Logs what was asked and what came of it: no bodies, no query strings, no addresses, no keys.

    The token's name and the request's id are bound to the line by those who know them.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        begun = time.perf_counter()
        response = self.get_response(request)
        # The route and not the path, which anybody can make up.
        route = request.resolver_match.route if request.resolver_match else "none"
        note(request.method or "", route, response.status_code, time.perf_counter() - begun)
        return response


def note(method: str, route: str, status: int, seconds: float) -> None:
    """Log one request."""
    if route not in QUIET_ROUTES:
        log.info("request", method=method, route=route, status=status, milliseconds=round(seconds * 1000, 1))
