"""Runs a peer like the service: the settings of the gunicorn.conf.py that BENCH_LIKE names, without its hooks."""

import os
import runpy

LIKE = (
    *("bind", "workers", "worker_class", "keepalive", "timeout", "graceful_timeout", "control_socket_disable"),
    "post_fork",
)

theirs = runpy.run_path(os.environ["BENCH_LIKE"])
globals().update({name: theirs[name] for name in LIKE if name in theirs})


def on_exit(server: object) -> None:
    """Remove what the other configuration has made."""
    theirs["on_exit"](server)
