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
# A worker that needs more memory than this ends in good order, and another one takes its place. The server sets no limit to
# the head of a request, nor to the requests that are sent before the first one is answered: without a proxy in front, which
# does, one client could fill the machine. It is larger than all bodies may be, together with what is made of them.
WORKER_MEMORY_BYTES = int(os.environ.get("WORKER_MEMORY_BYTES", str(2 << 30)))
LOOK_SECONDS = 0.5
# What the system keeps of a connection until the server reads it, and so the most that the event loop is given at once: it
# looks at nothing else until it has parsed that. By default it is megabytes, which may hold it for seconds.
RECEIVE_BYTES = 1 << 16


class Logger(glogging.Logger):
    """gunicorn's and uvicorn's own lines (a worker was started, a request is not HTTP) go where all others go."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        # The worker hands these handlers on to uvicorn's logger.
        self.error_log.handlers = list(logging.getLogger().handlers)
        self.error_log.propagate = False


def make_metrics_folder(service: str) -> None:
    """To be called before anything imports prometheus_client, which looks for the folder then, and only then."""
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
    with contextlib.suppress(ValueError, OSError):  # it is unlimited, or we may not raise it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for listener in worker.sockets:  # what it accepts inherits this
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    if WORKER_MEMORY_BYTES and STATM.exists():
        threading.Thread(target=end_when_too_large, args=(worker,), name="memory", daemon=True).start()


def end_when_too_large(worker: Worker) -> None:
    """Wait until this worker needs too much memory, and tell it to end: it answers what it has begun, closes its other
    connections, and the clients connect to another. (Not RLIMIT_DATA: httptools crashes if memory is refused.)"""
    held_bytes = 0
    with STATM.open("rb", buffering=0) as pages:  # kept open: connections may take all descriptors that there are
        while held_bytes <= WORKER_MEMORY_BYTES:
            time.sleep(LOOK_SECONDS)
            pages.seek(0)
            held_bytes = int(pages.read().split()[1]) * resource.getpagesize()
    worker.log.warning(
        "the worker holds %d MB, more than WORKER_MEMORY_BYTES; another one takes its place", held_bytes >> 20
    )
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(worker.cfg.graceful_timeout)
    os.kill(os.getpid(), signal.SIGINT)  # uvicorn waits no longer, for a client that does not read its answer


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Let the totals of a worker that is gone stand, and take its gauges out of the sum."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Arbiter) -> None:
    """Remove the files."""
    shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
