"""Migration operations that a countable table needs beside its columns and indexes."""

from __future__ import annotations

from django.db.migrations.operations import RunSQL


class StampXactOnUpdate(RunSQL):
    """Let an updated row carry the transaction that updated it, so that catch-up counts its new members.

    Without it, `UPDATE message SET username = …` would be counted by the next reconcile only, and
    `complete_through` would claim too much until then.
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
    """Let Postgres know how many different combinations these columns have, not only each of them.

    A counter of several fields is read by jumping or by scanning, whichever is cheaper; that depends on this number,
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
