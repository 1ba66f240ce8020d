"""gunicorn's threaded worker, which lets go of idle connections when it is told to end."""

from __future__ import annotations

from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]


class Worker(ThreadWorker):
    """Otherwise one client that keeps a connection for its next request would hold up every stop for graceful_timeout."""

    def murder_keepalived(self) -> None:
        if not self.alive:
            for connection in (*self.keepalived_conns, *self.pending_conns):
                connection.timeout = 0.0
        super().murder_keepalived()
