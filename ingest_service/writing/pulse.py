"""A commit now and then while nobody writes, so that the replica shows how fresh it is; and, once a minute, what keeps the tables
in shape: old receipts and departures are removed, and partitions are made ahead.

`complete_through` ("every row committed before this moment is counted") comes from the time of the last commit that the replica
has replayed. Without commits that time stands still, and a correct count looks older with every second. So a
worker that has committed nothing for a while commits a message that nobody reads.
"""

from __future__ import annotations

import threading
import time

import structlog

from ingest_service import catalog
from ingest_service.writing import departures, idempotency, partitions, transactions
from ingest_service.writing.transactions import TransactionFailed, transact

log = structlog.get_logger()

PRUNE_SECONDS = 60.0

# Transactional, so it has an xact and a commit record of its own. This commit is not acknowledged to anybody, so it need
# not be on the disk before the next one.
PULSE_SQL = "SET LOCAL synchronous_commit = off; SELECT pg_logical_emit_message(true, 'rollcall', 'pulse')"


class Pulse:
    """The pulse of one worker. `one_tick` does what is due; `start` runs it in a thread."""

    def __init__(self, pulse_seconds: float, keep_hours: float) -> None:
        self.pulse_seconds, self.keep_hours = pulse_seconds, keep_hours
        self.pruned_at = 0.0

    def start(self) -> threading.Thread:
        """Run until the process ends. The thread has a connection of its own."""
        thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        thread.start()
        return thread

    def one_tick(self) -> bool:
        """Do what is due; returns whether anything was. It does not report a primary that is down: requests do."""
        done = False
        try:
            if self.pulse_seconds and time.monotonic() - transactions.last_commit_at >= self.pulse_seconds:
                transact(lambda transaction: transaction.execute(PULSE_SQL))
                done = True
            if time.monotonic() - self.pruned_at >= PRUNE_SECONDS:
                partitions.make_ahead()  # first: without a partition no row is stored
                self.prune()
                done = True
        except TransactionFailed as error:
            log.debug("pulse.failed", reason=error.reason)
        return done

    def prune(self) -> int:
        """Remove old receipts and departures, some at a time; returns how many."""
        self.pruned_at = time.monotonic()
        receipts = left = 0
        while bite := transact(departures.prune):
            left += bite
        if catalog.counted_models():  # without a table that takes rows there are no receipts
            while bite := transact(lambda transaction: idempotency.prune(transaction, self.keep_hours)):
                receipts += bite
        if receipts:
            log.info("receipts.pruned", receipts=receipts)
        if left:
            log.info("departures.pruned", departures=left)
        return receipts + left

    def _run(self) -> None:
        pause = min(self.pulse_seconds, PRUNE_SECONDS) or PRUNE_SECONDS
        while True:
            try:
                self.one_tick()
            except Exception:
                log.exception("pulse.error")
            time.sleep(pause)
