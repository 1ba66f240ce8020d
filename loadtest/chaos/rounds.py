"""Rounds: faults and clients for a while; then neither, until the counters equal the table; then the verdict."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import redis

from loadtest.chaos import checker, exact, history
from loadtest.chaos.checker import Verdict, Violation
from loadtest.chaos.clients import PATIENCE_SECONDS, Analyst, Client, Eraser, Operator, Producer, Reader, Sent
from loadtest.chaos.injecting import Injector
from loadtest.chaos.journal import Journal
from loadtest.chaos.messages import Clerk
from loadtest.chaos.orders import DAY, Application
from loadtest.chaos.promotions import Promotions
from loadtest.chaos.redis_servers import SeveralServers
from loadtest.chaos.schedule import Fault, Options, expand
from loadtest.chaos.stack import LONGEST_SECONDS, ChaosStack, run_sql
from shared_models import declarations
from shared_models.declarations import get_counter
from shared_models.protocol import states
from shared_models.protocol.states import State

# The lease of a killed keeper lasts up to 10 s, and a keeper that waits for a stopped replica gives up after 12 s.
# A counter that is not exact by then will not become exact.
CONVERGED_SECONDS = 60.0
# Longer than any work of a request after its answer, or after its client has gone; and than the run's own statements.
SETTLED_SECONDS = 3.0

# Faults after which only a reconcile finds removed members.
BYPASSING = ("triggers disabled",)
TABLES = {
    "message": "SELECT message, username, state, city, (create_time AT TIME ZONE '{zone}')::date::text FROM message",
    "orders": f"SELECT token, email, branch::text, deleted_at IS NOT NULL, {DAY} FROM shop.orders",
}
DELETE = {
    "message": "DELETE FROM message WHERE message = ANY(%s)",
    "orders": "DELETE FROM shop.orders WHERE token = ANY(%s)",
}
# A commit that somebody waits for, as every database has some. It takes the pulses before it to the replica; the WAL writer of this
# stack takes them only every 10 s.
DURABLE = "SELECT pg_logical_emit_message(true, 'chaos', '')"
FAILURES = (psycopg2.Error, redis.RedisError, OSError, http.client.HTTPException, ValueError)


@dataclass
class Rest:
    """The result after clients and faults have ended. None if the counters never became exact."""

    exact_seconds: float | None = None
    # The same after rows were deleted, and how many counters needed no reconcile for it.
    left_seconds: float | None = None
    counters: int = 0
    unreconciled: int = 0
    broken: Violation | None = None


@dataclass
class Result:
    """The result of one round."""

    faults: list[Fault]
    rest: Rest
    verdict: Verdict
    history: history.Round
    promotions: int = 0  # of replicas in a cluster of Redis


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
    options = expand(seed, number, seconds, kinds, single=stack.single, cluster=isinstance(stack.redis, SeveralServers))
    say(
        f"Round {number}: {options.producers} producers, {options.erasers} erasers, {options.readers} readers, "
        f"{options.recycled_names} names that come back, batches of {options.batch_rows}, {len(options.faults)} faults"
    )
    clients = list(make_clients(number, f"{seed}/{number}", stack, journal, options))
    injector = Injector(stack, journal, say)
    shards = stack.redis.shards.values() if isinstance(stack.redis, SeveralServers) else ()
    watchers = [Promotions(shard, journal, say) for shard in shards]
    for thread in (*watchers, *clients):
        thread.start()
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
    rest = come_to_rest(stack, journal, over, quiet_wall, say, bypassed=bypassed)
    for watcher in watchers:
        watcher.stop()
    if rest.broken is None:
        journal.write("table", rows=read_tables(stack))
    (*_, now) = history.read(path)
    verdict = checker.judge(now, LONGEST_SECONDS)
    verdict.violations += [rest.broken] if rest.broken else []
    verdict.violations += [Violation("processes", f"{name} ended by itself") for name in dead]
    verdict.violations += [Violation("clients", f"{c.name}: {c.failure!r}") for c in clients if c.failure]
    return Result(injector.done, rest, verdict, now, sum(watcher.count for watcher in watchers))


def make_clients(
    round_number: int, seed: str, stack: ChaosStack, journal: Journal, options: Options
) -> Iterator[Client]:
    """The clients of one round. Their names are unique in the whole run: tokens of rows are made of them."""
    sent = Sent()
    numbers: dict[type[Client], int] = {
        Producer: options.producers,
        Eraser: options.erasers,
        Application: options.applications,
        Clerk: options.clerks,
        Reader: options.readers,
        Analyst: options.analysts,
        Operator: options.operators,
    }
    for kind, number in numbers.items():
        for which in range(number):
            name = f"{kind.__name__.lower()}-{round_number}-{which}"
            yield kind(name, seed, stack, journal, options, sent)


def come_to_rest(
    stack: ChaosStack, journal: Journal, over: float, quiet_wall: float, say: Callable[[str], None], *, bypassed: bool
) -> Rest:
    """Wait until the counters are exact without help; delete rows, and wait again.

    `over` is when the faults ended, `quiet_wall` when the last client did; `bypassed`: only a reconcile finds all that has left.
    """
    rest = Rest()
    if bypassed:
        reconcile(stack, over, quiet_wall)
    rest.exact_seconds, why = wait_until_exact(stack, over, quiet_wall, say)
    if why is not None:
        rest.broken = Violation("P5" if bypassed else "P6", f"not exact after {CONVERGED_SECONDS:.0f} s: {why}")
        return rest
    began, began_wall = time.monotonic(), time.time()
    erase_some(stack, journal)
    # complete_through does not matter here; it moves with the next pulse that the WAL writer writes.
    rest.left_seconds, why = wait_until_exact(stack, began, began_wall, say)
    if why is not None:
        rest.broken = Violation("P6", f"not exact {CONVERGED_SECONDS:.0f} s after rows were deleted: {why}")
        return rest
    found = read_states(stack, [counter.name for counter in declarations.derived()])
    rest.counters, rest.unreconciled = len(found), sum(not verified_after(began_wall, each) for each in found.values())
    return rest


def reconcile(stack: ChaosStack, over: float, quiet_wall: float) -> None:
    """Reconcile the application's counters, as an operator would after the triggers were off.

    Asks again if a run fails: the replica may still be recovering.
    """
    names = [counter.name for counter in declarations.derived() if not counter.table.ingest]
    while time.monotonic() - over < CONVERGED_SECONDS:
        with suppress(*FAILURES):
            if all(verified_after(quiet_wall, state) for state in read_states(stack, names).values()):
                return
            exact.ask(stack.manage.port, "POST", "/v1/runs", {"mode": "repair", "counters": names})
        time.sleep(2.0)


def read_states(stack: ChaosStack, names: list[str]) -> dict[str, State]:
    """The states of derived counters. Raises redis.RedisError."""
    with stack.redis.nodes() as nodes:
        return states.read_wholes(nodes, [get_counter(name) for name in names])


def verified_after(moment_wall: float, state: State) -> bool:
    """Whether a reconcile of this counter ended after this moment."""
    return state.verified_at is not None and state.verified_at.timestamp() > moment_wall


def erase_some(stack: ChaosStack, journal: Journal) -> None:
    """Delete every third row, now that nothing else changes: this time only departures may tell the keeper."""
    for table, rows in read_tables(stack).items():
        tokens = [row[0] for row in rows[::3]]
        n = journal.invoke("rounds", "erase", table=table, where={"token": tokens})
        run_sql(stack.primary, DELETE[table], tokens)
        journal.complete(n, "ok")


def wait_until_exact(
    stack: ChaosStack, over: float, quiet_wall: float, say: Callable[[str], None]
) -> tuple[float | None, str | None]:
    """How long after the faults the counters were exact, and stayed so; or None, and the last difference."""
    why: str | None = "never asked"
    while time.monotonic() - over < CONVERGED_SECONDS:
        try:
            run_sql(stack.primary, DURABLE)
            why = why_not_exact(stack, quiet_wall)
            if why is None:
                seconds = time.monotonic() - over
                time.sleep(SETTLED_SECONDS)
                why = why_not_exact(stack, quiet_wall)
                if why is None:
                    return seconds, None
        except FAILURES as error:
            why = repr(error)
        say(f"          not exact: {why}")
        time.sleep(0.5)
    return None, why


def why_not_exact(stack: ChaosStack, quiet_wall: float) -> str | None:
    """The first difference between counters and tables; None if there is none. Raises FAILURES."""
    busy = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND backend_type = 'client backend'"
    # Manage only reads, and if it reads the primary it does so all the time.
    ((others,),) = run_sql(
        stack.primary, f"{busy} AND pid <> pg_backend_pid() AND application_name <> 'rollcall-manage'"
    )
    if others:
        return f"{others} transactions are still open"
    return exact.why_not_exact(stack, quiet_wall)


def read_tables(stack: ChaosStack) -> dict[str, list[list[Any]]]:
    """Every row of both tables, as the journal writes them."""
    return {
        name: [list(row) for row in run_sql(stack.primary, sql.format(zone=stack.zone))] for name, sql in TABLES.items()
    }
