"""How gunicorn runs the service: `gunicorn -c query_service/gunicorn.conf.py`."""

import os

from shared_models.web.gunicorn_hooks import Logger, child_exit, make_metrics_folder, on_exit, post_fork  # noqa: F401  (gunicorn looks for them)

wsgi_app = "query_service.asgi:application"
bind = os.environ.get("BIND") or f"127.0.0.1:{os.environ.get('PORT', '8003')}"
# Each worker reads Redis itself, 20 times a second while clients ask.
workers = int(os.environ.get("WORKERS", "2"))
worker_class = "uvicorn_worker.UvicornWorker"
# How long a connection may be idle between two requests. Longer than the 60 seconds after which common load balancers
# close theirs: the side that sends requests has to close first.
keepalive = 75
# On SIGTERM, requests in progress have this long to end. Streams end at once, other answers take milliseconds.
graceful_timeout = 10
logger_class = Logger
# The socket would be in the home folder, where two stacks would conflict.
control_socket_disable = True

# With several workers prometheus_client keeps its numbers in files, one set a worker, in PROMETHEUS_MULTIPROC_DIR.
make_metrics_folder("query")

# A setting that is missing or mistyped ends the start here, with one sentence, before there are workers to restart.
import query_service.settings  # noqa: E402, F401
