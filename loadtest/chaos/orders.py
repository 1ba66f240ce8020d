"""The table of an application that knows nothing of Rollcall, its declaration, and the application, which writes by SQL only.

`ChaosStack.adopt` adopts it while the application writes. A change of a row gives it another token: for the checker one
row was removed then, and another one added.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import psycopg2

from loadtest.chaos.clients import BRANCHES, Client
from loadtest.chaos.stack import LOCK_MILLISECONDS, connected

INSERT = "INSERT INTO shop.orders (token, email, branch, deleted_at) VALUES (%s, %s, %s, CASE WHEN %s THEN now() END)"
SOME = (
    "SELECT token, email, branch::text, deleted_at IS NOT NULL FROM shop.orders ORDER BY random() LIMIT %s FOR UPDATE"
)
CHANGE = """
    UPDATE shop.orders AS o
    SET token = n.token, email = n.email, branch = n.branch, deleted_at = CASE WHEN n.deleted THEN now() END
    FROM unnest(%s::text[], %s::text[], %s::text[], %s::uuid[], %s::boolean[]) AS n (old, token, email, branch, deleted)
    WHERE o.token = n.old
"""
Fields = list[Any]  # [token, email, branch, deleted], as the journal writes an order


class Application(Client):
    """Inserts, copies, changes, deletes, and sometimes empties the table."""

    pause_seconds = 0.08
    _made = 0

    def act(self) -> None:
        (does,) = self.random.choices(
            (self.insert, self.copy, self.change, self.delete, self.truncate), (40, 8, 30, 20, 0.5)
        )
        try:
            with connected(self.stack.primary) as cursor:
                cursor.execute("BEGIN")
                does(cursor)
        except psycopg2.Error:
            pass  # its last operation is noted

    def insert(self, cursor: Any) -> None:
        rows = [self.make_row() for _ in range(self.random.choice((1, 1, self.options.batch_rows)))]
        self.carry_out(cursor, lambda: cursor.executemany(INSERT, rows), rows=rows)

    def copy(self, cursor: Any) -> None:
        """COPY rows as from a dump; they may have xacts of another history."""
        rows = [[*self.make_row()[:3], False] for _ in range(self.options.batch_rows)]
        columns, xact = "token, email, branch", ""
        if self.stack.adopted and self.random.random() < 0.5:
            columns, xact = f"{columns}, xact", f"\t{self.random.choice((0, 3, 1 << 40))}"
        null = "\\N"
        lines = "".join(f"{token}\t{email or null}\t{branch}{xact}\n" for token, email, branch, _ in rows)
        statement = f"COPY shop.orders ({columns}) FROM STDIN"
        self.carry_out(cursor, lambda: cursor.copy_expert(statement, io.StringIO(lines)), rows=rows)

    def change(self, cursor: Any) -> None:
        """Change a few rows, or many: another member, or they no longer count, or count again, or no counted column."""
        cursor.execute(SOME, [self.random.choice((1, 1, 1, 30))])
        before = cursor.fetchall()
        what = self.random.choice(("email", "branch", "deleted", "nothing"))
        after = []
        for _, email, branch, deleted in before:
            new = self.make_row()
            email, branch = new[1] if what == "email" else email, new[2] if what == "branch" else branch
            after.append([new[0], email, branch, deleted != (what == "deleted")])
        old = [row[0] for row in before]
        columns = [list(column) for column in zip(*after, strict=True)] or [[]] * 4
        self.carry_out(cursor, lambda: cursor.execute(CHANGE, [old, *columns]), rows=after, where={"token": old})

    def delete(self, cursor: Any) -> None:
        """Delete a row, or all rows of a customer, a branch, or half of the table; sometimes in a session of a replica."""
        which = self.random.random()
        where: dict[str, Any] = {"email": self.pick_email()}
        if which < 0.1:
            where = {"branch": self.random.choice(BRANCHES)}
        elif which < 0.6:
            share = "LIMIT 1" if which < 0.5 else "LIMIT (SELECT count(*) / 2 FROM shop.orders)"
            cursor.execute(f"SELECT token FROM shop.orders ORDER BY random() {share}")
            where = {"token": [token for (token,) in cursor.fetchall()]}
        if self.random.random() < 0.15:
            cursor.execute("SET LOCAL session_replication_role = replica")
        ((column, values),) = where.items()
        values = values if isinstance(values, list) else [values]
        statement = f"DELETE FROM shop.orders WHERE {column}::text = ANY(%s)"
        self.carry_out(cursor, lambda: cursor.execute(statement, [values]), where=where)

    def truncate(self, cursor: Any) -> None:
        cursor.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
        self.carry_out(cursor, lambda: cursor.execute("TRUNCATE shop.orders"), where={})

    def carry_out(
        self, cursor: Any, statement: Callable[[], object], *, rows: list[Fields] | None = None, where: Any = None
    ) -> None:
        """The last statement of a transaction, and its end. It adds `rows`, and removes those that `where` matches."""
        numbers = []
        if where is not None:
            numbers.append(self.journal.invoke(self.name, "erase", table="orders", where=where))
        if rows:
            numbers.append(self.journal.invoke(self.name, "post", table="orders", request=rows[0][0], rows=rows))
        outcome = "refused"
        try:
            statement()
            outcome = "unknown"
            cursor.execute("COMMIT")
            outcome = "ok"
        finally:
            for number in numbers:
                self.journal.complete(number, outcome, counted=False, answer=None)
        if rows:
            self.sent.emails.extend(row[1] for row in rows if row[1] is not None)

    def make_row(self) -> Fields:
        """New rows: half of them of customers who come back; some without a customer, and some that do not count."""
        self._made += 1
        token = f"{self.name}-{self._made}"
        which = self.random.random()
        email = None if which < 0.1 else self.pick_email() if which < 0.6 else f"new-{token}"
        new = self.random.random() < 0.05
        branch = str(uuid5(NAMESPACE_URL, token)) if new else self.random.choice(BRANCHES)
        return [token, email, branch, self.random.random() < 0.1]

    def pick_email(self) -> str:
        return f"again-{self.random.randrange(self.options.recycled_names)}"
