"""Errors as RFC 9457 problem details: a stable `type` for programs, and a sentence that says what to do."""

from __future__ import annotations

from typing import Any

import msgspec

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """What is wrong with a request, or with the service; the application turns it into an answer.

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


def fault() -> Problem:
    """Nothing of the inside goes out."""
    return Problem(
        500, "internal-error", "Internal error", "this is a fault of the service and has been logged; try again"
    )


def method_not_allowed(allowed: str) -> Problem:
    """The methods that this address takes, as the header Allow lists them, in any order."""
    methods = sorted(allowed.split(", "))
    return Problem(
        405,
        "method-not-allowed",
        "This method is not allowed here",
        f"use {' or '.join(methods)}",
        headers={"Allow": ", ".join(methods)},
    )
