"""How gunicorn runs the service: `gunicorn -c ingest_service/gunicorn.conf.py`."""

import os
import sys

from shared_models.web.gunicorn_hooks import Logger, child_exit, make_metrics_folder, on_exit, post_fork  # noqa: F401  (gunicorn looks for them)

wsgi_app = "ingest_service.asgi:application"
bind = os.environ.get("BIND") or f"127.0.0.1:{os.environ.get('PORT', '8001')}"
# Each worker has WORKERS x (BATCH_THREADS + 2) connections to the primary: one more for single rows, and one for the pulse.
workers = int(os.environ.get("WORKERS", "2"))
worker_class = "uvicorn_worker.UvicornWorker"
# Longer than the 60 seconds after which common load balancers close an idle connection. The side that sends requests
# has to close first; otherwise a request may arrive on a connection that is just closing.
keepalive = 75
# gunicorn replaces a worker whose event loop has not run for this long.
timeout = 60
# On SIGTERM, requests in progress have this long to end: as long as a statement may take.
graceful_timeout = 30
logger_class = Logger
# The socket would be in the home folder, where two stacks would conflict.
control_socket_disable = True

# With several workers prometheus_client keeps its numbers in files, one set a worker, in PROMETHEUS_MULTIPROC_DIR.
make_metrics_folder("ingest")

# A setting that is missing or mistyped ends the start here, with one sentence, before there are workers to restart.
from ingest_service import settings  # noqa: E402
from shared_models.web.tokens import refusal_to_start  # noqa: E402

if reason := refusal_to_start(settings.AUTH, settings.TOKENS):
    sys.exit(f"ingest_service: {reason}. See docs/security.md.")
