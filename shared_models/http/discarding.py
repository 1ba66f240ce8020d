"""Hear a request out: read what a refusal has left of its body, before the answer goes out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.http import HttpRequest, HttpResponse
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]

# What reading a body may raise: the client is gone, or late, or sends chunks that are none.
UNREADABLE = (OSError, ParseException)

# Behind a body larger than this the connection is closed.
DISCARD_BYTES = 256 << 20
DISCARD_CHUNK_BYTES = 1 << 16


def discard(environ: dict[str, Any]) -> None:
    """Read what is left of a body.

    Otherwise gunicorn does, after the answer, and gives up behind 64 KiB: it closes the connection of which the answer has
    said that it stays.
    """
    if environ.get("wsgi.input_terminated"):
        stream = environ["wsgi.input"]
        with suppress(*UNREADABLE):
            left = DISCARD_BYTES
            while left > 0 and (read := stream.read(DISCARD_CHUNK_BYTES)):
                left -= len(read)


class DiscardMiddleware:
    """Reads what a refusal of Django's (404, 415, 413 …) has left of the body, before the answer goes out."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        discard(request.META)
        return response
