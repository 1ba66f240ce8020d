"""`retain NAME --older-than 400d`: retires the partitions of a table that hold only older rows."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ingest_service.management.commands.partition import connected
from ingest_service.partitioning import retiring
from shared_models import declarations
from shared_models.declarations import Table


def age(text: str) -> timedelta:
    """`400d`: days."""
    found = re.fullmatch(r"(\d{1,6})d", text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of days: write 400d")
    return timedelta(days=int(found[1]))


class Command(BaseCommand):
    help = (
        "Retire the partitions of a table that hold only rows older than this: detach them, have their members leave the counts, "
        "drop them. Run it with DATABASE_URL of the table's owner. If it is stopped, run it again: it goes on."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "name", metavar="NAME", help="a table of rollcall.toml that is partitioned by ranges of a time"
        )
        parser.add_argument("--older-than", type=age, required=True, metavar="DAYSd", help="400d: 400 days and more")
        parser.add_argument("--dry-run", action="store_true", help="say what would be retired")
        parser.add_argument(
            "--patience-seconds",
            type=float,
            default=600.0,
            metavar="N",
            help="how long a step waits: for transactions that use the table, or for the keeper (600)",
        )

    def handle(
        self, *args: object, name: str, older_than: timedelta, dry_run: bool, patience_seconds: float, **options: Any
    ) -> None:
        tables = {table.name: table for table in declarations.TABLES}
        if name not in tables:
            raise CommandError(f"{name} is not declared; there are: {', '.join(tables)}")
        table = tables[name]
        counters = [each for each in declarations.derived() if each.table == table]
        with connected() as database:
            with database.cursor() as cursor:
                try:
                    found = retiring.find(cursor, table, datetime.now(UTC) - older_than)
                except retiring.CannotRetire as error:
                    raise CommandError(str(error)) from error
                about = {each.oid: retiring.sizes(cursor, each) for each in found}
            for partition in found:
                rows, size = about[partition.oid]
                until = f", with rows from before {partition.ends:%Y-%m-%d}" if partition.ends else ""
                self.stdout.write(
                    f"{partition.name}: {partition.state}{until}; about {rows:,} rows, {size / 1e6:,.0f} MB"
                )
                if not dry_run:
                    retiring.retire(database, table, counters, partition, self.say, patience_seconds)
            with database.cursor() as cursor:
                self.say_what_is_next(table, retiring.next_due(cursor, table), older_than, len(found))

    def say_what_is_next(
        self, table: Table, stays: tuple[str, datetime] | None, older_than: timedelta, retired: int
    ) -> None:
        if not retired:
            self.stdout.write(f"{table.name} has no partition that is older than {older_than.days} days.")
        if stays is not None and stays[1] + older_than > datetime.now(UTC):
            self.stdout.write(f"{stays[0]} is next, on {stays[1] + older_than:%Y-%m-%d}.")

    def say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()
