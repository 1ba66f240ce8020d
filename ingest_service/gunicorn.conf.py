"""How gunicorn runs the service: `gunicorn -c ingest_service/gunicorn.conf.py`."""

import os
import sys
from typing import Any

from shared_models.web.gunicorn_hooks import Logger, child_exit, make_metrics_folder, on_exit  # noqa: F401  (gunicorn looks for them)

wsgi_app = "ingest_service.wsgi:application"
bind = os.environ.get("BIND") or f"127.0.0.1:{os.environ.get('PORT', '8001')}"
workers = int(os.environ.get("WORKERS", "2"))
# A request mostly waits, for the primary's disk and for Redis; meanwhile the worker's other threads work. Each thread has
# a connection to the primary: WORKERS x (THREADS + 1) of them, the one more for the pulse.
worker_class = "shared_models.http.worker.Worker"  # gthread, and ends at once
threads = int(os.environ.get("THREADS", "24"))
# Each worker stays on a processor of its own (below). Off by default: two instances on one machine would choose the same
# processors, and whatever else runs there is not asked.
PIN_WORKERS = os.environ.get("PIN_WORKERS", "0") not in ("", "0")
# The parser in C where it is installed: see requirements-fast.lock.
http_parser = "auto"
# Longer than the 60 seconds after which common load balancers close an idle connection: the one who sends requests has to be
# the one who closes, or a request may meet a connection that is just being closed.
keepalive = 75
# A worker that has not turned its loop for this long is replaced. Requests run in threads, and may take longer.
timeout = 60
# On SIGTERM, requests in progress have this long to end: as long as a statement may take.
graceful_timeout = 30
logger_class = Logger
# The socket would lie in the home folder, where two stacks would meet.
control_socket_disable = True

# With several workers prometheus_client keeps its numbers in files, one set a worker, in PROMETHEUS_MULTIPROC_DIR.
make_metrics_folder("ingest")

# A setting that is missing or mistyped ends the start here, with one sentence, before there are workers to restart.
from ingest_service import settings  # noqa: E402
from shared_models.web.tokens import refusal_to_start  # noqa: E402

if reason := refusal_to_start(settings.AUTH, settings.TOKENS):
    sys.exit(f"ingest_service: {reason}. See Credentials in README.md.")


def pre_fork(server: Any, worker: Any) -> None:
    """Choose the processor of a worker: the one that has the fewest of them."""
    if PIN_WORKERS and hasattr(os, "sched_getaffinity"):
        taken = [other.processor for other in server.WORKERS.values()]
        worker.processor = min(sorted(os.sched_getaffinity(0)), key=taken.count)


def post_fork(server: Any, worker: Any) -> None:
    """Keep all threads of a worker on one processor.

    Only one of them runs Python at a time, and each request passes from thread to thread several times. From one
    processor to another such a step costs more than the work that it is taken for: pinned, a worker does twice as much.
    """
    if hasattr(worker, "processor"):
        os.sched_setaffinity(0, {worker.processor})


def post_worker_init(worker: Any) -> None:
    """Start the worker's pulse: Django is set up by now, and the process has been forked."""
    from django.conf import settings

    from ingest_service.writing.pulse import Pulse

    Pulse(settings.PULSE_SECONDS, settings.IDEMPOTENCY_KEEP_HOURS).start()
