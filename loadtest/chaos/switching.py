"""Promotion: the replica becomes the primary, the services follow, and the old primary comes back as its replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psycopg2

from compose.local.ordinary_user import own
from compose.local.processes import StackError
from compose.local.servers import Postgres
from loadtest.chaos.harm import Harm, Impossible, Undo
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import SLOT, checkpoint_at_shutdown, run_sql

# The replica received everything before the primary ended; it has to replay it. It has no other fault meanwhile.
REPLAYED_SECONDS = 5.0
PROMOTED_SECONDS = 15.0
# At least one for the single rows of each worker; and how long producers may take to open that many.
KEPT_CONNECTIONS, CONNECTED_SECONDS = 4, 2.0
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rollcall-ingest'"

MAKE_SLOT = f"SELECT pg_create_physical_replication_slot('{SLOT}', true)"
DROP_SLOT = f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{SLOT}'"


class Switching(Harm):
    """A switchover as in docs/runbook.md. No acknowledged row may be lost: the primary is first shut down in order."""

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
        """Wait until ingest has connections to the new server. It refuses the producers' rows, and keeps the connections."""
        poll(lambda: run_sql(self.stack.replica, CONNECTIONS)[0][0] >= KEPT_CONNECTIONS, CONNECTED_SECONDS)


def has_replayed(server: Postgres, end: str) -> bool:
    """Whether a replica has replayed the record that begins here."""
    return run_sql(server, "SELECT pg_last_wal_replay_lsn() > %s::pg_lsn", end) == [(True,)]


def poll(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it becomes true within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(psycopg2.Error):
            if condition():
                return True
        time.sleep(0.05)
    return False
