"""Promotion: the replica becomes the primary, the services follow, and the old primary comes back as its replica."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg2

from compose.local.ordinary_user import own
from compose.local.processes import StackError
from compose.local.servers import HOST, Postgres
from loadtest.chaos.harm import Harm, Impossible, Undo
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import SLOT, checkpoint_at_shutdown, run_sql

# The replica received everything before the primary ended; it has to replay it. Nothing else is done to it meanwhile.
REPLAYED_SECONDS = 5.0
PROMOTED_SECONDS = 15.0
# More requests at once than ingest has threads: each thread opens a connection.
READINESS_REQUESTS = 24

MAKE_SLOT = f"SELECT pg_create_physical_replication_slot('{SLOT}', true)"
DROP_SLOT = f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{SLOT}'"


class Switching(Harm):
    """A switchover as compose/RUNBOOK.md has it. No acknowledged row may be lost: the primary is stopped in order first."""

    def promotion(self, fault: Fault) -> Undo:
        """The services follow at once, the old primary when the fault ends. Until then manage reads the new one."""
        stack = self.stack
        old, new, ingest = stack.primary, stack.replica, stack.wires["ingest-primary"]
        ingest.refusing = True
        ingest.cut()
        try:
            old.stop()
            end = checkpoint_at_shutdown(old)
            if not end or not poll(lambda: has_replayed(new, end), REPLAYED_SECONDS):
                raise Impossible("the replica has not received all that the primary has")
            run_sql(new, DROP_SLOT)
            run_sql(new, MAKE_SLOT)
        except BaseException:
            old.begin()
            ingest.mend()
            raise
        if fault.how == "connected before":
            ingest.target_port, ingest.refusing = new.port, False
            self.let_ingest_connect()
        run_sql(new, "SELECT pg_promote(false)")
        if not poll(lambda: run_sql(new, "SELECT pg_is_in_recovery()") == [(False,)], PROMOTED_SECONDS):
            raise StackError("the replica was promoted, and is no primary")
        stack.switch()
        ingest.target_port = new.port
        ingest.mend()
        return self.follow

    def follow(self) -> None:
        """Start the old primary as a replica, and let manage read it."""
        old = self.stack.replica
        signal = old.data / "standby.signal"
        signal.touch()
        own(signal)
        self.lead("replica-primary", self.stack.primary)
        old.begin()
        self.lead("manage-replica", old)

    def lead(self, wire: str, server: Postgres) -> None:
        """Let a wire end at another server."""
        self.stack.wires[wire].target_port = server.port
        self.stack.wires[wire].cut()

    def let_ingest_connect(self) -> None:
        """Ask all threads of ingest whether they are ready. They are not, and keep their connections."""

        def ask(_: int) -> None:
            connection = http.client.HTTPConnection(HOST, self.stack.ingest.port, timeout=2)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/readyz")
                connection.getresponse().read()
            connection.close()

        with ThreadPoolExecutor(READINESS_REQUESTS) as pool:
            list(pool.map(ask, range(READINESS_REQUESTS)))


def has_replayed(server: Postgres, end: str) -> bool:
    """Whether a replica has replayed the record that begins here."""
    return run_sql(server, "SELECT pg_last_wal_replay_lsn() > %s::pg_lsn", end) == [(True,)]


def poll(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(psycopg2.Error):
            if condition():
                return True
        time.sleep(0.05)
    return False
