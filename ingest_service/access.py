"""One log line and one measurement for each request."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse

from ingest_service import metrics

log = structlog.get_logger()

# Asked every few seconds by machines; a line for each would bury the others.
QUIET_ROUTES = {"livez", "readyz", "metrics"}


class AccessMiddleware:
    """Logs what was asked and what came of it: no bodies, no query strings, no addresses, no keys."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        begun = time.perf_counter()
        response = self.get_response(request)
        seconds = time.perf_counter() - begun
        # The route and not the path: paths that lead nowhere are made up by others, and would be metrics without end.
        route = request.resolver_match.route if request.resolver_match else "none"
        note(request.method or "", route, response.status_code, seconds)
        return response


def note(method: str, route: str, status: int, seconds: float) -> None:
    """Log and measure one request."""
    metrics.requests(route, status).observe(seconds)
    if route not in QUIET_ROUTES:
        log.info("request", method=method, route=route, status=status, milliseconds=round(seconds * 1000, 1))
