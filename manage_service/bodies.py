"""The body of a request, all of it, before anything is done: a malformed one asks for nothing, also where none is needed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from shared_models.http.discarding import DISCARD_CHUNK_BYTES, UNREADABLE
from shared_models.http.door import Environ, StartResponse, refuse
from shared_models.web.problems import Problem
from shared_models.web.request_log import NO_ROUTE, note

# Names of counters, and a mode.
BODY_BYTES = 1 << 20


class WholeBodies:
    """A WSGI application around another one, which is asked only when the body is there. Of a chunked one it gets the length."""

    def __init__(self, application: Any) -> None:
        self.application = application

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        begun = time.perf_counter()
        try:
            body = read_body(environ)
        except Problem as problem:
            note(environ["REQUEST_METHOD"], NO_ROUTE, problem.status, time.perf_counter() - begun)
            return refuse(start_response, problem)
        whole = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        answer: Iterable[bytes] = self.application(whole, start_response)
        return answer


def read_body(environ: Environ) -> bytes:
    """The bytes as they were sent. Raises Problem: 400 or 413. What is too large is read to its end, and forgotten."""
    stream, declared, body, size = environ["wsgi.input"], environ.get("CONTENT_LENGTH"), bytearray(), 0
    try:
        while piece := stream.read(DISCARD_CHUNK_BYTES):
            size += len(piece)
            if size <= BODY_BYTES:
                body += piece
    except UNREADABLE as error:
        raise cut_short() from error
    if declared and size != int(declared):
        raise cut_short()
    if size > BODY_BYTES:
        raise Problem(
            413, "body-too-large", "The body is too large", f"the limit is {BODY_BYTES} bytes", limit_bytes=BODY_BYTES
        )
    return bytes(body)


def cut_short() -> Problem:
    """The body ended early, or its chunks are none."""
    return Problem(
        400, "body-cut-short", "The body is incomplete", "the body ended before its length; nothing was done"
    )
