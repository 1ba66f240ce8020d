"""`write_messages` stores generated messages in the table, as fast as possible or at a rate."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ingest_service.catalog import name_of, read_collections
from ingest_service.loading import generator
from ingest_service.writing.recording import record_batch
from ingest_service.writing.transactions import TransactionFailed, transact
from shared_models.models import Message

BATCH_ROWS = 1_000
# Rows that one statement of --clear deletes: a long transaction holds back the horizon of every counter.
CLEAR_ROWS = 50_000
# At a rate, messages come in this many batches a second.
BATCHES_A_SECOND = 10


class Command(BaseCommand):
    help = "Write messages from US cities through the same code as requests: stored first, then counted."
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--number", type=int, default=10_000, help="how many messages (10,000)")
        parser.add_argument("--rate", type=float, help="messages a second; without it, as many as possible")
        parser.add_argument("--users", type=int, default=20_000, help="how many different users may write (20,000)")
        parser.add_argument("--seed", type=int, default=1, help="another number gives other messages (1)")
        parser.add_argument("--clear", action="store_true", help="first delete every message")
        parser.add_argument("--yes", action="store_true", help="do not ask before deleting")

    def handle(self, *args: object, **options: Any) -> None:
        try:
            if options["clear"]:
                self.clear(ask=not options["yes"])
            self.write(options["number"], options["rate"], options["users"], options["seed"])
        except TransactionFailed as error:
            raise CommandError(str(error)) from error
        except ModuleNotFoundError as error:
            raise CommandError(f"{error}: the cities come with the stack; pip install 'rollcall[stack]'") from error

    def clear(self, ask: bool) -> None:
        """Delete the messages; the counts follow at the next reconcile."""
        if ask and input("Delete every message from the database? [y/N] ").strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was deleted, nothing was written")
        table = Message._meta.db_table
        statement = (
            f'DELETE FROM "{table}" WHERE id IN (SELECT id FROM "{table}" ORDER BY id LIMIT {CLEAR_ROWS}) RETURNING 1'
        )
        deleted = 0
        while gone := len(transact(lambda transaction: transaction.execute(statement))):
            deleted += gone
        self.stdout.write(f"{deleted:,} messages deleted; the counts follow at the next reconcile")

    def write(self, number: int, rate: float | None, users: int, seed: int) -> None:
        """Write the messages, at the rate."""
        collection = read_collections()[name_of(Message)]
        messages = generator.messages(number, users=users, seed=seed)
        size = BATCH_ROWS if rate is None else max(1, min(BATCH_ROWS, round(rate / BATCHES_A_SECOND)))
        begun = time.monotonic()
        written = uncounted = 0
        while batch := list(islice(messages, size)):
            rows = msgspec.convert(batch, list[collection.row])  # type: ignore[name-defined]
            uncounted += 0 if record_batch(collection, rows, {}).counted else len(rows)
            written += len(rows)
            if rate is not None:
                # By the clock and not by the batch, so that lost time is caught up.
                time.sleep(max(0.0, begun + written / rate - time.monotonic()))
        seconds = time.monotonic() - begun
        self.stdout.write(
            f"{written:,} messages written in {seconds:.1f} s ({written / max(seconds, 1e-9):,.0f} a second); "
            f"the keeper still has to count {uncounted:,} of them"
        )
