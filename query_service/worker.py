"""gunicorn's ASGI worker, which waits for the first request on a connection no longer than for the next ones.

A slow client holds no worker here: one event loop waits for all of them. But each holds a connection, and gunicorn would
let it do so for ever before its first request.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol  # type: ignore[import-untyped]
from gunicorn.workers import gasgi  # type: ignore[import-untyped]

# For the head of the first request. Those of later ones have to arrive within `keepalive`.
HEAD_SECONDS = 10.0


class Protocol(ASGIProtocol):
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # The timer of an idle connection, which gunicorn cancels when a request is there.
        self._keepalive_handle = self.worker.loop.call_later(HEAD_SECONDS, self._keepalive_timeout)


class Worker(gasgi.ASGIWorker):
    """Each stream is a connection: as many as the system lets us have."""

    def init_process(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # unlimited, or not ours to raise
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        gasgi.ASGIProtocol = Protocol  # gunicorn has no setting for it
        super().init_process()
