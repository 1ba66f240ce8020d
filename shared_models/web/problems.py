"""Errors as RFC 9457 problem details: a stable `type` for programs, and a sentence that says what to do.

Here are the types that all services have; each service's own are in its module `problems`. A type is declared once: it
makes the answer and its description in /openapi.json.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

MEDIA_TYPE = "application/problem+json"
# A detail may quote the request. Nobody reads more.
DETAIL_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of problem. `slug` is its stable name, and `when` tells readers of the API when a service answers it.

    `retry_seconds`: when to try again, in the header Retry-After. `members`: more members of the answer.
    """

    status: int
    slug: str
    title: str
    when: str
    retry_seconds: int | None = None
    members: type[msgspec.Struct] | None = None

    @property
    def urn(self) -> str:
        """The `type` of the answer, such as "urn:rollcall:not-found"."""
        return f"urn:rollcall:{self.slug}"


class Problem(Exception):
    """An error of a request, or of the service; the application turns it into an answer.

    `members` are added to the JSON body, `headers` to the answer.
    """

    def __init__(
        self, kind: ProblemType, detail: str, *, headers: dict[str, str] | None = None, **members: object
    ) -> None:
        if len(detail) > DETAIL_CHARACTERS:
            detail = detail[:DETAIL_CHARACTERS] + "…"
        super().__init__(detail)
        self.status, self.slug, self.detail = kind.status, kind.slug, detail
        self.kind, self.members = kind, members
        retry = {} if kind.retry_seconds is None else {"Retry-After": str(kind.retry_seconds)}
        self.headers = retry | (headers or {})

    def body(self) -> bytes:
        """The JSON document: {"type": "urn:rollcall:not-found", "title": "Not found", "status": 404, "detail": "…"}."""
        return msgspec.json.encode(
            {
                "type": self.kind.urn,
                "title": self.kind.title,
                "status": self.status,
                "detail": self.detail,
                **self.members,
            }
        )


class LimitBytes(msgspec.Struct):
    """The limit, by number."""

    limit_bytes: int


class LimitPerSecond(msgspec.Struct):
    """The limit, by number."""

    limit_per_second: int


class Checks(msgspec.Struct):
    """What the service checked: by name, `ok` or what is wrong."""

    checks: dict[str, str]


BAD_REQUEST = ProblemType(
    400, "bad-request", "Bad request", "The request cannot be read, or asks for a Host that is not served here."
)
INVALID_QUERY = ProblemType(
    400,
    "invalid-query",
    "The query string is not understood",
    "A query parameter is unknown, or is given twice, or has no valid value.",
)
UNAUTHORIZED = ProblemType(401, "unauthorized", "Not authorized", "The request has no valid token.")
NOT_FOUND = ProblemType(404, "not-found", "Not found", "There is nothing at this URL.")
METHOD_NOT_ALLOWED = ProblemType(
    405, "method-not-allowed", "This method is not allowed here", "The endpoint takes other methods; Allow lists them."
)
REQUEST_TIMEOUT = ProblemType(408, "request-timeout", "Request Timeout", "The request did not arrive in time.")
BODY_TOO_LARGE = ProblemType(
    413, "body-too-large", "The body is too large", "The body has more bytes than the limit.", members=LimitBytes
)
TOO_MANY_REQUESTS = ProblemType(
    429,
    "too-many-requests",
    "Too many requests",
    "The token has sent more requests in this second than the limit allows.",
    retry_seconds=1,
    members=LimitPerSecond,
)
INTERNAL_ERROR = ProblemType(500, "internal-error", "Internal error", "The service has a bug, and has logged it.")
NOT_READY = ProblemType(
    503,
    "not-ready",
    "Not ready",
    "Something that the service needs does not answer, or is not in the right state.",
    retry_seconds=2,
    members=Checks,
)
NO_ROOM = ProblemType(
    503,
    "no-room",
    "There is no room for the request",
    "Other requests take all the room at present. Send this one again later.",
    retry_seconds=2,
)


def fault() -> Problem:
    """An internal error; the answer has no details of it."""
    return Problem(INTERNAL_ERROR, "the service has a bug, and has logged it; try again")


def method_not_allowed(allowed: str) -> Problem:
    """`allowed`: the methods that the endpoint takes, as in the header Allow, in any order: "POST, GET"."""
    methods = sorted(allowed.split(", "))
    return Problem(METHOD_NOT_ALLOWED, f"use {' or '.join(methods)}", headers={"Allow": ", ".join(methods)})
