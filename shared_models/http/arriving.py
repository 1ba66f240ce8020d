"""A request on its way in: gathered until all of it is there, within limits of time and size.

This only finds out where a request ends; what is in it is gunicorn's to say. Where the two differ, or something is
malformed, nothing worse happens than that gunicorn is asked too early (it is given no more than there is, and refuses what
ends early), or the client is told that it is late.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from io import BytesIO
from typing import BinaryIO, cast

from shared_models.web.problems import Problem

HEAD_BYTES = 1 << 16
# The largest body that is heard out to be refused with a reason; limits of what is accepted are the service's.
BODY_BYTES = 256 << 20
# From here on a request lies in a file: hundreds of them that arrive slowly must not fill the memory.
MEMORY_BYTES = 1 << 16
# A head has to arrive within this time, and a body as well, or at this rate at least, if that takes longer.
ARRIVE_SECONDS = 10.0
SLOWEST_BYTES_PER_SECOND = 16_384

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
# A number that is longer is refused unread, whatever it is.
LENGTH_DIGITS = 18
CODING = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
# Answered here, and taken out, so that gunicorn does not answer it again.
EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)


class Refused(Problem):
    """A request that is not waited for any longer."""


class Arriving:
    """One request. `began` and deadlines are monotonic seconds; `idle_seconds` is how long its first byte may take."""

    __slots__ = ("_began", "_chunks", "_data", "_file", "_idle_seconds", "_tell", "_whole_size", "has_head", "size")

    def __init__(self, began: float, idle_seconds: float) -> None:
        self._began, self._idle_seconds = began, idle_seconds
        self._data = bytearray()  # the head, and the body while it is small
        self._file: BinaryIO | None = None
        self.has_head = False
        self._whole_size: int | None = None  # of the head and the body, where that is known
        self._chunks: Chunks | None = None
        self._tell = False
        self.size = 0

    def add(self, data: bytes) -> bool:
        """Add what has been read; whether the request is all there. Raises Refused."""
        if not self.size:
            self._idle_seconds = 0.0
        if not self.has_head:
            self._data += data
            self.size = len(self._data)
            return self._read_head(len(data))
        self._write(data)
        return self._is_whole(data)

    def must_be_told_to_continue(self) -> bool:
        """Whether the client waits for a word before it sends the body. True once."""
        told, self._tell = self._tell, False
        return told

    def deadline(self) -> float:
        """When it has to be all there, as far as it is known how much that is."""
        return self._began + self._idle_seconds + ARRIVE_SECONDS + self.size / SLOWEST_BYTES_PER_SECOND

    @staticmethod
    def timed_out() -> Refused:
        """What a client is told that was too slow."""
        return Refused(
            408,
            "request-timeout",
            "Request Timeout",
            f"the request did not arrive within {ARRIVE_SECONDS:g} s, or at {SLOWEST_BYTES_PER_SECOND} bytes a second; "
            "nothing of it was looked at: send it again",
        )

    @staticmethod
    def no_room() -> Refused:
        """What a client is told whose request cannot be kept until it is all there."""
        return Refused(
            503,
            "no-room",
            "There is no room for the request",
            "the requests that are being sent and answered just now fill the room that there is for them; nothing of this one "
            "was looked at: send it again, or in smaller parts",
            headers={"Retry-After": "2"},
        )

    def as_file(self) -> BinaryIO:
        """All of it, from its beginning, and whatever was sent behind it."""
        if self._file is None:
            return BytesIO(self._data)
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Forget it."""
        if self._file is not None:
            with suppress(OSError):  # of what could not be written; it is closed all the same
                self._file.close()

    def _read_head(self, added: int) -> bool:
        end = self._data.find(b"\r\n\r\n", max(0, len(self._data) - added - 3))
        if end < 0 and len(self._data) <= HEAD_BYTES:
            return False
        if end < 0 or end > HEAD_BYTES:
            raise Refused(431, "head-too-large", "Request Header Fields Too Large", f"the limit is {HEAD_BYTES} bytes")
        self.has_head = True
        head = bytes(self._data[: end + 4])
        length, chunked = LENGTH.search(head), CODING.search(head)
        if (not length and not chunked) or (length and chunked):
            return True  # no body; or a trick, which gunicorn refuses
        if length and (len(length[1]) > LENGTH_DIGITS or int(length[1]) > BODY_BYTES):
            raise Refused(
                413, "body-too-large", "Content Too Large", "no request is as large as this; send it in parts"
            )
        body = bytes(self._data[end + 4 :])
        expected = EXPECT.search(head)
        if expected:
            self._tell = not body
            head = EXPECT.sub(b"", head)
            self._data[: end + 4] = head
            self.size = len(self._data)
        if chunked:
            self._chunks = Chunks()
        elif length:
            self._whole_size = len(head) + int(length[1])
        return self._is_whole(body)

    def _is_whole(self, data: bytes) -> bool:
        if self._chunks is not None:
            return self._chunks.end_in(data)
        return self.size >= (self._whole_size or 0)

    def _write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > HEAD_BYTES + BODY_BYTES:
            raise Refused(
                413, "body-too-large", "Content Too Large", "no request is as large as this; send it in parts"
            )
        if self.size <= MEMORY_BYTES:
            self._data += data
            return
        try:
            if self._file is None:
                self._file = cast("BinaryIO", tempfile.TemporaryFile(prefix="rollcall-"))  # noqa: SIM115  (see `close`)
                self._file.write(self._data)
                self._data = bytearray()
            self._file.write(data)
            self._file.flush()  # what does not fit has to be known here
        except OSError as error:  # the disk is full, or as many files are open as may be
            raise self.no_room() from error


class Chunks:
    """Looks for the end of a chunked body."""

    __slots__ = ("_in_trailers", "_left", "_line")

    def __init__(self) -> None:
        self._line = b""  # the beginning of a line whose end has not come
        self._left = 0  # bytes of the chunk that are still to come, and its line end
        self._in_trailers = False

    def end_in(self, data: bytes) -> bool:
        """Whether the body ends in this piece of it, or cannot be understood: gunicorn says what is wrong with it."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                return len(self._line) > HEAD_BYTES
            line, self._line = self._line + data[at:end], b""
            at = end + 1
            if not line.endswith(b"\r"):
                return True
            if self._in_trailers:
                if line == b"\r":
                    return True
                continue
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                return True
            if size < 0:
                return True
            self._in_trailers, self._left = size == 0, size + 2 if size else 0
        return False
