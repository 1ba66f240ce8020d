"""How gunicorn runs the service: `gunicorn -c query_service/gunicorn.conf.py`."""

import os

from shared_models.web.gunicorn_hooks import Logger, child_exit, make_metrics_folder, on_exit  # noqa: F401  (gunicorn looks for them)

wsgi_app = "query_service.asgi:application"
bind = os.environ.get("BIND") or f"127.0.0.1:{os.environ.get('PORT', '8003')}"
# Each worker has a board of its own, and reads Redis 20 times a second while it is asked.
workers = int(os.environ.get("WORKERS", "2"))
worker_class = "query_service.worker.Worker"  # gunicorn's ASGI worker, which does not wait for ever
asgi_loop = "uvloop"
# The parser in C where it is installed: see requirements-fast.lock.
http_parser = "auto"
keepalive = 5
# Streams are ended at once (worker.py) and other answers take milliseconds; what is left is connections kept alive.
graceful_timeout = 10
logger_class = Logger
# The socket would lie in the home folder, where two stacks would meet.
control_socket_disable = True

# With several workers prometheus_client keeps its numbers in files, one set a worker, in PROMETHEUS_MULTIPROC_DIR.
make_metrics_folder("query")

# A setting that is missing or mistyped ends the start here, with one sentence, before there are workers to restart.
import query_service.settings  # noqa: E402, F401
