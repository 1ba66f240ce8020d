"""`load FILE` stores the rows of a file in the table."""

from __future__ import annotations

import argparse
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ingest_service.api.payloads import RowError
from ingest_service.catalog import Collection, read_collections
from ingest_service.loading import loader, sources
from ingest_service.loading.loader import LoadStopped
from ingest_service.loading.sources import Unreadable
from ingest_service.writing.transactions import TransactionFailed

# Errors that are printed; the rest are counted.
SHOWN_ERRORS = 20
# How often a line is printed if the output is not a terminal.
LINE_SECONDS = 5.0


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


class Command(BaseCommand):
    help = (
        "Store the rows of FILE.ndjson or FILE.csv (also .gz, or - for NDJSON on standard input) and count them. "
        "The exit code is 1 if any row is not valid."
    )
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE")
        parser.add_argument("--collection", help="the collection of the rows; required if there are several")
        parser.add_argument("--batch-rows", type=positive, default=10_000, metavar="N", help="rows in a transaction")
        parser.add_argument(
            "--resume",
            action="store_true",
            help="continue after the rows that an interrupted load of this file has stored (within IDEMPOTENCY_KEEP_HOURS)",
        )
        parser.add_argument("--strict", action="store_true", help="stop at the first row that is not valid")

    def handle(self, *args: object, **options: Any) -> None:
        collection = find_collection(options["collection"])
        try:
            with sources.open_source(options["file"], collection) as source, Report(self, source.total_bytes) as report:
                done = loader.load(
                    collection,
                    source,
                    options["batch_rows"],
                    resume=options["resume"],
                    strict=options["strict"],
                    on_error=report.show_error,
                    on_progress=report.show_progress,
                )
        except (LoadStopped, Unreadable, TransactionFailed) as error:
            raise CommandError(f"{error} (--resume continues after the stored rows)") from error
        self.stdout.write(
            f"{done.stored:,} rows stored, {done.rejected:,} rejected, {done.skipped:,} skipped; "
            f"{done.uncounted:,} of them are counted by the keeper, not yet by this load"
        )
        if done.rejected:
            raise CommandError(f"{done.rejected:,} rows are not valid", returncode=1)


def find_collection(name: str | None) -> Collection:
    """The collection of that name; without a name the only one."""
    collections = read_collections()
    if name is None and len(collections) == 1:
        return next(iter(collections.values()))
    if name is None or name not in collections:
        raise CommandError(f"--collection is one of: {', '.join(sorted(collections))}")
    return collections[name]


class Report:
    """A bar for a person, a line now and then for a log; errors at once."""

    def __init__(self, command: BaseCommand, total_bytes: int | None) -> None:
        self.command = command
        self.errors = 0
        self.printed_at = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.total_bytes = total_bytes
        self.task = self.bar.add_task("0 rows", total=total_bytes)
        self.watched = self.bar.console.is_terminal

    def __enter__(self) -> Report:
        if self.watched:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def show_progress(self, progress: loader.Progress) -> None:
        """Called after each batch."""
        self.bar.update(self.task, completed=progress.read_bytes, description=f"{progress.stored:,} rows")
        if not self.watched and time.monotonic() - self.printed_at >= LINE_SECONDS:
            self.printed_at = time.monotonic()
            share = f", {progress.read_bytes / self.total_bytes:.0%} of the file" if self.total_bytes else ""
            self.command.stderr.write(f"{progress.stored:,} rows stored{share}")

    def show_error(self, error: RowError) -> None:
        """Print the first ones in full."""
        self.errors += 1
        if self.errors <= SHOWN_ERRORS:
            self.command.stderr.write(f"line {error.line}: {error.detail}")
        elif self.errors == SHOWN_ERRORS + 1:
            self.command.stderr.write("… more rows are not valid; they are counted, but not shown")
