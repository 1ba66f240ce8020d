"""How gunicorn runs manage: `gunicorn -c manage_service/gunicorn.conf.py`."""

import os
import sys

from shared_models.web.gunicorn_hooks import Logger, child_exit, make_metrics_folder, on_exit, post_fork  # noqa: F401  (gunicorn looks for them)

wsgi_app = "manage_service.asgi:application"
bind = os.environ.get("BIND") or f"127.0.0.1:{os.environ.get('PORT', '8002')}"
# Enough for a few operators and a scraper: one worker, whose event loop serves clients, and whose threads wait for stores.
worker_class = "uvicorn_worker.UvicornWorker"
workers = int(os.environ.get("WORKERS", "1"))
# Longer than the 60 seconds after which common load balancers close an idle connection.
keepalive = 75
graceful_timeout = 10
logger_class = Logger
# The socket would be in the home folder, where two stacks would conflict.
control_socket_disable = True

# With several workers prometheus_client keeps its numbers in files, one set a worker, in PROMETHEUS_MULTIPROC_DIR.
make_metrics_folder("manage")

# A setting that is missing or mistyped ends the start here, with one sentence, before there are workers to restart.
from manage_service import settings  # noqa: E402
from shared_models.web.tokens import refusal_to_start  # noqa: E402

if reason := refusal_to_start(settings.AUTH, settings.TOKENS):
    sys.exit(f"manage_service: {reason}. See docs/security.md.")
