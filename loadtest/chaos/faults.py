"""How each kind of fault is done, and undone. A kind is the method of that name."""

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

from compose.processes import Process, kill
from loadtest.chaos.journal import Journal
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import STATEMENT_SECONDS, ChaosStack, connected, family, run_sql

Undo = Callable[[], None]

# How long an undoing may take, or is tried again: a server that was killed a moment ago recovers first.
UNDO_SECONDS = 15.0


class Impossible(Exception):
    """This fault cannot be done now: what it wants to harm is not there."""


class Faults:
    """What can be done to a stack."""

    def __init__(self, stack: ChaosStack, journal: Journal, say: Callable[[str], None]) -> None:
        self.stack, self.journal, self.say = stack, journal, say

    def do(self, fault: Fault) -> Undo:
        """Do it; how to undo it. Raises Impossible, and what the servers raise."""
        does = getattr(self, fault.kind.replace(" ", "_").replace("-", "_").lower())
        undo: Undo = does(fault)
        return undo

    # -- processes

    def kill(self, fault: Fault) -> Undo:
        if fault.target == "ingest worker":
            kill(self.worker(fault))
            return lambda: None  # gunicorn starts another one
        process = self.stack.by_name(fault.target)
        process.kill()
        return process.begin

    def kill_valkey(self, fault: Fault) -> Undo:
        valkey = self.stack.valkey
        if fault.how == "restart from an older save":
            with valkey.client() as client:
                client.save()
            (valkey.folder / "dump.rdb").replace(valkey.folder / "older.rdb")
            return self.restart_from_save
        self.lose(valkey)
        if fault.how == "restart empty":
            shutil.rmtree(valkey.folder / "appendonlydir", ignore_errors=True)
            (valkey.folder / "dump.rdb").unlink(missing_ok=True)
        return valkey.start

    def restart_from_save(self) -> None:
        """Kill Valkey, and let it begin with what it held when the fault began."""
        valkey = self.stack.valkey
        older = valkey.folder / "older.rdb"
        if older.exists():
            self.lose(valkey)
            shutil.rmtree(valkey.folder / "appendonlydir", ignore_errors=True)
            older.replace(valkey.folder / "dump.rdb")
        # With an AOF to come it would begin empty; so it is told of the AOF afterwards.
        valkey.config["appendonly"] = "no"
        try:
            valkey.start()
            with valkey.client() as client:
                client.config_set("appendonly", "yes")
        finally:
            valkey.config["appendonly"] = "yes"

    def lose(self, valkey: Process) -> None:
        """Kill Valkey. Whatever it restarts from, the last moments may be missing."""
        began = time.monotonic()
        valkey.kill()
        self.journal.write("loss", **{"from": began})

    def stop(self, fault: Fault) -> Undo:
        if fault.target == "ingest worker":
            stopped = [self.worker(fault)]
        else:
            stopped = family(self.stack.by_name(fault.target))
        for each in stopped:
            with suppress(psutil.NoSuchProcess):
                each.suspend()

        def go_on() -> None:
            for each in stopped:
                with suppress(psutil.NoSuchProcess):
                    each.resume()

        return go_on

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
        # Ingest sets a statement_timeout of its own; this one it does not, and it is crueller: the connection goes.
        return self.configure_primary("transaction_timeout", "3ms")

    def configure_primary(self, setting: str, value: str) -> Undo:
        def apply(cursor: Any, change: str) -> None:
            cursor.execute(f"ALTER SYSTEM {change}")
            cursor.execute("SELECT pg_reload_conf()")

        # One connection for both: under some of these settings a new one has a hard time.
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
        """Hold the table against every writer, as a careless migration does."""
        return self.in_the_background(fault, "LOCK TABLE message IN EXCLUSIVE MODE", end="ROLLBACK")

    def transaction_left_open(self, fault: Fault) -> Undo:
        """A row whose transaction ends long after it has taken its xact, while others come and go."""
        token = f"open-{fault.number}-{time.monotonic_ns()}"
        row = [token, f"new-{token}", "OH", f"Town {token}"]
        n = self.journal.invoke("open transaction", "post", request=token, rows=[row])

        def ended(outcome: str) -> None:
            self.journal.complete(n, outcome, counted=False, answer=None)

        statement = "INSERT INTO message (message, username, state, city) VALUES (%s, %s, %s, %s)"
        end = "COMMIT" if fault.how == "commit" else "ROLLBACK"
        return self.in_the_background(fault, statement, *row, end=end, ended=ended)

    def in_the_background(
        self,
        fault: Fault,
        statement: str,
        *parameters: str,
        end: str,
        ended: Callable[[str], None] = lambda outcome: None,
    ) -> Undo:
        """Run a statement in a transaction, which ends when the fault does."""
        over = threading.Event()

        def hold() -> None:
            outcome = "refused"
            try:
                with connected(self.stack.primary, fault.seconds + STATEMENT_SECONDS) as cursor:
                    cursor.execute(f"BEGIN; {statement}", parameters or None)
                    over.wait(fault.seconds)
                    outcome = "unknown" if end == "COMMIT" else "refused"
                    cursor.execute(end)
                    # A transaction that has failed answers COMMIT with ROLLBACK, and no error.
                    outcome = "ok" if cursor.statusmessage == "COMMIT" else "refused"
            except psycopg2.Error as error:
                self.say(f"          {fault.kind} ended early: {str(error).strip()}")
            ended(outcome)

        thread = threading.Thread(target=hold, name=fault.kind, daemon=True)
        thread.start()

        def finish() -> None:
            over.set()
            thread.join()

        return finish

    def writes_refused(self, fault: Fault) -> Undo:
        """Valkey is full, and refuses to grow."""

        def set_memory(limit: int) -> None:
            with self.stack.valkey.client() as client:
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
