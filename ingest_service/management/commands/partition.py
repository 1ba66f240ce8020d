"""`partition [NAME]`: makes a table of Rollcall's own, which has rows, a partitioned one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg2
import psycopg2.errors
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, connection
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import get_wait_callback, set_wait_callback
from psycopg2.extras import wait_select

from ingest_service import catalog
from ingest_service.adoption import applying
from ingest_service.adoption.applying import StoppedHalfway
from ingest_service.partitioning import converting
from shared_models import triggers
from shared_models.declarations import Table
from shared_models.models import table_of
from shared_models.partitions import CannotPartition

INTERRUPTED = 130  # as shells have it


class Command(BaseCommand):
    help = (
        "Partition a table by the month of create_time while rows come in; no row moves. A table that was empty when it was "
        "migrated is partitioned already. Run it with DATABASE_URL of the table's owner. If it is stopped, run it again: it "
        "goes on."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", nargs="?", help="the table; without: each that takes rows")
        parser.add_argument("--dry-run", action="store_true", help="print what is left to do, as SQL")
        parser.add_argument(
            "--patience-seconds",
            type=float,
            default=300.0,
            metavar="N",
            help="for how long to try to lock the table for a moment, half a second at a time (300)",
        )

    def handle(self, *args: object, name: str | None, dry_run: bool, patience_seconds: float, **options: Any) -> None:
        tables = {model._meta.db_table: table_of(model) for model in catalog.counted_models()}
        if name is not None and name not in tables:
            raise CommandError(f"{name} is no table that takes rows; there are: {', '.join(tables)}")
        with connected() as database:
            for table in [tables[name]] if name else tables.values():
                self.see_to(table, database, dry_run=dry_run, patience_seconds=patience_seconds)

    def see_to(self, table: Table, database: Connection, *, dry_run: bool, patience_seconds: float) -> None:
        with database.cursor() as cursor:
            plan = converting.plan_of(cursor, table)
        if not plan:
            self.stdout.write(f"{table.name} is partitioned.")
        elif dry_run:
            apart, together = ([f"{each};" for each in some] for some in (plan.apart, plan.together))
            self.stdout.write("\n".join([*apart, "BEGIN;", *together, "COMMIT;"]))
        else:
            applying.apply(
                database,
                plan,
                lambda: psycopg2.connect(**connection.get_connection_params()),
                lambda text: self.stdout.write(text),
                patience_seconds,
            )
            self.stdout.write(f"{table.name} is partitioned.")


@contextmanager
def connected() -> Iterator[Connection]:
    """The owner's connection, in autocommit. Errors of Postgres become errors of the command, which can be run again."""
    # While libpq waits for a statement it does not look at signals. This way Ctrl-C cancels the statement.
    waiting = get_wait_callback()
    set_wait_callback(wait_select)
    try:
        connection.ensure_connection()
        database = cast("Connection", connection.connection)
        with database.cursor() as cursor:
            cursor.execute("; ".join([triggers.PATH, *triggers.CLOCK]))
        yield database
    except (CannotPartition, StoppedHalfway) as error:
        raise CommandError(str(error)) from error
    except (KeyboardInterrupt, psycopg2.errors.QueryCanceled) as error:
        raise CommandError(
            "interrupted: run the same command again, and it goes on from here", returncode=INTERRUPTED
        ) from error
    except OperationalError as error:
        raise CommandError(f"no connection to the database: {str(error).strip()}") from error
    except psycopg2.Error as error:
        raise CommandError(
            f"Postgres says: {str(error).strip()}. Once you have repaired that, the same command goes on from here"
        ) from error
    finally:
        set_wait_callback(waiting)
        connection.close()
