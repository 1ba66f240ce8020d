"""The table of an application that knows nothing of Rollcall, and the application, which writes by SQL only.

`ChaosStack.adopt` adopts it while the application writes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from loadtest.chaos.by_sql import Fields, SqlClient, moment_on, transposed
from loadtest.chaos.clients import BRANCHES
from loadtest.chaos.stack import ORDERS_ZONE

DAY = f"(placed_at AT TIME ZONE '{ORDERS_ZONE}')::date::text"
MOMENT = moment_on("n.day", "n.token", ORDERS_ZONE)
# One of these per row: token, email, branch, deleted, day.
ROWS = "unnest(%s::text[], %s::text[], %s::uuid[], %s::boolean[], %s::text[]) AS n (token, email, branch, deleted, day)"
INSERT = f"""
    INSERT INTO shop.orders (token, email, branch, deleted_at, placed_at)
    SELECT token, email, branch, CASE WHEN deleted THEN now() END, {MOMENT} FROM {ROWS}
"""
SOME = f"""
    SELECT token, email, branch::text, deleted_at IS NOT NULL, {DAY}
    FROM shop.orders ORDER BY random() LIMIT %s FOR UPDATE
"""
CHANGE = f"""
    UPDATE shop.orders AS o
    SET token = n.token, email = n.email, branch = n.branch, deleted_at = CASE WHEN n.deleted THEN now() END,
        placed_at = CASE WHEN {DAY} = n.day THEN placed_at ELSE {MOMENT} END
    FROM unnest(%s::text[], %s::text[], %s::text[], %s::uuid[], %s::boolean[], %s::text[])
        AS n (old, token, email, branch, deleted, day)
    WHERE o.token = n.old
"""


class Application(SqlClient):
    """Inserts, copies, changes, deletes, and sometimes empties the table."""

    table, relation = "orders", "shop.orders"
    pause_seconds = 0.08

    def doings(self) -> dict[Callable[[Any], None], float]:
        return {self.insert: 40, self.copy: 8, self.change: 40, self.delete: 20, self.truncate: 0.5}

    def insert(self, cursor: Any) -> None:
        rows = [self.make_row() for _ in range(self.random.choice((1, 1, self.options.batch_rows)))]
        self.carry_out(cursor, lambda: cursor.execute(INSERT, transposed(rows)), rows=rows)

    def copy(self, cursor: Any) -> None:
        """COPY rows as from a dump; they may have xacts of another history."""
        made = [self.make_row() for _ in range(self.options.batch_rows)]
        rows = [[token, email, branch, False, day] for token, email, branch, _, day in made]
        columns, xact = "token, email, branch, placed_at", ""
        if self.stack.adopted and self.random.random() < 0.5:
            columns, xact = f"{columns}, xact", f"\t{self.random.choice((0, 3, 1 << 40))}"
        null = "\\N"
        lines = "".join(
            f"{token}\t{email or null}\t{branch}\t{f'{day} 12:00 {ORDERS_ZONE}' if day else null}{xact}\n"
            for token, email, branch, _, day in rows
        )
        statement = f"COPY shop.orders ({columns}) FROM STDIN"
        self.carry_out(cursor, lambda: cursor.copy_expert(statement, io.StringIO(lines)), rows=rows)

    def change(self, cursor: Any) -> None:
        """Change a few rows, or many: another member, branch or day, they no longer count, or count again, or no counted
        column."""
        cursor.execute(SOME, [self.random.choice((1, 1, 1, 30))])
        before = cursor.fetchall()
        what = self.random.choice(("email", "branch", "deleted", "day", "day", "nothing"))
        after = []
        for _, email, branch, deleted, day in before:
            new = self.make_row()
            email, branch = new[1] if what == "email" else email, new[2] if what == "branch" else branch
            after.append([new[0], email, branch, deleted != (what == "deleted"), new[4] if what == "day" else day])
        old = [row[0] for row in before]
        values = [old, *(transposed(after) or [[]] * 5)]
        self.carry_out(cursor, lambda: cursor.execute(CHANGE, values), rows=after, where={"token": old})

    def delete(self, cursor: Any) -> None:
        """Delete a row, or all rows of a customer, a branch or a day, or half of the table; sometimes in a session of a
        replica."""
        which = self.random.random()
        where: dict[str, Any] = {"email": self.pick_email()}
        if which < 0.1:
            where = {"branch": self.random.choice(BRANCHES)}
        elif which < 0.6:
            share = "LIMIT 1" if which < 0.5 else "LIMIT (SELECT count(*) / 2 FROM shop.orders)"
            cursor.execute(f"SELECT token FROM shop.orders ORDER BY random() {share}")
            where = {"token": [token for (token,) in cursor.fetchall()]}
        elif which < 0.7:
            where = {"day": self.pick_day()}
        if self.random.random() < 0.15:
            cursor.execute("SET LOCAL session_replication_role = replica")
        ((field, values),) = where.items()
        values = values if isinstance(values, list) else [values]
        statement = f"DELETE FROM shop.orders WHERE {DAY if field == 'day' else f'{field}::text'} = ANY(%s)"
        self.carry_out(cursor, lambda: cursor.execute(statement, [values]), where=where)

    def carry_out(self, cursor: Any, statement: Callable[[], object], **what: Any) -> None:
        super().carry_out(cursor, statement, **what)
        self.sent.emails.extend(row[1] for row in what.get("rows") or () if row[1] is not None)

    def make_row(self) -> Fields:
        """New rows: half of them of customers who come back; some without a customer or a day, and some that do not count."""
        token = self.next_token()
        which = self.random.random()
        email = None if which < 0.1 else self.pick_email() if which < 0.6 else f"new-{token}"
        new = self.random.random() < 0.05
        branch = str(uuid5(NAMESPACE_URL, token)) if new else self.random.choice(BRANCHES)
        day = None if self.random.random() < 0.05 else self.pick_day()
        return [token, email, branch, self.random.random() < 0.1, day]

    def pick_email(self) -> str:
        return f"again-{self.random.randrange(self.options.recycled_names)}"
