"""What gunicorn is told alike for all services: how much a worker may take, where its metrics are kept, and how it logs.

A gunicorn.conf.py imports the hooks under their own names, which are those that gunicorn looks for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import tempfile
from typing import Any

from gunicorn import glogging

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# The memory that one worker may take for itself. The server sets no limit to the head of a request: a client that sends a
# head without end is cut off here at the latest, and nothing else on the machine suffers. A proxy in front refuses it.
WORKER_MEMORY_BYTES = int(os.environ.get("WORKER_MEMORY_BYTES", str(4 << 30)))


class Logger(glogging.Logger):
    """gunicorn's and uvicorn's own lines (a worker was started, a request is no HTTP) go where all others go."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        # The worker hands these handlers on to uvicorn's logger.
        self.error_log.handlers = list(logging.getLogger().handlers)
        self.error_log.propagate = False
        self.error_log.setLevel(logging.WARNING)


def make_metrics_folder(service: str) -> None:
    """To be called before anything imports prometheus_client, which looks for the folder then, and only then."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix=f"rollcall-{service}-metrics-")


def post_fork(server: Any, worker: Any) -> None:
    """As many connections as the system lets us have, and no more memory than we allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # unlimited, or not ours to raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if WORKER_MEMORY_BYTES:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (WORKER_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def child_exit(server: Any, worker: Any) -> None:
    """Let the totals of a worker that is gone stand, and take its gauges out of the sum."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    """Remove the files."""
    shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
