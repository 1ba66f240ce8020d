"""The clients: producers, erasers, readers, operators. Each is a thread that sends requests, and notes the answers."""

from __future__ import annotations

import http.client
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import psycopg2
import redis

from compose.local.servers import HOST
from loadtest.chaos import looking
from loadtest.chaos.history import GROUPINGS, Member, Message, Question, Row, monday
from loadtest.chaos.journal import Journal
from loadtest.chaos.schedule import Options
from loadtest.chaos.stack import ChaosStack, connected
from shared_models import declarations
from shared_models.declarations import get_counter
from shared_models.nodes import Nodes, ask_server

# Longer than any limit of the services: a longer request is a finding.
PATIENCE_SECONDS = 25.0
CITIES = [(state, f"City {n}") for state in ("NY", "CA", "TX") for n in range(15)]
SMALL_STATES = [f"W{number}" for number in range(20)]
BRANCHES = [str(uuid5(NAMESPACE_URL, f"branch {number}")) for number in range(12)]
# Members that nobody sends, and that `tampering` adds to the sets by hand: they must never be counted.
NOBODIES: dict[str, list[tuple[str, ...]]] = {
    "users": [(f"nobody-{number}",) for number in range(3)],
    "cities": [("ZZ", f"Nowhere {number}") for number in range(3)],
    "customers": [(f"nobody-{number}",) for number in range(3)],
    "branches": [(str(uuid5(NAMESPACE_URL, f"nowhere {number}")),) for number in range(3)],
}
# The problems that say that nothing was stored. Others leave it open.
NOT_STORED = "urn:rollcall:primary-unavailable"
ATTEMPTS = 6


class Sent:
    """Shared by the clients: members that were acknowledged a moment ago."""

    def __init__(self) -> None:
        self.usernames: deque[str] = deque(maxlen=400)
        self.emails: deque[str] = deque(maxlen=400)
        # … with all groups and days that count them.
        self.grouped: deque[tuple[str, Member]] = deque(maxlen=1_000)

    def note(self, row: Row) -> None:
        """A row that was acknowledged."""
        self.grouped.extend(row.questions())


class Client(threading.Thread):
    """One client. `act` does one thing; the random numbers are its own."""

    pause_seconds = 0.05

    def __init__(self, name: str, seed: str, stack: ChaosStack, journal: Journal, options: Options, sent: Sent) -> None:
        super().__init__(name=name, daemon=True)
        self.stack, self.journal, self.options, self.sent = stack, journal, options, sent
        self.random = Random(f"{seed}/{name}")
        self.stopping = threading.Event()
        self.failure: Exception | None = None  # an answer that no client could parse
        self._nodes = Nodes(stack.redis.servers.url, ask_server)
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def run(self) -> None:
        try:
            while not self.stopping.wait(self.random.uniform(0.5, 1.5) * self.pause_seconds):
                self.act()
        except Exception as error:
            self.failure = error
            raise
        finally:
            for client in self._nodes.forget_all():
                client.close()

    def act(self) -> None:
        """Send one request, whatever its outcome."""
        raise NotImplementedError

    def ask(self, port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body. Raises OSError or http.client.HTTPException."""
        connection = self._connections.setdefault(
            port, http.client.HTTPConnection(HOST, port, timeout=PATIENCE_SECONDS)
        )
        try:
            data = None if body is None else json.dumps(body).encode()
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, {"Content-Type": "application/json", **named})
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
            return status, json.loads(content) if content.startswith((b"{", b"[")) else None
        except (OSError, http.client.HTTPException):
            connection.close()
            raise

    def ask_members(self, counter: str, members: list[list[str]]) -> None:
        """Ask whether these are counted."""
        fields = get_counter(counter).fields
        n = self.journal.invoke(self.name, "members", service="query", counter=counter, asked=members)
        try:
            body = {"members": [dict(zip(fields, member, strict=True)) for member in members]}
            status, said = self.ask(self.stack.query.port, "POST", f"/v1/counts/{counter}/members", body)
        except (OSError, http.client.HTTPException) as error:
            self.journal.complete(n, "unknown", why=repr(error))
            return
        if status == 200:
            self.journal.complete(n, "ok", found=said["members"])
        else:
            self.journal.complete(n, "refused", status=status)

    def ask_counts(self, path: str, *, fresh: bool) -> int:
        """Ask for counts, of whatever; returns the number of the operation."""
        n = self.journal.invoke(self.name, "counts", service="query", fresh=fresh)
        try:
            headers = {"Cache_Control": "no-cache"} if fresh else {}
            status, said = self.ask(self.stack.query.port, "GET", f"/v1/counts{path}", **headers)
        except (OSError, http.client.HTTPException) as error:
            self.journal.complete(n, "unknown", why=repr(error))
            return n
        if status == 200:
            self.journal.complete(n, "ok", counters=dict(counts_in(said)))
        else:
            self.journal.complete(n, "refused", status=status)
        return n

    def look(self, text: str, members: Sequence[Sequence[str]]) -> None:
        """Look whether a group, or those who were seen since a day, have these members."""
        n = self.journal.invoke(self.name, "members", counter=text, asked=members)
        try:
            found = looking.find(self._nodes, text, members)
        except (redis.RedisError, OSError) as error:
            self._nodes.look_again()
            self.journal.complete(n, "unknown", why=repr(error))
            return
        self.journal.complete(n, "refused" if found is None else "ok", found=found)


def counts_in(said: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The counts in an answer of query, each with what was asked; how good they are is said of all of them together."""
    if "counters" in said:
        yield from said["counters"].items()
        return
    counter, by = said["counter"], tuple(said.get("by", ()))
    listed = said["top"] if "top" in said else said.get("groups", ())
    for each in [*listed, *([said] if "group" in said else [])]:
        yield str(Question(counter, by, tuple(each["group"]))), {**said, "count": each["count"]}
    if not by:
        yield str(Question(counter, since=said.get("from", ""))), said


class Producer(Client):
    """Sends rows: single ones and batches, with and without an Idempotency-Key; retries those with one."""

    pause_seconds = 0.05
    _made = 0

    def act(self) -> None:
        batch, keyed = self.random.random() < 0.3, self.random.random() < 0.6
        rows = [self.make_row() for _ in range(self.random.randint(1, self.options.batch_rows) if batch else 1)]
        request = f"{rows[0][0]}-request"
        acknowledged = False
        for _ in range(ATTEMPTS if keyed else 1):
            acknowledged = self.send(request, rows, batch, keyed) or acknowledged
            # Sometimes it repeats a request although it was answered, like a producer that has lost the answer.
            if self.stopping.is_set() or (acknowledged and self.random.random() < 0.9):
                break
            self.stopping.wait(self.random.uniform(0.1, 0.6))

    def make_row(self) -> list[str]:
        """[token, username, state, city, day]: a new name, or one that was erased and comes back."""
        self._made += 1
        token = f"{self.name}-{self._made}"
        if self.random.random() < 0.5:
            username = f"again-{self.random.randrange(self.options.recycled_names)}"
        else:
            username = f"new-{token}"
        return [token, username, *pick_place(self.random, token), str(self.stack.today)]

    def send(self, request: str, rows: list[list[str]], batch: bool, keyed: bool) -> bool:
        """One attempt; returns whether it was acknowledged."""
        bodies = [{"message": t, "username": u, "state": s, "city": c} for t, u, s, c, _ in rows]
        headers = {"Idempotency_Key": request} if keyed else {}
        # A producer's clock may be wrong: ingest does not use it.
        headers["Date"] = "Thu, 01 Jan 1970 00:00:00 GMT"
        path = "/v1/messages/batch" if batch else "/v1/messages"
        n = self.journal.invoke(self.name, "post", service="ingest", request=request, rows=rows)
        try:
            status, said = self.ask(self.stack.ingest.port, "POST", path, bodies if batch else bodies[0], **headers)
        except (OSError, http.client.HTTPException) as error:
            self.journal.complete(n, "unknown", why=repr(error))
            return False
        if status not in (200, 201):
            surely = status < 500 or (said or {}).get("type") == NOT_STORED
            self.journal.complete(n, "refused" if surely else "unknown", status=status, said=said)
            return False
        counted = said.pop("counted")
        self.journal.complete(n, "ok", counted=counted, answer=said)
        self.sent.usernames.extend(row[1] for row in rows)
        for row in rows:
            self.sent.note(Message(*row))
        if counted and self.random.random() < 0.5:  # read your write
            self.ask_members("users", [row[1:2] for row in rows])
            self.ask_members("cities", [row[2:4] for row in rows])
            self.read_its_groups(Message(*self.random.choice(rows)))
        return True

    def read_its_groups(self, row: Row) -> None:
        """Ask for the groups and days of a row that was counted."""
        for text, member in row.questions():
            self.look(text, [member])
            if not text.startswith("users?from"):
                self.ask_counts(f"/{text}", fresh=True)
        self.ask_counts("/users?window=today", fresh=True)


def pick_place(random: Random, token: str) -> tuple[str, str]:
    """A state and a city: usually large ones, sometimes a state that few have, or nobody else."""
    which = random.random()
    if which < 0.8:
        return random.choice(CITIES)
    return random.choice(SMALL_STATES) if which < 0.98 else f"of {token}", f"Town {token}"


class Eraser(Client):
    """Removes rows by SQL, past the services."""

    pause_seconds = 0.25

    def act(self) -> None:
        where = self.pick()
        n = self.journal.invoke(self.name, "erase", where=where)
        condition = " AND ".join(f"{field} = %s" for field in where)
        begun = False
        try:
            with connected(self.stack.primary) as cursor:
                begun = True
                cursor.execute(f"DELETE FROM message WHERE {condition}", list(where.values()))
        except psycopg2.Error as error:
            # An error from the server is an answer: the statement was rolled back. Except if the server is ending.
            said = error.pgcode is not None and not error.pgcode.startswith(("57P", "08"))
            self.journal.complete(n, "refused" if said or not begun else "unknown", why=str(error).strip())
        else:
            self.journal.complete(n, "ok")

    def pick(self) -> dict[str, str]:
        """Usually a name that will come back; sometimes one that was just acknowledged, or a whole city."""
        which = self.random.random()
        if which < 0.1:
            return dict(zip(("state", "city"), self.random.choice(CITIES), strict=True))
        if which < 0.3 and self.sent.usernames:
            return {"username": self.random.choice(list(self.sent.usernames))}
        return {"username": f"again-{self.random.randrange(self.options.recycled_names)}"}


class Reader(Client):
    """Asks for counts, and then for members that these counts claim."""

    pause_seconds = 0.06

    def act(self) -> None:
        path = self.random.choice(("", "/users", "/cities", "/customers"))
        n = self.ask_counts(path, fresh=self.random.random() < 0.6)
        counter, sent = self.random.choice((("users", self.sent.usernames), ("customers", self.sent.emails)))
        recent = list(sent)
        names = self.random.sample(recent, min(20, len(recent)))
        names += [f"again-{self.random.randrange(self.options.recycled_names)}", f"ghost-{n}"]
        self.ask_members(counter, [[name] for name in names] + [list(self.random.choice(NOBODIES[counter]))])
        if self.random.random() < 0.15:
            cities = [*self.random.sample(CITIES, 10), self.random.choice(NOBODIES["cities"])]
            self.ask_members("cities", [list(city) for city in cities])
        elif self.random.random() < 0.15:
            branches = [*BRANCHES, *self.random.choice(NOBODIES["branches"])]
            self.ask_members("branches", [[branch] for branch in branches])


class Analyst(Client):
    """Asks for groups and windows, and looks whether they have the members that were acknowledged a moment ago."""

    pause_seconds = 0.06

    def act(self) -> None:
        self.ask_counts(self.pick(), fresh=self.random.random() < 0.6)
        recent = list(self.sent.grouped)
        asked: dict[str, list[Member]] = {}
        for text, member in self.random.sample(recent, min(6, len(recent))):
            nobody = self.random.choice(NOBODIES[text.partition("?")[0]])
            asked.setdefault(text, [nobody]).append(member)
        for text, members in asked.items():
            self.look(text, members)

    def pick(self) -> str:
        """What to ask."""
        counter = self.random.choice(tuple(GROUPINGS))
        by = self.random.choice(GROUPINGS[counter])
        listed, (which,) = (
            ",".join(by),
            self.random.choices(("group", "days", "window", "top", "list"), (4, 2, 4, 1, 1)),
        )
        if which == "window":
            return f"/{counter}?window={self.random.choice(('today', '2d', '7d', '30d', '400d'))}"
        if which == "days" and by[0].startswith("day"):
            begin = self.stack.today - timedelta(days=self.random.choice((3, 30, 390)))
            return f"/{counter}?by={listed}&from={begin}&to={self.stack.today + timedelta(days=3)}"
        if which in ("top", "list"):
            return f"/{counter}?by={listed}&top=5" if which == "top" else f"/{counter}/groups?by={listed}&limit=40"
        terms = {
            "state": self.random.choice((self.random.choice(CITIES)[0], self.random.choice(SMALL_STATES))),
            "branch": self.random.choice(BRANCHES),
        }
        day = str(self.random.choice(self.stack.days))
        terms |= {"day(create_time)": day, "day(placed_at)": day, "week(placed_at)": str(monday(day))}
        return f"/{Question(counter, by, tuple(terms[each] for each in by))}"


class Operator(Client):
    """Asks for a run when its last one has ended, and cancels some. The counts show their effect."""

    pause_seconds = 2.0
    _open = ""  # the id of its last run, until it is known to have ended

    def run(self) -> None:
        super().run()
        with suppress(OSError, http.client.HTTPException):
            self.cancel()

    def act(self) -> None:
        if self._open:
            with suppress(OSError, http.client.HTTPException):
                status, said = self.ask(self.stack.manage.port, "GET", f"/v1/runs/{self._open}")
                if status == 404 or (status == 200 and said["finished_at"]):
                    self._open = ""
            return
        names = [counter.name for counter in declarations.derived()]
        asked = {
            "mode": self.random.choice(("repair", "repair", "check")),
            "counters": self.random.sample(names, self.random.randint(1, len(names))),
        }
        n = self.journal.invoke(self.name, "run", asked=asked)
        try:
            status, said = self.ask(self.stack.manage.port, "POST", "/v1/runs", asked)
            if status == 202:
                self._open = said["id"]
                if self.random.random() < 0.2:
                    self.cancel()
        except (OSError, http.client.HTTPException) as error:
            self.journal.complete(n, "unknown", why=repr(error))
        else:
            self.journal.complete(n, "ok", status=status)

    def cancel(self) -> None:
        """Cancel its last run. Raises OSError, http.client.HTTPException."""
        if self._open:
            self.ask(self.stack.manage.port, "POST", f"/v1/runs/{self._open}/cancel")
