"""Settings of gunicorn that all services share: how much memory a worker may take, where its metrics are kept, and
how it logs.

A gunicorn.conf.py imports the hooks under their own names, which are those that gunicorn looks for.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gunicorn import glogging

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.config import Config
    from gunicorn.workers.base import Worker

STATM = Path("/proc/self/statm")  # Linux; the second number: what the process has in memory, in pages
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# A worker that needs more memory than this shuts down gracefully, and another one replaces it. The server has no limit for
# the head of a request, or for the requests that a client sends before the first one is answered. Without a proxy in front,
# one client could fill the machine. The limit is larger than all bodies together, and everything that is made of them.
WORKER_MEMORY_BYTES = int(os.environ.get("WORKER_MEMORY_BYTES", str(2 << 30)))
LOOK_SECONDS = 0.5
# How much of a connection the system buffers until the server reads it, and so the most that the event loop gets at once:
# it does nothing else until it has parsed that. The default is megabytes, which may block the loop for seconds.
RECEIVE_BYTES = 1 << 16


class Logger(glogging.Logger):
    """gunicorn's and uvicorn's own lines (a worker was started, a request is not HTTP) go where all others go."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        # The worker passes these handlers on to uvicorn's logger.
        self.error_log.handlers = list(logging.getLogger().handlers)
        self.error_log.propagate = False


def make_metrics_folder(service: str) -> None:
    """Call it before anything imports prometheus_client, which looks for the folder only at import."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = folder = tempfile.mkdtemp(prefix=f"rollcall-{service}-metrics-")
        atexit.register(remove_here, folder, os.getpid())


def remove_here(folder: str, pid: int) -> None:
    """Remove a folder at the end of the process that made it, also where a refused setting ends its start; not at a worker's."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def post_fork(server: Arbiter, worker: Worker) -> None:
    """Set the limits of a worker: as many connections as the system allows, little of each at a time, and a limit of
    memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # it is unlimited, or this process may not raise it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for listener in worker.sockets:  # accepted connections inherit this
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    if WORKER_MEMORY_BYTES and STATM.exists():
        threading.Thread(target=end_when_too_large, args=(worker,), name="memory", daemon=True).start()


def end_when_too_large(worker: Worker) -> None:
    """Wait until this worker needs too much memory, then tell it to end. It answers the requests that it has begun and
    closes its other connections; the clients connect to another worker. (Not RLIMIT_DATA: httptools crashes if the system
    refuses memory.)"""
    held_bytes = 0
    with STATM.open("rb", buffering=0) as pages:  # kept open: connections may use up all descriptors
        while held_bytes <= WORKER_MEMORY_BYTES:
            time.sleep(LOOK_SECONDS)
            pages.seek(0)
            held_bytes = int(pages.read().split()[1]) * resource.getpagesize()
    worker.log.warning(
        "the worker holds %d MB, more than WORKER_MEMORY_BYTES; another one replaces it", held_bytes >> 20
    )
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(worker.cfg.graceful_timeout)
    os.kill(os.getpid(), signal.SIGINT)  # uvicorn no longer waits for a client that does not read its answer


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Keep the totals of a worker that has ended, and remove its gauges from the sum."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Arbiter) -> None:
    """Remove the files."""
    shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
