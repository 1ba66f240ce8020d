"""Faults of departures: rows of the application's table that leave late or unnoted, or whose note is pruned too early."""

from __future__ import annotations

from contextlib import suppress

import psycopg2

from ingest_service.writing.departures import PRUNE, PRUNE_ROWS
from loadtest.chaos.clients import BRANCHES
from loadtest.chaos.harm import Harm, Undo
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import LOCK_MILLISECONDS, connected, run_sql

# The triggers that note departures: the one of TRUNCATE fires in a replica's session, too.
DISABLE = "ALTER TABLE shop.orders DISABLE TRIGGER zzz_rollcall_delete, DISABLE TRIGGER zzz_rollcall_truncate"
ENABLE = "ALTER TABLE shop.orders ENABLE TRIGGER zzz_rollcall_delete, ENABLE ALWAYS TRIGGER zzz_rollcall_truncate"


class Departing(Harm):
    """None of these makes an answer wrong; `triggers_disabled` needs a reconcile afterwards."""

    def deletes_left_open(self, fault: Fault) -> Undo:
        """Delete all orders of a branch in a transaction that ends much later."""
        branch = BRANCHES[fault.number % len(BRANCHES)]
        n = self.journal.invoke(fault.kind, "erase", table="orders", where={"branch": branch})
        end = "COMMIT" if fault.how == "commit" else "ROLLBACK"
        delete = "DELETE FROM shop.orders WHERE branch = %s"
        return self.hold_open(fault, delete, branch, end=end, ended=lambda outcome: self.journal.complete(n, outcome))

    def triggers_disabled(self, fault: Fault) -> Undo:
        """Nothing notes rows that are deleted meanwhile."""

        def alter(statement: str) -> None:
            run_sql(self.stack.primary, f"BEGIN; SET LOCAL lock_timeout = {LOCK_MILLISECONDS}; {statement}; COMMIT")

        # If the connection is lost, the triggers may be disabled nevertheless.
        with suppress(psycopg2.Error):
            alter(DISABLE)
        return lambda: alter(ENABLE)

    def departures_pruned(self, fault: Fault) -> Undo:
        """Prune all, as after a day without a keeper, or two million deletes."""
        keeper = self.stack.by_name("keeper")
        keeper.kill()

        def prune_all() -> None:
            with connected(self.stack.primary) as cursor:
                cursor.execute(PRUNE, [0, 0, PRUNE_ROWS])
                while cursor.fetchall():
                    cursor.execute(PRUNE, [0, 0, PRUNE_ROWS])
            keeper.begin()

        return prune_all
