"""gunicorn's settings for manage: `gunicorn -c manage_service/gunicorn.conf.py manage_service.wsgi`."""

import os

bind = os.environ.get("BIND", f"127.0.0.1:{os.environ.get('PORT', '8002')}")
# A few operators and a scraper: one worker, whose threads wait for Redis and the replica without waiting for each other.
worker_class = "gthread"
workers = int(os.environ.get("WORKERS", "1"))
threads = int(os.environ.get("THREADS", "8"))
timeout = 30
graceful_timeout = 10
