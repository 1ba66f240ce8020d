"""What a thread is handed of a connection: a request that is all there, and a socket on which it does not wait for ever."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from io import BytesIO
from typing import Any, BinaryIO

from gunicorn.http.unreader import SocketUnreader  # type: ignore[import-untyped]

# How long a thread waits for a client: for one that does not take its answer, all in all.
CLIENT_SECONDS = 30.0
# How much of a file is sent at a time.
FILE_BYTES = 1 << 16


class PatientSocket(socket.socket):
    """A socket that never blocks. A thread that has to wait for its client does so here, and not for ever.

    gunicorn changes how a socket blocks four times a request, and sends an answer in two pieces. Each of these is a system
    call, and lets another thread run in between. Here a change is only noted, and the head waits for its body.
    """

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        super().setblocking(False)
        self._seconds: float | None = 0.0
        self._head = b""

    def settimeout(self, value: float | None) -> None:
        self._seconds = value

    def gettimeout(self) -> float | None:
        return self._seconds

    def setblocking(self, flag: bool) -> None:
        """False: whoever answered is done. A head that no body has followed goes out."""
        self._seconds = None if flag else 0.0
        if not flag and self._head:
            with contextlib.suppress(OSError):
                self.send(self._take_head())

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of it within CLIENT_SECONDS."""
        if not self._head and data.startswith(b"HTTP/1.") and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        rest, deadline = memoryview(self._take_head() + data), 0.0
        while True:
            with contextlib.suppress(BlockingIOError):
                rest = rest[self.send(rest, flags) :]
            if not rest:
                return
            deadline = deadline or time.monotonic() + CLIENT_SECONDS
            if not self._wait(deadline - time.monotonic()):
                # What gunicorn takes for a client that has gone, and not for a fault.
                raise ConnectionResetError(errno.ECONNRESET, "the client does not read its answer")

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """A file (WhiteNoise's are), behind the head that waits; the kernel's own way would overtake it."""
        file.seek(offset)
        sent = 0
        while piece := file.read(FILE_BYTES if count is None else min(FILE_BYTES, count - sent)):
            self.sendall(piece)
            sent += len(piece)
        return sent

    def _take_head(self) -> bytes:
        head, self._head = self._head, b""
        return head

    def _wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self, select.POLLOUT)
        return bool(poll.poll(max(0.0, seconds) * 1000))


class Held(SocketUnreader):
    """What gunicorn's parser reads from: the request that has arrived, and behind it the end, as if the client had gone.

    gunicorn reads on where its idea of where a request ends is not ours. Whoever finds such a request must not be waited for.
    """

    def __init__(self, sock: PatientSocket) -> None:
        super().__init__(sock)
        self.file: BinaryIO = BytesIO()

    def chunk(self, size_hint: int | None = None) -> bytes:
        return self.file.read(max(self.mxchunk, min(size_hint or 0, self.max_body_chunk)))

    def take_rest(self) -> bytes:
        """What the client has sent behind the request: the beginning of its next one."""
        rest: bytes = self.take_buffered() + self.file.read()
        self.forget()
        return rest

    def forget(self) -> None:
        """Let go of it, however much nobody has read."""
        self.file.close()
