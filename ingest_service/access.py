"""One measurement for each request."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from ingest_service import metrics
from shared_models.http.requests import route_of


class AccessMiddleware:
    """Measures requests by their route and status. Their log line is `shared_models.http.requests`'."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        begun = time.perf_counter()
        response = self.get_response(request)
        metrics.REQUESTS.labels(route_of(request), response.status_code).observe(time.perf_counter() - begun)
        return response
