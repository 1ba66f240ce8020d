"""Errors as RFC 9457 problem details: a stable `type` for programs, and a sentence that says what to do."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """What is wrong with a request, or with the service; the middleware turns it into an answer.

    `slug` is the stable name: the `type` is "urn:rollcall:<slug>". `members` are added to the body as they are,
    `headers` to the answer (Retry-After and the like).
    """

    def __init__(
        self, status: int, slug: str, title: str, detail: str, *, headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.slug, self.title, self.detail = status, slug, title, detail
        self.headers, self.members = headers or {}, members

    def body(self) -> bytes:
        """The JSON document."""
        return msgspec.json.encode(
            {
                "type": f"urn:rollcall:{self.slug}",
                "title": self.title,
                "status": self.status,
                "detail": self.detail,
                **self.members,
            }
        )

    def response(self) -> HttpResponse:
        """As a Django response."""
        return HttpResponse(self.body(), status=self.status, content_type=MEDIA_TYPE, headers=self.headers)


def last_answer(problem: Problem) -> bytes:
    """As it goes over the wire, from where there is neither WSGI nor ASGI yet. The connection ends with it."""
    body = problem.body()
    headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), "Connection": "close", **problem.headers}
    lines = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
        *(f"{n}: {v}" for n, v in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler404."""
    return Problem(404, "not-found", "Not found", f"there is nothing at {request.path}; see /docs").response()


def server_error(request: HttpRequest | None = None) -> HttpResponse:
    """Django's handler500: nothing of the inside goes out."""
    return Problem(
        500, "internal-error", "Internal error", "this is a fault of the service and has been logged; try again"
    ).response()


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler400: a host that is not allowed, a malformed URL, too many fields."""
    return Problem(
        400, "bad-request", "Bad request", "the request was refused before it was read; see /docs"
    ).response()


def method_not_allowed(allowed: str) -> Problem:
    """The methods that this address takes, as the header Allow lists them, in any order: ninja keeps them in a set."""
    methods = sorted(allowed.split(", "))
    return Problem(
        405,
        "method-not-allowed",
        "This method is not allowed here",
        f"use {' or '.join(methods)}",
        headers={"Allow": ", ".join(methods)},
    )


def as_problem(response: HttpResponse) -> HttpResponse:
    """The same answer; a bare 405, as Django and ninja give it, as a problem."""
    if response.status_code != 405 or response.get("Content-Type", "") == MEDIA_TYPE:
        return response
    return method_not_allowed(response.get("Allow", "")).response()


class ProblemMiddleware:
    """Answers a Problem that a view raised. Sync and async views alike."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        return self._acall(request) if self.is_async else as_problem(self.get_response(request))

    async def _acall(self, request: HttpRequest) -> HttpResponse:
        return as_problem(await self.get_response(request))

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return exception.response() if isinstance(exception, Problem) else None
