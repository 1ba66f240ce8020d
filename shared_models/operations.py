"""Migration operations that a countable table needs in addition to its columns and indexes."""

from __future__ import annotations

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations import RunSQL
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from shared_models import declarations, partitions, triggers
from shared_models.declarations import Table


class StampXactOnUpdate(RunSQL):
    """Give an updated row the xact that updated it, so that catch-up counts its new members.

    Without it, only the next reconcile would count `UPDATE message SET username = …`, and until then
    `complete_through` would claim too much.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(
            sql=[
                """CREATE OR REPLACE FUNCTION rollcall_stamp_xact() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN NEW.xact := pg_current_xact_id()::text::bigint; RETURN NEW; END $$""",
                f"""CREATE TRIGGER rollcall_stamp_xact BEFORE UPDATE ON "{table}"
                    FOR EACH ROW EXECUTE FUNCTION rollcall_stamp_xact()""",
            ],
            reverse_sql=f'DROP TRIGGER rollcall_stamp_xact ON "{table}"',
        )

    def deconstruct(self) -> tuple[str, list[str], dict[str, str]]:
        return (self.__class__.__qualname__, [self.table], {})


class CountCombinations(RunSQL):
    """Tell Postgres how many different combinations these columns have, not only each of them.

    The keeper reads a counter of several fields by jumping or by scanning. Which one is cheaper depends on this number,
    and the product of the columns' own numbers is far too high.
    """

    def __init__(self, table: str, *columns: str) -> None:
        self.table, self.columns = table, columns
        name = "_".join((table, *columns, "combinations"))
        listed = ", ".join(f'"{column}"' for column in columns)
        super().__init__(
            sql=f'CREATE STATISTICS IF NOT EXISTS "{name}" (ndistinct) ON {listed} FROM "{table}"',
            reverse_sql=f'DROP STATISTICS IF EXISTS "{name}"',
        )

    def deconstruct(self) -> tuple[str, list[str], dict[str, str]]:
        return (self.__class__.__qualname__, [self.table, *self.columns], {})


class AddIndexOfPartitions(AddIndexConcurrently):
    """An index of a table that may be partitioned, made while rows come in. In a migration with `atomic = False`.

    CREATE INDEX CONCURRENTLY knows no partitioned tables. So this makes an index of the table alone, one of each partition
    CONCURRENTLY, and attaches these. If it was interrupted, run it again.
    """

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._ensure_not_in_transaction(schema_editor)
        model = to_state.apps.get_model(app_label, self.model_name)
        name, place = triggers.quote(self.index.name), triggers.quote(model._meta.db_table)
        parts = partitions.leaves(schema_editor, place)
        if not parts:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        statement = str(self.index.create_sql(model, schema_editor))
        schema_editor.execute(
            statement.replace(f"INDEX {name} ON {place}", f"INDEX IF NOT EXISTS {name} ON ONLY {place}", 1), None
        )
        for part in parts:
            own = triggers.quote(triggers.shorten(f"{part}_{self.index.name}", f"{part} {self.index.name}"))
            made = f"INDEX CONCURRENTLY IF NOT EXISTS {own} ON {triggers.quote(part)}"
            if partitions.is_invalid(schema_editor, own):
                schema_editor.execute(f"DROP INDEX CONCURRENTLY {own}", None)
            schema_editor.execute(statement.replace(f"INDEX {name} ON {place}", made, 1), None)
            schema_editor.execute(f"ALTER INDEX {name} ATTACH PARTITION {own}", None)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if partitions.leaves(schema_editor, triggers.quote(model._meta.db_table)):
            schema_editor.remove_index(model, self.index)
        else:
            super().database_backwards(app_label, schema_editor, from_state, to_state)


class NoteDepartures(Operation):
    """Let one of Rollcall's own tables note the members that lose rows: see `triggers`.

    For the counters that are declared when it runs. If those change later, `adopt` updates the triggers.
    """

    reduces_to_sql = False  # its effect depends on the existing objects

    def __init__(self, table: str) -> None:
        self.table = table

    def deconstruct(self) -> tuple[str, list[str], dict[str, str]]:
        return (self.__class__.__qualname__, [self.table], {})

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """No model changes."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(triggers.FIND_DEPARTURE)
            ((has_schema, departure),) = cursor.fetchall()
        if not has_schema:
            schema_editor.execute(triggers.MAKE_SCHEMA)
        if departure is None:
            for statement in triggers.MAKE_DEPARTURE:
                schema_editor.execute(statement)
        for piece in self.pieces(schema_editor):
            for statement in piece.statements():
                schema_editor.execute(statement)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        for piece in reversed(self.pieces(schema_editor)):
            schema_editor.execute(piece.drop())
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_trigger WHERE starts_with(tgname, %s)", [triggers.PREFIX])
            if not cursor.fetchall():  # otherwise an adopted table needs it
                schema_editor.execute(f"DROP TABLE IF EXISTS {triggers.DEPARTURE}")

    def pieces(self, schema_editor: BaseDatabaseSchemaEditor) -> list[triggers.Piece]:
        """The function and the triggers; none if no counter is over the table."""
        counters = [each for each in declarations.derived() if each.table.ingest and each.table.relation == self.table]
        if not counters:
            return []
        with schema_editor.connection.cursor() as cursor:
            columns = [
                column.name
                for column in schema_editor.connection.introspection.get_table_description(cursor, self.table)
            ]
            cursor.execute(
                """SELECT n.nspname, c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
                   JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE i.inhparent = %s::regclass ORDER BY 2""",
                [triggers.relation(counters[0].table)],
            )
            parts = cursor.fetchall()
        # It does not parse conditions: if there is one, it looks at a change of any column.
        watched = {each.name: columns if each.where else [term.column for term in each.terms] for each in counters}
        return triggers.triggers(counters[0].table, counters, watched, parts, stamps=False)


class PartitionByMonth(Operation):
    """Partition one of Rollcall's own tables by the month of `create_time`, if it is empty; see `partitions`.

    A table that has rows stays as it is, so that the migration is quick: `python -m ingest_service partition` does it while rows
    come in.
    """

    reduces_to_sql = False  # its effect depends on the rows

    def __init__(self, table: str) -> None:
        self.table = table

    def deconstruct(self) -> tuple[str, list[str], dict[str, str]]:
        return (self.__class__.__qualname__, [self.table], {})

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """No model changes: Django does not know of partitions, and `id` stays the key of the model."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        table = Table(self.table, "public", self.table, (), ingest=True)
        name = triggers.relation(table)
        for statement in partitions.function(table).statements():
            schema_editor.execute(statement, None)  # it has per cent signs
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(f"SELECT EXISTS (SELECT FROM {name})")
            if cursor.fetchall() == [(True,)]:
                return
            # Rows that come in meanwhile wait, and then find the months.
            cursor.execute(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
            cursor.execute(f"SELECT now(), EXISTS (SELECT FROM {name})")
            ((now, has_rows),) = cursor.fetchall()
            if has_rows:
                return
            cursor.execute(partitions.make_key(table))
            for statement in partitions.swap(cursor, table, partitions.first_of_month(now)):
                cursor.execute(statement)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        table = Table(self.table, "public", self.table, (), ingest=True)
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SELECT relkind FROM pg_class WHERE oid = %s::regclass", [triggers.relation(table)])
            if cursor.fetchall() == [("p",)]:
                for statement in partitions.swap_back(cursor, table):
                    cursor.execute(statement)
        schema_editor.execute(partitions.function(table).drop())
