"""`adopt [NAME …]`: the SQL that makes tables of others countable, printed or carried out; with --undo what takes it off again."""

from __future__ import annotations

import argparse
from collections import Counter as Counts
from collections.abc import Sequence
from typing import Any, cast

import psycopg2
import psycopg2.errors
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extensions import get_wait_callback, set_wait_callback
from psycopg2.extras import wait_select

from ingest_service.adoption import applying, catalog, declaring, plan
from ingest_service.adoption.applying import LOCK_TIMEOUT_SECONDS, StoppedHalfway
from ingest_service.adoption.fitness import CannotAdopt, check_relation
from ingest_service.adoption.plan import Plan
from shared_models import declarations, triggers
from shared_models.declarations import Counter, Table

SETTINGS = (triggers.PATH, *triggers.CLOCK)
INTERRUPTED = 130  # as shells have it


def counter(text: str) -> tuple[str, tuple[str, ...]]:
    """NAME=COLUMN[,COLUMN]"""
    name, _, listed = text.partition("=")
    fields = tuple(field.strip() for field in listed.split(","))
    if not declarations.NAME.match(name) or not all(fields):
        raise argparse.ArgumentTypeError(
            f"{text}: write NAME=COLUMN or NAME=COLUMN,COLUMN, with a name of lower-case letters, digits and _"
        )
    return name, fields


def cursor_of_psycopg() -> Cursor:
    """Not Django's, whose errors are its own."""
    connection.ensure_connection()
    return cast("Cursor", connection.connection.cursor())


class Command(BaseCommand):
    help = (
        "Make a table of your own countable. Prints the SQL, for psql, and the lines for rollcall.toml if the table is not "
        "declared there yet; --apply runs it, while the application writes. Run it with DATABASE_URL of the table's owner, or "
        "of a superuser. You can run it again: it leaves alone what is there already."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "names",
            metavar="NAME",
            nargs="*",
            help="a table of rollcall.toml, or schema.table; without: each that is declared",
        )
        parser.add_argument(
            "--counter",
            type=counter,
            action="append",
            default=[],
            metavar="NAME=COLUMN[,COLUMN]",
            help="a counter of the table that is not declared yet, and the columns that make its members",
        )
        parser.add_argument("--apply", action="store_true", help="run the SQL instead of printing it")
        parser.add_argument("--undo", action="store_true", help="remove everything that adopting has added")
        parser.add_argument(
            "--patience-seconds",
            type=float,
            default=300.0,
            metavar="N",
            help="for how long to try to lock the table for a moment, half a second at a time (300)",
        )

    def handle(self, *args: object, names: list[str], **options: Any) -> None:
        if options["counter"] and len(names) != 1:
            raise CommandError("--counter belongs to one table: name one table")
        twice = {name for name, count in Counts(name for name, _ in options["counter"]).items() if count > 1}
        if twice:
            raise CommandError(f"--counter {twice.pop()} is given twice: give each counter a name of its own")
        # While libpq waits for a statement it does not look at signals. This way Ctrl-C cancels the statement.
        waiting = get_wait_callback()
        set_wait_callback(wait_select)
        try:
            for chosen in self.choose(names, dict(options["counter"])):
                self.see_to(*chosen, **options)
        except (CannotAdopt, StoppedHalfway) as error:
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

    def choose(
        self, names: Sequence[str], fields_by_counter: dict[str, tuple[str, ...]]
    ) -> list[tuple[Table, list[Counter], list[str]]]:
        """For each table: its declaration, all its counters, and the lines that the file does not have."""
        tables = {table.name: table for table in declarations.TABLES}
        names = names or [name for name, table in tables.items() if not table.ingest]
        if not names:
            raise CommandError("no table of an application is declared: adopt SCHEMA.TABLE --counter NAME=COLUMN")
        chosen = []
        with cursor_of_psycopg() as cursor:
            # Names are found by the search_path of the caller. All that follows is read, and made, with one that nobody can
            # put anything into.
            found = {name: None if name in tables else catalog.find(cursor, name) for name in names}
            cursor.execute("; ".join(SETTINGS))
            oids = {catalog.find(cursor, triggers.relation(table)): table for table in tables.values()}
            for name in names:
                table = tables.get(name) or oids.get(found[name] or -1)
                if table is None and found[name] is None:
                    raise CannotAdopt(f"there is no table {name}, neither in rollcall.toml nor in this database")
                counters = [each for each in declarations.derived() if each.table == table]
                lines: list[str] = []
                if table is None or fields_by_counter:
                    relation = (
                        plan.relation_of(cursor, table) if table else catalog.read_relation(cursor, found[name] or 0)
                    )
                    check_relation(cursor, relation)
                    table, new, lines = declaring.declare(relation, table, fields_by_counter)
                    counters += new
                chosen.append((table, counters, lines))
        return chosen

    def see_to(self, table: Table, counters: list[Counter], lines: list[str], **options: Any) -> None:
        """One table."""
        where = f"{table.schema}.{table.relation}"
        if options["undo"] and table.ingest:
            raise CannotAdopt(f"{where} is Rollcall's own: its migrations make it")
        if not options["undo"] and not counters:
            raise CannotAdopt(f"name what to count in {where}: --counter NAME=COLUMN[,COLUMN]{self.countable(table)}")
        made = self.plan_of(table, counters, undo=options["undo"])
        for note in made.notes:
            self.stderr.write(f"Note: {note}.")
        if not made:
            self.stderr.write(
                f"{where}: " + ("nothing of Rollcall is there." if options["undo"] else "all is there already.")
            )
        elif not options["apply"]:
            self.print_sql(made)
            self.stderr.write(f"{where}: this is what --apply would run.")
        else:
            self.apply(made, counters, **options)
        if not options["undo"] and lines:
            self.stdout.flush()  # first things first, also where both are read by one
            self.stderr.write("\nFor rollcall.toml:\n")
            self.stderr.write("\n".join(lines))

    def plan_of(self, table: Table, counters: list[Counter], *, undo: bool) -> Plan:
        with cursor_of_psycopg() as cursor:
            return plan.to_release(cursor, table) if undo else plan.to_adopt(cursor, table, counters)

    def countable(self, table: Table) -> str:
        """The columns that can make members, for the message to somebody who named none."""
        with cursor_of_psycopg() as cursor:
            columns = plan.relation_of(cursor, table).columns.values()
        named = [column.name for column in columns if column.declared and column.name != "xact"]
        return f", of {', '.join(named)}" if named else ""

    def apply(
        self, made: Plan, counters: list[Counter], *, undo: bool, patience_seconds: float, **options: Any
    ) -> None:
        """Run it, and look whether everything is there then."""
        applying.apply(
            connection.connection,
            made,
            lambda: psycopg2.connect(**connection.get_connection_params()),
            lambda text: self.stdout.write(text),
            patience_seconds,
        )
        left = self.plan_of(made.table, counters, undo=undo)
        if left:
            raise CommandError(
                "this was run without an error and had no effect, so somebody with more rights has to run it: "
                + "; ".join((*left.together, *left.apart))
            )
        done = "is as it was" if undo else "can be counted"
        self.stdout.write(f"{made.table.schema}.{made.table.relation} {done}.")

    def print_sql(self, made: Plan) -> None:
        """For psql."""
        apart = [f"{statement};" for statement in made.apart]
        together = [f"{statement};" for statement in made.together]
        if together:
            lock = f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_SECONDS * 1000:.0f}; -- if that is not enough, run it again"
            together = ["BEGIN;", lock, *together, "COMMIT;"]
        lines = [*apart, *together] if made.apart_first else [*together, *apart]
        self.stdout.write("\n".join([*(f"{setting};" for setting in SETTINGS), *lines]))
