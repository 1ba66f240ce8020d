"""Waits until the counters claim to be complete: an earlier comparison proves nothing."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing
from datetime import datetime
from typing import Any

import psycopg2

from compose.local.servers import HOST
from compose.local.stack import Stack

SETTLE_SECONDS = 120.0
PAUSE_SECONDS = 0.1

# The primary's time, and the number of open transactions.
QUIET = """SELECT clock_timestamp(), (SELECT count(*) FROM pg_stat_activity
           WHERE xact_start IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid())"""


class StillUnequal(Exception):
    """The counters did not become complete, although nobody writes."""


def wait_until_settled(stack: Stack) -> None:
    """Return when every counter's complete_through is after this call. Raises StillUnequal."""
    deadline = time.monotonic() + SETTLE_SECONDS
    why, quiet_at = "transactions are still open on the primary", None
    while time.monotonic() < deadline:
        if quiet_at is None:
            now, at_work = look(stack)
            quiet_at = None if at_work else now
        else:
            reasons = [
                f"{name} is {counter['state']}, complete through {counter['complete_through']}"
                for name, counter in served_counts(stack).items()
                if counter["state"] != "live" or datetime.fromisoformat(counter["complete_through"]) < quiet_at
            ]
            if not reasons:
                return
            why = "; ".join(reasons)
        time.sleep(PAUSE_SECONDS)
    raise StillUnequal(f"after {SETTLE_SECONDS:.0f} s without writes: {why}")


def look(stack: Stack) -> tuple[datetime, int]:
    """The primary's time, and how many transactions are open there."""
    with closing(psycopg2.connect(stack.primary.url)) as database, database.cursor() as cursor:
        cursor.execute(QUIET)
        ((now, at_work),) = cursor.fetchall()
        return now, at_work


def served_counts(stack: Stack) -> dict[str, dict[str, Any]]:
    """Query's answer for every counter, read from Redis now."""
    with closing(http.client.HTTPConnection(HOST, stack.query.port, timeout=10)) as connection:
        connection.request("GET", "/v1/counts", headers={"Cache-Control": "no-cache", **stack.query.authorization()})
        answer = json.loads(connection.getresponse().read())
    counters: dict[str, dict[str, Any]] = answer["counters"]
    return counters
