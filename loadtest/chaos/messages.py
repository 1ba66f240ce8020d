"""Messages that come in, change and leave by SQL: late ones with old times, corrected times, states and names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loadtest.chaos.by_sql import Fields, SqlClient, moment_on, transposed
from loadtest.chaos.clients import SMALL_STATES, pick_place


class Clerk(SqlClient):
    """Adds late messages, corrects and deletes some, and sometimes empties the table."""

    table, relation = "message", "message"
    pause_seconds = 0.15

    def doings(self) -> dict[Callable[[Any], None], float]:
        return {self.insert: 40, self.change: 40, self.delete: 20, self.truncate: 0.3}

    @property
    def day(self) -> str:
        """The SQL of a message's day."""
        return f"(create_time AT TIME ZONE '{self.stack.zone}')::date::text"

    def insert(self, cursor: Any) -> None:
        rows = [self.make_row() for _ in range(self.random.choice((1, 1, self.options.batch_rows)))]
        moment = moment_on("day", "token", self.stack.zone)
        statement = f"""
            INSERT INTO message (message, username, state, city, create_time)
            SELECT token, username, state, city, {moment}
            FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) AS n (token, username, state, city, day)
        """
        self.carry_out(cursor, lambda: cursor.execute(statement, transposed(rows)), rows=rows)

    def change(self, cursor: Any) -> None:
        """Change the time, the state or the name of a few messages, or of many; or nothing that is counted."""
        cursor.execute(
            f"SELECT message, username, state, city, {self.day} FROM message ORDER BY random() LIMIT %s FOR UPDATE",
            [self.random.choice((1, 1, 1, 30))],
        )
        before = cursor.fetchall()
        what = self.random.choice(("day", "day", "state", "username", "nothing"))
        after = []
        for _, username, state, city, day in before:
            new = self.make_row()
            username, state = new[1] if what == "username" else username, new[2] if what == "state" else state
            after.append([new[0], username, state, city, new[4] if what == "day" else day])
        old = [row[0] for row in before]
        statement = f"""
            UPDATE message AS m
            SET message = n.token, username = n.username, state = n.state, city = n.city,
                create_time = CASE WHEN {self.day} = n.day THEN create_time
                              ELSE {moment_on("n.day", "n.token", self.stack.zone)} END
            FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
                AS n (old, token, username, state, city, day)
            WHERE m.message = n.old
        """
        values = [old, *(transposed(after) or [[]] * 5)]
        self.carry_out(cursor, lambda: cursor.execute(statement, values), rows=after, where={"token": old})

    def delete(self, cursor: Any) -> None:
        """Delete all messages of a small state, or those of a day of the past, or of a name."""
        which = self.random.random()
        if which < 0.4:
            where, column = {"state": self.random.choice(SMALL_STATES)}, "state"
        elif which < 0.6:
            where, column = {"day": self.pick_day()}, self.day
            if where["day"] == str(self.stack.today):
                return  # that would be nearly all
        else:
            where, column = {"username": f"again-{self.random.randrange(self.options.recycled_names)}"}, "username"
        (value,) = where.values()
        self.carry_out(cursor, lambda: cursor.execute(f"DELETE FROM message WHERE {column} = %s", [value]), where=where)

    def make_row(self) -> Fields:
        """[token, username, state, city, day]"""
        token = self.next_token()
        username = f"again-{self.random.randrange(self.options.recycled_names)}"
        return [
            token,
            username if self.random.random() < 0.7 else f"new-{token}",
            *pick_place(self.random, token),
            self.pick_day(),
        ]
