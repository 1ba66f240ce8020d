"""Rounds: faults and clients for a while; then neither, until the counters equal the table by themselves; then the verdict."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import redis

from compose.local.servers import HOST
from loadtest.chaos import checker, history
from loadtest.chaos.checker import Verdict, Violation
from loadtest.chaos.clients import PATIENCE_SECONDS, make_clients
from loadtest.chaos.injecting import Injector
from loadtest.chaos.journal import Journal
from loadtest.chaos.schedule import Fault, expand
from loadtest.chaos.stack import LONGEST_SECONDS, ChaosStack, run_sql
from shared_models.protocol import keys
from shared_models.protocol.members import encode

# A keeper that was killed holds its lease for up to 10 s, and one that waited for a stopped replica gives up after 12 s.
# What takes longer than this does not come by itself.
CONVERGED_SECONDS = 60.0
# Longer than anything that a request does after its answer, or its client, is gone; also than the run's own statements.
SETTLED_SECONDS = 3.0

FIELDS = {"users": ("username",), "cities": ("state", "city")}
FAILURES = (psycopg2.Error, redis.RedisError, OSError, http.client.HTTPException, ValueError)


@dataclass
class Result:
    """What came of one round."""

    faults: list[Fault]
    converged_seconds: float | None  # None: it never did
    verdict: Verdict
    history: history.Round


def run_round(
    stack: ChaosStack,
    journal: Journal,
    path: Path,
    seed: int,
    number: int,
    seconds: float,
    kinds: Sequence[str],
    say: Callable[[str], None],
) -> Result:
    """One round; `path` is the journal's."""
    options = expand(seed, number, seconds, kinds, single=stack.single)
    say(
        f"Round {number}: {options.producers} producers, {options.erasers} erasers, {options.readers} readers, "
        f"{options.recycled_names} names that come back, batches of {options.batch_rows}, {len(options.faults)} faults"
    )
    clients = list(make_clients(number, f"{seed}/{number}", stack, journal, options))
    injector = Injector(stack, journal, say)
    for client in clients:
        client.start()
    try:
        injector.run(options.faults, seconds)
    finally:
        for client in clients:
            client.stopping.set()
    over = time.monotonic()
    for client in clients:
        client.join(2 * PATIENCE_SECONDS)
    quiet_wall = time.time()

    dead = [process.name for process in stack.processes if process.running() is None]
    converged_seconds, why = wait_until_exact(stack, over, quiet_wall)
    if why is None:
        journal.write("table", rows=read_table(stack))
    (*_, now) = history.read(path)
    verdict = checker.judge(now, LONGEST_SECONDS)
    if why is not None:
        verdict.violations.append(Violation("P5", f"not exact after {CONVERGED_SECONDS:.0f} s: {why}"))
    verdict.violations += [Violation("processes", f"{name} ended by itself") for name in dead]
    verdict.violations += [Violation("clients", f"{c.name}: {c.failure!r}") for c in clients if c.failure]
    return Result(injector.done, converged_seconds, verdict, now)


def wait_until_exact(stack: ChaosStack, over: float, quiet_wall: float) -> tuple[float | None, str | None]:
    """How long after the faults the counters were exact, and stayed so; or None, and what was wrong at last."""
    why: str | None = "never asked"
    while time.monotonic() - over < CONVERGED_SECONDS:
        try:
            why = why_not_exact(stack, quiet_wall)
            if why is None:
                seconds = time.monotonic() - over
                time.sleep(SETTLED_SECONDS)
                why = why_not_exact(stack, quiet_wall)
                if why is None:
                    return seconds, None
        except FAILURES as error:
            why = repr(error)
        time.sleep(0.1)
    return None, why


def why_not_exact(stack: ChaosStack, quiet_wall: float) -> str | None:
    """What keeps the counters from being the table, member by member; None where they are. Raises FAILURES."""
    busy = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND backend_type = 'client backend'"
    # Manage only reads, and where it reads the primary it does so all the time.
    ((others,),) = run_sql(
        stack.primary, f"{busy} AND pid <> pg_backend_pid() AND application_name <> 'rollcall-manage'"
    )
    if others:
        return f"{others} transactions are still open"
    for name, fields in FIELDS.items():
        served = read_count(stack, name)
        if served["state"] != "live" or served["complete_through"] is None:
            return f"{name} is {served['state']}"
        if datetime.fromisoformat(served["complete_through"]).timestamp() < quiet_wall:
            return f"{name} is complete through {served['complete_through']} only"
        with stack.valkey.client() as client:
            members = client.smembers(keys.of_counter(name).members)
        rows = run_sql(stack.primary, f"SELECT DISTINCT {', '.join(fields)} FROM message")
        table = {encode(row) for row in rows}
        if members != table or served["count"] != len(table):
            missing, extra = sorted(table - members)[:3], sorted(members - table)[:3]
            return f"{name}: {served['count']} served, {len(table)} in the table; missing {missing}, extra {extra}"
    return None


def read_count(stack: ChaosStack, name: str) -> dict[str, Any]:
    """What query says of a counter now."""
    connection = http.client.HTTPConnection(HOST, stack.query.port, timeout=5)
    try:
        connection.request("GET", f"/v1/counts/{name}", headers={"Cache-Control": "no-cache"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        return body if answer.status == 200 else {"state": body["title"], "complete_through": None}
    finally:
        connection.close()


def read_table(stack: ChaosStack) -> list[list[str]]:
    """Every row, as the journal writes them."""
    rows = run_sql(stack.primary, "SELECT message, username, state, city FROM message")
    return [list(row) for row in rows]
