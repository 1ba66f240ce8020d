"""Query parameters: one that is not known is refused, and so is one that is given twice.

Nobody is answered as if a part of the question had not been there: `/v1/counts?country=DE` is not the total.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from shared_models.web.problems import Problem
from shared_models.web.request_log import route_of

MOST_PARAMETERS = 100
# How much of a name that others have made up is repeated.
NAME_CHARACTERS = 64


class ParametersMiddleware:
    """Asks the service's QUERY_PARAMETERS what an operation ("GET /v1/runs") knows; None stands for one that reads the query
    string by itself. What is not listed (pages for people, /metrics, another method) is left alone. Sync and async."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        self.process_view: Any = find_refusal
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)
            self.process_view = afind_refusal  # one that is not async would be handed to a thread and back

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)


async def afind_refusal(request: HttpRequest, *view: Any) -> HttpResponse | None:
    """`find_refusal`, for async stacks."""
    return find_refusal(request)


def find_refusal(request: HttpRequest, *view: Any) -> HttpResponse | None:
    """The answer to a request whose query string is not understood; None where it is."""
    query = request.META.get("QUERY_STRING", "")
    if not query:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    known = settings.QUERY_PARAMETERS.get(f"{method} {route_of(request)}")
    try:
        if known is not None:
            check_parameters(query, known)
    except Problem as problem:
        return problem.response()
    return None


def check_parameters(query: str, known: Iterable[str]) -> None:
    """Raises Problem 400, which names the parameters that are not known, and those that are."""
    takes = f"this address takes {' and '.join(known) or 'no query parameters'}"
    try:
        given = Tally(name for name, _ in parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS))
    except ValueError:
        raise not_understood(f"there are more than {MOST_PARAMETERS} query parameters; {takes}") from None
    unknown = [shortened(name) for name in given if name not in known]
    if unknown:
        raise not_understood(f"there is no query parameter {', '.join(map(repr, unknown))} here; {takes}")
    for name, times in given.items():
        if times > 1:
            raise not_understood(f"the query parameter {name!r} is given {times} times; give it once")


def shortened(name: str) -> str:
    """A name that is not too long to be repeated."""
    return name if len(name) <= NAME_CHARACTERS else name[:NAME_CHARACTERS] + "…"


def not_understood(detail: str) -> Problem:
    """The query string is not what the address takes."""
    return Problem(400, "invalid-query", "The query string is not understood", detail)
