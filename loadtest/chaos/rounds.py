"""Rounds: faults and clients for a while; then neither, until the counters equal the table; then the verdict."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import redis

from compose.local.servers import HOST
from loadtest.chaos import checker, history
from loadtest.chaos.checker import Verdict, Violation
from loadtest.chaos.clients import PATIENCE_SECONDS, Client, Eraser, Operator, Producer, Reader, Sent
from loadtest.chaos.injecting import Injector
from loadtest.chaos.journal import Journal
from loadtest.chaos.orders import Application
from loadtest.chaos.schedule import Fault, Options, expand
from loadtest.chaos.stack import LONGEST_SECONDS, ChaosStack, run_sql
from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.protocol import keys
from shared_models.protocol.members import encode

# The lease of a killed keeper lasts up to 10 s, and a keeper that waits for a stopped replica gives up after 12 s.
# A counter that is not exact by then will not become exact.
CONVERGED_SECONDS = 60.0
# Longer than any work of a request after its answer, or after its client has gone; and than the run's own statements.
SETTLED_SECONDS = 3.0

# Faults after which only a reconcile finds removed members.
BYPASSING = ("triggers disabled",)
TABLES = {
    "message": "SELECT message, username, state, city FROM message",
    "orders": "SELECT token, email, branch::text, deleted_at IS NOT NULL FROM shop.orders",
}
DELETE = {
    "message": "DELETE FROM message WHERE message = ANY(%s)",
    "orders": "DELETE FROM shop.orders WHERE token = ANY(%s)",
}
FAILURES = (psycopg2.Error, redis.RedisError, OSError, http.client.HTTPException, ValueError)


@dataclass
class Rest:
    """The result after clients and faults have ended. None if the counters never became exact."""

    exact_seconds: float | None = None
    # The same after rows were deleted, and how many counters needed no reconcile for it.
    left_seconds: float | None = None
    unreconciled: int = 0
    broken: Violation | None = None


@dataclass
class Result:
    """The result of one round."""

    faults: list[Fault]
    rest: Rest
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
        if not stack.adopted:
            stack.adopt()
        injector.run(options.faults, seconds)
    finally:
        for client in clients:
            client.stopping.set()
    over = time.monotonic()
    for client in clients:
        client.join(2 * PATIENCE_SECONDS)
    quiet_wall = time.time()

    dead = [process.name for process in stack.processes if process.running() is None]
    bypassed = any(fault.kind in BYPASSING for fault in injector.done)
    rest = come_to_rest(stack, journal, over, quiet_wall, bypassed=bypassed)
    if rest.broken is None:
        journal.write("table", rows=read_tables(stack))
    (*_, now) = history.read(path)
    verdict = checker.judge(now, LONGEST_SECONDS)
    verdict.violations += [rest.broken] if rest.broken else []
    verdict.violations += [Violation("processes", f"{name} ended by itself") for name in dead]
    verdict.violations += [Violation("clients", f"{c.name}: {c.failure!r}") for c in clients if c.failure]
    return Result(injector.done, rest, verdict, now)


def make_clients(
    round_number: int, seed: str, stack: ChaosStack, journal: Journal, options: Options
) -> Iterator[Client]:
    """The clients of one round. Their names are unique in the whole run: tokens of rows are made of them."""
    sent = Sent()
    numbers: dict[type[Client], int] = {
        Producer: options.producers,
        Eraser: options.erasers,
        Application: options.applications,
        Reader: options.readers,
        Operator: options.operators,
    }
    for kind, number in numbers.items():
        for which in range(number):
            name = f"{kind.__name__.lower()}-{round_number}-{which}"
            yield kind(name, seed, stack, journal, options, sent)


def come_to_rest(stack: ChaosStack, journal: Journal, over: float, quiet_wall: float, *, bypassed: bool) -> Rest:
    """Wait until the counters are exact without help; delete rows, and wait again.

    `over` is when the faults ended, `quiet_wall` when the last client did; `bypassed`: only a reconcile finds all that has left.
    """
    rest = Rest()
    if bypassed:
        reconcile(stack, over, quiet_wall)
    rest.exact_seconds, why = wait_until_exact(stack, over, quiet_wall)
    if why is not None:
        rest.broken = Violation("P5" if bypassed else "P6", f"not exact after {CONVERGED_SECONDS:.0f} s: {why}")
        return rest
    began, began_wall = time.monotonic(), time.time()
    erase_some(stack, journal)
    # complete_through does not matter here; it moves with the next pulse that the WAL writer writes.
    rest.left_seconds, why = wait_until_exact(stack, began, began_wall)
    if why is not None:
        rest.broken = Violation("P6", f"not exact {CONVERGED_SECONDS:.0f} s after rows were deleted: {why}")
        return rest
    served = [read_count(stack, counter.name) for counter in declarations.COUNTERS]
    rest.unreconciled = sum(not verified_after(began_wall, each) for each in served)
    return rest


def reconcile(stack: ChaosStack, over: float, quiet_wall: float) -> None:
    """Reconcile the application's counters, as an operator would after the triggers were off.

    Asks again if a run fails: the replica may still be recovering.
    """
    names = [counter.name for counter in declarations.COUNTERS if not counter.table.ingest]
    while time.monotonic() - over < CONVERGED_SECONDS:
        with suppress(*FAILURES):
            if all(verified_after(quiet_wall, read_count(stack, name)) for name in names):
                return
            ask(stack.manage.port, "POST", "/v1/runs", {"mode": "repair", "counters": names})
        time.sleep(2.0)


def verified_after(moment_wall: float, served: dict[str, Any]) -> bool:
    """Whether a reconcile of this counter ended after this moment."""
    at = served.get("verified_at")
    return at is not None and datetime.fromisoformat(at).timestamp() > moment_wall


def erase_some(stack: ChaosStack, journal: Journal) -> None:
    """Delete every third row, now that nothing else changes: this time only departures may tell the keeper."""
    for table, rows in read_tables(stack).items():
        tokens = [row[0] for row in rows[::3]]
        n = journal.invoke("rounds", "erase", table=table, where={"token": tokens})
        run_sql(stack.primary, DELETE[table], tokens)
        journal.complete(n, "ok")


def wait_until_exact(stack: ChaosStack, over: float, quiet_wall: float) -> tuple[float | None, str | None]:
    """How long after the faults the counters were exact, and stayed so; or None, and the last difference."""
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
        time.sleep(0.5)
    return None, why


def why_not_exact(stack: ChaosStack, quiet_wall: float) -> str | None:
    """The first difference between counters and table, member by member; None if there is none. Raises FAILURES."""
    busy = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND backend_type = 'client backend'"
    # Manage only reads, and if it reads the primary it does so all the time.
    ((others,),) = run_sql(
        stack.primary, f"{busy} AND pid <> pg_backend_pid() AND application_name <> 'rollcall-manage'"
    )
    if others:
        return f"{others} transactions are still open"
    for counter in declarations.COUNTERS:
        name = counter.name
        served = read_count(stack, name)
        if served["state"] != "live" or served["complete_through"] is None:
            return f"{name} is {served['state']}"
        if datetime.fromisoformat(served["complete_through"]).timestamp() < quiet_wall:
            return f"{name} is complete through {served['complete_through']} only"
        with stack.valkey.client() as client:
            members = client.smembers(keys.of_counter(name).members)
        table = {encode(row) for row in run_sql(stack.primary, distinct(counter))}
        if members != table or served["count"] != len(table):
            missing, extra = sorted(table - members)[:3], sorted(members - table)[:3]
            return f"{name}: {served['count']} served, {len(table)} in the table; missing {missing}, extra {extra}"
    return None


def distinct(counter: Counter) -> str:
    """The counter as SQL that people write: the members that COUNT(DISTINCT …) counts."""
    filled = [f"{field} IS NOT NULL" for field in counter.fields]
    conditions = " AND ".join([f"({counter.where})", *filled] if counter.where else filled)
    texts = ", ".join(f"{field}::text" for field in counter.fields)
    return f"SELECT DISTINCT {texts} FROM {counter.table.schema}.{counter.table.relation} WHERE {conditions}"


def read_count(stack: ChaosStack, name: str) -> dict[str, Any]:
    """Query's present answer for a counter."""
    status, body = ask(stack.query.port, "GET", f"/v1/counts/{name}")
    return body if status == 200 else {"state": body["title"], "complete_through": None}


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and decoded answer of a service, read for this request. Raises FAILURES."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Cache-Control": "no-cache", "Content-Type": "application/json"}
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def read_tables(stack: ChaosStack) -> dict[str, list[list[Any]]]:
    """Every row of both tables, as the journal writes them."""
    return {name: [list(row) for row in run_sql(stack.primary, sql)] for name, sql in TABLES.items()}
