"""How gunicorn runs the service: `gunicorn -c query_service/gunicorn.conf.py`."""

import os
import shutil
import signal
import tempfile
from typing import Any

wsgi_app = "query_service.asgi:application"
bind = os.environ.get("BIND") or f"127.0.0.1:{os.environ.get('PORT', '8003')}"
# Each worker has a board of its own, and reads Redis 20 times a second while it is asked.
workers = int(os.environ.get("WORKERS", "2"))
worker_class = "query_service.worker.Worker"  # gunicorn's ASGI worker, which does not wait for ever
asgi_loop = "uvloop"
# The parser in C where it is installed: see requirements-fast.lock.
http_parser = "auto"
keepalive = 5
# Streams are ended at once (below) and other answers take milliseconds; what is left is connections kept alive.
graceful_timeout = 10
# The socket would lie in the home folder, where two stacks would meet.
control_socket_disable = True

# Before anything imports prometheus_client: with several workers it keeps its numbers in files, one set a worker.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="rollcall-query-metrics-")

# A setting that is missing or mistyped ends the start here, with one sentence, before there are workers to restart.
import query_service.settings  # noqa: E402, F401


def post_worker_init(worker: Any) -> None:
    """End the event streams on SIGTERM.

    gunicorn tells an ASGI application that it ends only when all its connections have ended, which a stream never
    does by itself.
    """

    def stop() -> None:
        worker.handle_exit_signal()
        worker.asgi.streams.end()

    worker.loop.add_signal_handler(signal.SIGTERM, stop)


def child_exit(server: Any, worker: Any) -> None:
    """Take the gauges of a worker that is gone out of the sum."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    """Remove the files of the metrics."""
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
