"""The body of a request: all of it or a named error, at most so many bytes, unpacked."""

from __future__ import annotations

import zlib
from gzip import GzipFile
from io import BytesIO
from typing import Protocol

from django.http import HttpRequest

from shared_models.http.discarding import UNREADABLE
from shared_models.web.problems import Problem


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_body(request: HttpRequest, limit_bytes: int) -> bytes:
    """The body, unpacked where it is gzip. Raises Problem: 400, 413 or 415."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise Problem(
            415,
            "unsupported-content-encoding",
            "This Content-Encoding is not understood",
            "send the body as it is, or with Content-Encoding: gzip",
            headers={"Accept-Encoding": "gzip"},
        )
    body = read_raw(request, limit_bytes)
    if encoding == "gzip" and body:
        body = unpack(body, limit_bytes)
    if not body or body.isspace():
        raise Problem(400, "empty-body", "The body is empty", "send at least one row")
    return body


def read_raw(request: HttpRequest, limit_bytes: int) -> bytes:
    """The bytes as they were sent. A body that ends early is refused: half of a batch is not a batch."""
    declared = request.headers.get("Content-Length", "")
    stream: Readable = request
    if not declared and request.META.get("wsgi.input_terminated"):
        # Chunked: nobody knows the length, and Django takes that for 0. The server knows where the body ends.
        stream = request.META["wsgi.input"]
    elif declared.isdigit() and int(declared) > limit_bytes:
        raise too_large(limit_bytes)
    try:
        body = stream.read(limit_bytes + 1)
    except UNREADABLE as error:
        raise cut_short() from error
    if len(body) > limit_bytes:
        raise too_large(limit_bytes)
    if declared and len(body) != int(declared):
        raise cut_short()
    return body


def unpack(packed: bytes, limit_bytes: int) -> bytes:
    """What the gzip holds. Never more than the limit is unpacked, however much it would become."""
    try:
        body = GzipFile(fileobj=BytesIO(packed)).read(limit_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Problem(
            400, "bad-gzip", "The body is not gzip", f"the body cannot be unpacked: {error}; nothing was stored"
        ) from error
    if len(body) > limit_bytes:
        raise too_large(limit_bytes)
    return body


def too_large(limit_bytes: int) -> Problem:
    """The limit, by number."""
    return Problem(
        413,
        "body-too-large",
        "The body is too large",
        f"the limit is {limit_bytes} bytes, counted after unpacking; send it in parts",
        limit_bytes=limit_bytes,
    )


def cut_short() -> Problem:
    """The connection ended before the body did; mostly nobody is there to read this."""
    return Problem(
        400, "body-cut-short", "The body is incomplete", "the body ended before its length; nothing was stored"
    )
