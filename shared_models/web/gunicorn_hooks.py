"""What gunicorn is told alike for all services: where the workers of one instance keep their metrics, and how it logs.

A gunicorn.conf.py imports the hooks under their own names, which are those that gunicorn looks for.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from gunicorn import glogging  # type: ignore[import-untyped]

from shared_models.http import succession


class Logger(glogging.Logger):
    """gunicorn's own lines (a worker was started, has died) go where all others go, and look like them."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def make_metrics_folder(service: str) -> None:
    """To be called before anything imports prometheus_client, which looks for the folder then, and only then."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix=f"rollcall-{service}-metrics-")


def child_exit(server: Any, worker: Any) -> None:
    """Let the totals of a worker that is gone stand, and take its gauges out of the sum. Nobody waits for it any more."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)
    succession.note_ready(worker.age)


def on_exit(server: Any) -> None:
    """Remove the files."""
    shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
