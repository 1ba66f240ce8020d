"""What is noted of a request: an id, which the client may choose, and gets back; one log line; one measurement.

No bodies, no query strings, no addresses, no keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from shared_models.web import prometheus

if TYPE_CHECKING:
    from shared_models.web.asgi import Request

log = structlog.get_logger()

# What others send goes into our log lines: no blanks, no quotes, no control characters, and not too much of it.
SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")

# Asked every few seconds by machines; a line for each would bury the others.
QUIET_ROUTES = {"/livez", "/readyz", "/metrics"}
# Of a request that leads nowhere, or is refused before it is known where it leads. Paths are made up by others: they would
# be metrics without end, and somebody's name in a log.
NO_ROUTE = "none"


def id_of(sent: str) -> str:
    """The id that the client sent, where it is fit for a log; else a new one."""
    return sent if SANE.fullmatch(sent) else token_hex(8)


@contextmanager
def bound(request_id: str, owner: str) -> Iterator[None]:
    """Every line that is logged within has the request's id, and the name of its token."""
    with structlog.contextvars.bound_contextvars(request_id=request_id, **({"token": owner} if owner else {})):
        yield


def note(request: Request) -> None:
    """Log and measure a request that has been answered."""
    seconds = perf_counter() - request.begun
    prometheus.requests(request.route, request.status).observe(seconds)
    if request.route not in QUIET_ROUTES:
        write_line(request, seconds)


def write_line(request: Request, seconds: float) -> None:
    """The log line of a request."""
    named = {"request_id": request.id, "token": request.owner}
    log.info(
        "request.answered",
        method=request.method,
        route=request.route,
        status=request.status,
        milliseconds=round(seconds * 1000, 1),
        **{name: value for name, value in named.items() if value},
    )
