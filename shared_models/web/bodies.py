"""The body of a request: read here and nowhere else, within limits of size, time and memory.

The server hands over a body piece by piece as it arrives, and stops reading from the client while nobody takes a
piece. It discards the rest of a refused body, so that the client can read why.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache

from django.utils.http import parse_header_parameters

from shared_models.web.asgi import ClientGone, Request
from shared_models.web.problems import BAD_REQUEST, BODY_TOO_LARGE, NO_ROOM, REQUEST_TIMEOUT, Problem

# A body has to arrive within this time, or at least at this rate, if that takes longer.
ARRIVE_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 16_384
# How much memory the bodies of all requests of a worker may hold, from their first byte until they are answered.
# A small body is always accepted: 6,000 of them hold as much as this.
HELD_BYTES = 384 << 20
SMALL_BYTES = 1 << 16


class Bodies:
    """The bodies that one worker holds. Used by its event loop only: nothing here needs a lock."""

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self.most_bytes, self.held_bytes = most_bytes, 0

    async def read(self, request: Request, limit_bytes: int) -> bytes | bytearray:
        """The body, as it was sent; b"" if there is none. `release` forgets it.

        Raises Problem: 408 (too slow), 413 (larger than the limit), 503 (no memory for it); or ClientGone.
        """
        declared = declared_bytes(request)
        if declared == 0:
            return b""
        if declared is not None and declared > limit_bytes:
            raise too_large(limit_bytes)
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101  (for the type checker: only a task awaits)
        began, body = loop.time(), bytearray()
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        # The same as `asyncio.timeout`, at a tenth of its cost. That would be as high as the cost of everything else here
        # together.
        timer = loop.call_later(ARRIVE_SECONDS, give_up)
        try:
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece: bytes = message.get("body", b"")
                if len(body) + len(piece) > limit_bytes:
                    raise too_large(limit_bytes)
                self.hold(request, len(piece))
                if not body and not message.get("more_body"):
                    return piece
                body += piece  # in place: a copy would double the memory, and the event loop would make it
                if not message.get("more_body"):
                    return body
                timer.cancel()
                timer = loop.call_at(began + ARRIVE_SECONDS + len(body) / SLOWEST_BYTES_PER_SECOND, give_up)
        except asyncio.CancelledError:
            if not is_late:
                raise
            task.uncancel()
            raise too_slow() from None
        finally:
            timer.cancel()

    def hold(self, request: Request, more_bytes: int) -> None:
        """Note that a request holds so much more memory. Raises Problem 503 if there is no room for it."""
        if request.held_bytes + more_bytes > SMALL_BYTES and self.held_bytes + more_bytes > self.most_bytes:
            raise no_room()
        request.held_bytes += more_bytes
        self.held_bytes += more_bytes

    def release(self, request: Request) -> None:
        """The request is answered, and its body is released."""
        self.held_bytes -= request.held_bytes
        request.held_bytes = 0


def declared_bytes(request: Request) -> int | None:
    """The length of the body in bytes, by the head of the request; None if the head does not say it."""
    declared = request.headers.get(b"content-length")
    if declared is not None:
        return int(declared)  # digits: the server has looked
    return None if b"transfer-encoding" in request.headers else 0


@lru_cache(maxsize=64)
def parse_content_type(header: bytes) -> tuple[str, str]:
    """The media type and the charset, in lower case. Raises Problem 400."""
    try:
        content_type, parameters = parse_header_parameters(header.decode("latin-1"))
    except ValueError:  # an unknown charset, by RFC 2231; too long
        raise Problem(BAD_REQUEST, "the Content-Type cannot be parsed") from None
    return content_type, parameters.get("charset", "").lower()


def too_large(limit_bytes: int) -> Problem:
    """The limit, by number."""
    return Problem(
        BODY_TOO_LARGE,
        f"the limit is {limit_bytes} bytes, counted after unpacking; send it in parts",
        limit_bytes=limit_bytes,
    )


def too_slow() -> Problem:
    """The body did not arrive in time; its connection is closed."""
    return Problem(
        REQUEST_TIMEOUT,
        f"the request did not arrive within {ARRIVE_SECONDS:g} s, or at {SLOWEST_BYTES_PER_SECOND} bytes a second; "
        "it was not processed: send it again",
        headers={"Connection": "close"},
    )


def no_room() -> Problem:
    """The bodies of other requests fill the memory that bodies may have."""
    return Problem(
        NO_ROOM,
        "other requests fill the memory for bodies at present; this one was not processed: send it again, "
        "or in smaller parts",
    )
