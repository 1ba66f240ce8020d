"""What a service notes for each request: an id, which the client may choose and gets back; one log line; one measurement.

No bodies, no query strings, no addresses, no keys.
"""

from __future__ import annotations

import re
from random import getrandbits
from time import perf_counter
from typing import TYPE_CHECKING

from shared_models import logs
from shared_models.web import prometheus

if TYPE_CHECKING:
    from shared_models.web.asgi import Request

# The client's id goes into our log lines: no spaces, no quotes, no control characters, and a limited length.
SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")

# Machines ask for these every few seconds; a line for each would hide the others.
QUIET_ROUTES = {"/livez", "/readyz", "/metrics"}
# The route of a request that no route takes, or that is refused before its route is known. Clients invent paths: each
# would be a metric of its own, and may put a name into the log.
NO_ROUTE = "none"


def id_of(sent: str) -> str:
    """The id that the client sent, if it may go into a log; else a new one, which need not be secret."""
    return sent if SANE.fullmatch(sent) else f"{getrandbits(64):016x}"


def facts_of(request: Request) -> dict[str, object]:
    """The facts in every line about a request, as far as they are known."""
    facts: dict[str, object] = {}
    if request.id:
        facts["request_id"] = request.id
    if request.owner:
        facts["token"] = request.owner
    return facts


def note(request: Request) -> None:
    """Log and measure a request that has been answered."""
    seconds = perf_counter() - request.begun
    prometheus.requests(request.route, request.status).observe(seconds)
    if request.route not in QUIET_ROUTES:
        write_line(request, seconds)


def write_line(request: Request, seconds: float) -> None:
    """The log line of a request."""
    facts = facts_of(request)
    facts["method"] = request.method
    facts["route"] = request.route
    facts["status"] = request.status
    facts["milliseconds"] = round(seconds * 1000, 1)
    logs.write("request.answered", facts)
