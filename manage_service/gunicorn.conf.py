"""How gunicorn runs manage: `gunicorn -c manage_service/gunicorn.conf.py`."""

import os
import sys

from shared_models.web.gunicorn_hooks import Logger, child_exit, make_metrics_folder, on_exit  # noqa: F401  (gunicorn looks for them)

wsgi_app = "manage_service.wsgi:application"
bind = os.environ.get("BIND") or f"127.0.0.1:{os.environ.get('PORT', '8002')}"
# A few operators and a scraper: one worker, whose threads wait for Redis and the replica without waiting for each other.
worker_class = "shared_models.http.worker.Worker"  # gthread, and ends at once
workers = int(os.environ.get("WORKERS", "1"))
threads = int(os.environ.get("THREADS", "8"))
http_parser = "auto"  # the parser in C where it is installed: see requirements-fast.lock
# Longer than the 60 seconds after which common load balancers close an idle connection.
keepalive = 75
timeout = 30
graceful_timeout = 10
logger_class = Logger
# The socket would lie in the home folder, where two stacks would meet.
control_socket_disable = True

# With several workers prometheus_client keeps its numbers in files, one set a worker, in PROMETHEUS_MULTIPROC_DIR.
make_metrics_folder("manage")

# A setting that is missing or mistyped ends the start here, with one sentence, before there are workers to restart.
from manage_service import settings  # noqa: E402
from shared_models.web.tokens import refusal_to_start  # noqa: E402

if reason := refusal_to_start(settings.AUTH, settings.TOKENS):
    sys.exit(f"manage_service: {reason}. See Credentials in README.md.")
