"""Clients that write by SQL, past the services. A change of a row gives it another token: for the checker one row was removed
then, and another one added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2

from loadtest.chaos.clients import Client
from loadtest.chaos.history import ROWS
from loadtest.chaos.stack import LOCK_MILLISECONDS, connected

Fields = list[Any]  # as the journal writes a row


def moment_on(day: str, token: str, zone: str) -> str:
    """The SQL of a moment on this day in this zone: the first or the last one, or one in between. All are SQL, too."""
    second = f"(ARRAY[0, 1, 40000, 86399])[1 + abs(mod(hashtext({token}), 4))]"
    return f"(({day}::date + make_interval(secs => {second})) AT TIME ZONE '{zone}')"


class SqlClient(Client):
    """Does one of `doings` at a time, in a transaction of its own."""

    table: str
    relation: str
    _made = 0

    def doings(self) -> dict[Callable[[Any], None], float]:
        """What it does, and how often."""
        raise NotImplementedError

    def act(self) -> None:
        doings = self.doings()
        (does,) = self.random.choices(tuple(doings), tuple(doings.values()))
        try:
            with connected(self.stack.primary) as cursor:
                cursor.execute("BEGIN")
                does(cursor)
        except psycopg2.Error:
            pass  # its last operation is noted

    def truncate(self, cursor: Any) -> None:
        cursor.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
        self.carry_out(cursor, lambda: cursor.execute(f"TRUNCATE {self.relation}"), where={})

    def carry_out(
        self, cursor: Any, statement: Callable[[], object], *, rows: list[Fields] | None = None, where: Any = None
    ) -> None:
        """The last statement of a transaction, and its end. It adds `rows`, and removes those that `where` matches."""
        numbers = []
        if where is not None:
            numbers.append(self.journal.invoke(self.name, "erase", table=self.table, where=where))
        if rows:
            numbers.append(self.journal.invoke(self.name, "post", table=self.table, request=rows[0][0], rows=rows))
        outcome = "refused"
        try:
            statement()
            outcome = "unknown"
            cursor.execute("COMMIT")
            outcome = "ok"
        finally:
            for number in numbers:
                self.journal.complete(number, outcome, counted=False, answer=None)
        for row in rows or []:
            self.sent.note(ROWS[self.table](*row))

    def next_token(self) -> str:
        """The token of another row."""
        self._made += 1
        return f"{self.name}-{self._made}"

    def pick_day(self) -> str:
        """Usually a day of the past."""
        return str(self.random.choice(self.stack.days))


def transposed(rows: list[Fields]) -> list[Fields]:
    """The columns of these rows."""
    return [list(column) for column in zip(*rows, strict=True)]
