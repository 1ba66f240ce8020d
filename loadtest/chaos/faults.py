"""How each kind of fault is injected, and undone. A kind is the method of that name.

Here are those of processes, servers and wires; `tampering` has those of data, `departing` those of departures, `switching` has
the promotion of Postgres' replica, `failing_over` those of a cluster of Redis.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import psutil
import psycopg2

from compose.local.processes import Process, kill
from compose.local.servers import Valkey
from loadtest.chaos.departing import Departing
from loadtest.chaos.failing_over import FailingOver
from loadtest.chaos.harm import UNDO_SECONDS, Impossible, Undo, nothing, suspended
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import STATEMENT_SECONDS, connected, family, run_sql
from loadtest.chaos.switching import Switching
from loadtest.chaos.tampering import Tampering

INSERT = "INSERT INTO message (message, username, state, city) VALUES (%s, %s, %s, %s)"
# More than the names that are erased and come back: so this many missing rows show in a count.
ROWS_AFTER_CRASH = 100
# 200 transaction ids.
BURN = "DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"


class Faults(Tampering, Departing, Switching, FailingOver):
    """What can be done to a stack."""

    def do(self, fault: Fault) -> Undo:
        """Inject it; returns how to undo it. Raises Impossible, and the errors of the servers."""
        does = getattr(self, method_of(fault.kind))
        undo: Undo = does(fault)
        return undo

    # -- processes

    def kill(self, fault: Fault) -> Undo:
        if fault.target == "ingest worker":
            kill(self.worker(fault))
            return nothing  # gunicorn starts another one
        process = self.stack.by_name(fault.target)
        process.kill()
        return process.begin

    def kill_backend(self, fault: Fault) -> Undo:
        """Kill one session of the primary: Postgres ends all others, and recovers as after a crash, without a new start."""
        sessions = [each for each in family(self.stack.primary)[1:] if is_session(each)]
        if not sessions:
            raise Impossible("the primary has no session at the moment")
        sessions[fault.number % len(sessions)].kill()
        return nothing

    def kill_valkey(self, fault: Fault) -> Undo:
        (valkey,) = self.stack.redis.named(fault.target)
        if fault.how == "restart from an older save":
            with valkey.client() as client:
                client.save()
            (valkey.folder / "dump.rdb").replace(valkey.folder / "older.rdb")
            return partial(self.restart_from_save, valkey)
        self.kill_and_lose(valkey)
        if fault.how == "restart empty":
            shutil.rmtree(valkey.folder / "appendonlydir", ignore_errors=True)
            (valkey.folder / "dump.rdb").unlink(missing_ok=True)
        return valkey.start

    def restart_from_save(self, valkey: Valkey) -> None:
        """Kill Valkey, and restart it with its data from the start of the fault."""
        older = valkey.folder / "older.rdb"
        if older.exists():
            self.kill_and_lose(valkey)
            shutil.rmtree(valkey.folder / "appendonlydir", ignore_errors=True)
            older.replace(valkey.folder / "dump.rdb")
        # With an AOF configured it would start empty; so the AOF is turned on afterwards.
        valkey.config["appendonly"] = "no"
        try:
            valkey.start()
            with valkey.client() as client:
                client.config_set("appendonly", "yes")
        finally:
            valkey.config["appendonly"] = "yes"

    def kill_and_lose(self, valkey: Process) -> None:
        """Kill Valkey. Whatever it restarts from, its latest writes may be missing."""
        began = time.monotonic()
        valkey.kill()
        self.lose(began)

    def stop(self, fault: Fault) -> Undo:
        if fault.target == "ingest worker":
            stopped = [self.worker(fault)]
        else:
            stopped = family(self.stack.by_name(fault.target))
        return suspended(stopped)

    stop_for_long = stop

    def worker(self, fault: Fault) -> psutil.Process:
        """One of ingest's workers."""
        workers = family(self.stack.ingest)[1:]
        if not workers:
            raise Impossible("ingest has no worker at the moment")
        return sorted(workers, key=lambda worker: worker.pid)[int(fault.how) % len(workers)]

    def wrong_clock(self, fault: Fault) -> Undo:
        """Start ingest on a machine whose clock is wrong."""

        def restart(clock_seconds: int) -> None:
            self.stack.clock_seconds = clock_seconds
            self.stack.ingest.kill()
            self.stack.ingest.begin()

        restart(int(fault.how))
        return partial(restart, 0)

    # -- servers that refuse

    def replay_paused(self, fault: Fault) -> Undo:
        run_sql(self.stack.replica, "SELECT pg_wal_replay_pause()")

        def resume_replay() -> None:
            run_sql(self.stack.replica, "SELECT pg_wal_replay_resume()")

        return resume_replay

    def read_only(self, fault: Fault) -> Undo:
        return self.configure_primary("default_transaction_read_only", "on")

    def statements_time_out(self, fault: Fault) -> Undo:
        # Ingest sets a statement_timeout of its own, but not this one, which is worse: it closes the connection.
        return self.configure_primary("transaction_timeout", "3ms")

    def configure_primary(self, setting: str, value: str) -> Undo:
        def apply(cursor: Any, change: str) -> None:
            cursor.execute(f"ALTER SYSTEM {change}")
            cursor.execute("SELECT pg_reload_conf()")

        # One connection for both: under some of these settings a new one may fail.
        held = ExitStack()
        cursor = held.enter_context(connected(self.stack.primary, UNDO_SECONDS))
        apply(cursor, f"SET {setting} = '{value}'")

        def reset() -> None:
            try:
                with held:
                    apply(cursor, f"RESET {setting}")
            except psycopg2.Error:
                with connected(self.stack.primary) as another:
                    apply(another, f"RESET {setting}")

        return reset

    def table_locked(self, fault: Fault) -> Undo:
        """Lock the table against every writer, as a careless migration does."""
        return self.hold_open(fault, "LOCK TABLE message IN EXCLUSIVE MODE", end="ROLLBACK")

    def transaction_left_open(self, fault: Fault) -> Undo:
        """A row whose transaction ends long after it has got its xact, while others begin and end."""
        (row,), ended = self.send_rows(fault, 1)
        end = "COMMIT" if fault.how == "commit" else "ROLLBACK"
        return self.hold_open(fault, INSERT, *row[:4], end=end, ended=ended)

    def send_rows(self, fault: Fault, number: int) -> tuple[list[list[str]], Callable[[str], None]]:
        """Rows to store by SQL, all or none; and a function to note the outcome."""
        request = f"sql-{fault.number}-{time.monotonic_ns()}"
        tokens = [f"{request}-{which}" for which in range(number)]
        rows = [[token, f"new-{token}", "OH", f"Town {token}", str(self.stack.today)] for token in tokens]
        n = self.journal.invoke(fault.kind, "post", request=request, rows=rows)

        def ended(outcome: str) -> None:
            self.journal.complete(n, outcome, counted=False, answer=None)

        return rows, ended

    def burn_xids(self, fault: Fault) -> Undo:
        """Transactions that write nothing but take an id; then a crash: nobody waited for their log, so it may be lost, and
        the primary gives out the ids again. Then rows that ingest does not count, and as many ids again.

        Ingest is stopped until the crash: each of its commits flushes the whole log to the disk.
        """
        wire = self.stack.wires["ingest-primary"]
        wire.refusing = True
        wire.cut()

        def burn(over: threading.Event) -> None:
            with connected(self.stack.primary, fault.seconds + STATEMENT_SECONDS) as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                session = psutil.Process(cursor.fetchone()[0])
                while not over.wait(0.01):
                    cursor.execute(BURN)
                session.kill()

        crash = self.in_the_background(fault, burn)

        def go_on() -> None:
            crash()
            wire.mend()
            with connected(self.stack.primary) as cursor:
                rows, ended = self.send_rows(fault, ROWS_AFTER_CRASH)
                try:
                    cursor.execute("BEGIN")
                    cursor.executemany(INSERT, [row[:4] for row in rows])
                    cursor.execute("COMMIT")
                except psycopg2.Error:
                    ended("unknown")
                    raise
                ended("ok")
                for _ in range(round(fault.seconds / 0.01)):
                    cursor.execute(BURN)

        return go_on

    def writes_refused(self, fault: Fault) -> Undo:
        """Valkey is full, and refuses to grow."""

        def set_memory(limit: int) -> None:
            for server in self.stack.redis.named(fault.target):
                with server.client() as client:
                    client.config_set("maxmemory", limit)

        set_memory(1)
        return partial(set_memory, 0)

    # -- wires

    def cut(self, fault: Fault) -> Undo:
        wire = self.stack.wires[fault.target]
        wire.cut()
        return wire.mend

    def refuse(self, fault: Fault) -> Undo:
        wire = self.stack.wires[fault.target]
        wire.refusing = True
        wire.cut()
        return wire.mend

    def delay(self, fault: Fault) -> Undo:
        wire = self.stack.wires[fault.target]
        wire.delay_seconds = float(fault.how)
        return wire.mend

    def hold(self, fault: Fault) -> Undo:
        wire = self.stack.wires[fault.target]
        wire.holding = True
        return wire.mend

    def half_open(self, fault: Fault) -> Undo:
        wire = self.stack.wires[fault.target]
        wire.swallowing = True
        return wire.mend

    def reset_during_commit(self, fault: Fault) -> Undo:
        wire = self.stack.wires[fault.target]
        wire.severing = fault.how
        return wire.mend


def method_of(kind: str) -> str:
    """The name of the method for a kind of fault."""
    return kind.replace(" ", "_").replace("-", "_").lower()


def is_session(process: psutil.Process) -> bool:
    """Whether this process of Postgres serves a client, and not a replica."""
    with suppress(psutil.Error):
        title = " ".join(process.cmdline())
        return "127.0.0.1(" in title and "walsender" not in title
    return False
