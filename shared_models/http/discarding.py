"""Hear a request out: read what a refusal has left of its body, before the answer goes out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from django.http import HttpRequest, HttpResponse
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]

# What reading a body may raise: the client is gone, or a chunk of it is none.
UNREADABLE = (OSError, ParseException)

# Behind a body larger than this the connection is closed.
DISCARD_BYTES = 256 << 20
DISCARD_CHUNK_BYTES = 1 << 16


class DiscardMiddleware:
    """Reads what a refusal (404, 415, 413 …) has left of the body, before the answer goes out.

    Otherwise gunicorn does, after the answer. A client that sends its next request at once on the same connection may
    then have the beginning of it read along with the rest of the last body, where nobody looks for it: it would
    wait for its answer until the connection is closed. And one that is still sending a large body when the connection
    is closed does not get to read why.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if request.META.get("wsgi.input_terminated"):
            stream = request.META["wsgi.input"]
            with suppress(*UNREADABLE):
                left = DISCARD_BYTES
                while left > 0 and (read := stream.read(DISCARD_CHUNK_BYTES)):
                    left -= len(read)
        return response
