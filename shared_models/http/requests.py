"""What connects the log lines of one request: an id, which the client may choose, and gets back; and the line itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any

import structlog
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse

log = structlog.get_logger()

HEADER = "X-Request-ID"
# What others send goes into our log lines: no blanks, no quotes, no control characters, and not too much of it.
SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")

# Asked every few seconds by machines; a line for each would bury the others.
QUIET_ROUTES = {"livez", "readyz", "metrics"}


def id_of(request: HttpRequest) -> str:
    """The id that the client sent, where it is fit for a log; else a new one."""
    sent = request.META.get("HTTP_X_REQUEST_ID", "")
    return sent if SANE.fullmatch(sent) else token_hex(8)


class RequestIdMiddleware:
    """Binds `request_id` to every log line of the request, and gives it back with the answer. Sync and async."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if self.is_async:
            return self._acall(request)
        request_id = id_of(request)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            response = self.get_response(request)
        finally:
            # The thread goes on with somebody else's request.
            structlog.contextvars.unbind_contextvars("request_id", "token")
        response[HEADER] = request_id
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponse:
        request_id = id_of(request)
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
        route = route_of(request)
        if route not in QUIET_ROUTES:
            log.info(
                "request",
                method=request.method if (request.method or "").isalpha() else "none",
                route=route,
                status=response.status_code,
                milliseconds=round((time.perf_counter() - begun) * 1000, 1),
            )
        return response


def route_of(request: HttpRequest) -> str:
    """The route and not the path: paths that lead nowhere are made up by others, and would be metrics without end."""
    return request.resolver_match.route if request.resolver_match else "none"
