"""A round of the journal, typed. Times are seconds of the monotonic clock unless they are called wall."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode
from zlib import crc32

from shared_models.protocol.members import encode

Member = tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """What can be counted: all members of a counter, those of one group, or those that were seen on a day or later."""

    counter: str
    by: tuple[str, ...] = ()
    group: tuple[str | None, ...] = ()
    since: str = ""

    def __str__(self) -> str:
        if self.by:
            return f"{self.counter}?{urlencode({'by': ','.join(self.by), 'group': self.group}, doseq=True)}"
        return f"{self.counter}?from={self.since}" if self.since else self.counter

    @property
    def derived(self) -> str:
        """The derived counter that holds the answer."""
        return f"{self.counter}:{','.join(self.by)}" if self.by else self.counter


@lru_cache(maxsize=10_000)
def question_of(text: str) -> Question:
    """What stands in the journal: "users", "users?by=state&group=NY", "users?from=2026-11-21"."""
    counter, _, rest = text.partition("?")
    values = parse_qs(rest, keep_blank_values=True)
    by = tuple(values["by"][0].split(",")) if "by" in values else ()
    return Question(counter, by, tuple(values.get("group", ())), values.get("from", [""])[0])


@dataclass(frozen=True)
class Row:
    """One row of a table. Its token identifies it."""

    token: str

    def of(self, counter: str) -> Member | None:
        """Its member in a counter as a whole; None if it does not count."""
        raise NotImplementedError

    def terms(self) -> Mapping[str, str | None]:
        """What groups are made of, in this row."""
        raise NotImplementedError

    def last_day(self) -> str | None:
        """Its day, as `last_seen` has it."""
        raise NotImplementedError

    def member(self, text: str) -> Member | None:
        """Its member in what this text asks for; None if it does not count there."""
        asked = question_of(text)
        member = self.of(asked.counter)
        if member is None or asked.counter not in GROUPINGS:
            return member
        if asked.by:
            return member if self.group(asked.by) == asked.group else None
        # It has last_seen: a row without a day does not count.
        day = self.last_day()
        return member if day is not None and day >= asked.since else None

    def group(self, by: Sequence[str]) -> tuple[str | None, ...]:
        """Its group."""
        terms = self.terms()
        return tuple(terms[each] for each in by)

    def questions(self) -> Iterator[tuple[str, Member]]:
        """All that is counted by group or by day and counts this row, with its member."""
        for counter, groupings in GROUPINGS.items():
            member = self.of(counter)
            if member is not None:
                groups = {by: self.group(by) for by in groupings}
                yield from (
                    (str(Question(counter, by, group)), member) for by, group in groups.items() if None not in group
                )
                if self.last_day() is not None:
                    yield str(Question(counter, since=self.last_day() or "")), member


@dataclass(frozen=True)
class Message(Row):
    """A row that came in through ingest, or by SQL. Its message is the token."""

    username: str
    state: str
    city: str
    day: str

    def of(self, counter: str) -> Member | None:
        return {"users": (self.username,), "cities": (self.state, self.city)}.get(counter)

    def terms(self) -> Mapping[str, str | None]:
        return {"state": self.state, "day(create_time)": self.day}

    def last_day(self) -> str | None:
        return self.day


@dataclass(frozen=True)
class Order(Row):
    """A row of the application's table, until a change: a change makes another row of it, with another token."""

    email: str | None
    branch: str
    deleted: bool
    day: str | None

    def of(self, counter: str) -> Member | None:
        if counter == "customers":
            return None if self.email is None or self.deleted else (self.email,)
        return (self.branch,) if counter == "branches" else None

    def terms(self) -> Mapping[str, str | None]:
        return {"branch": self.branch, "day(placed_at)": self.day, "week(placed_at)": monday(self.day)}

    def last_day(self) -> str | None:
        return self.day


def monday(day: str | None) -> str | None:
    """The week that a day lies in: named by its Monday."""
    if day is None:
        return None
    then = date.fromisoformat(day)
    return str(then - timedelta(days=then.weekday()))


ROWS: dict[str, type[Row]] = {"message": Message, "orders": Order}
# By what they are counted, as stack.py declares it. These have `last_seen`, too.
GROUPINGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "users": (("state",), ("day(create_time)",)),
    "customers": (("branch",), ("day(placed_at)",), ("branch", "week(placed_at)")),
}


@dataclass
class Request:
    """Rows to store, all or none: every attempt with the same Idempotency-Key, or the only one."""

    rows: list[Row]
    began: float
    # The first acknowledgement, and the last one that said "counted".
    acknowledged: float = inf
    acknowledged_wall: float = inf
    counted_began: float = inf
    counted: float = inf
    refused: int = 0
    attempts: int = 0
    answers: list[Any] = field(default_factory=list)

    @property
    def surely_not_stored(self) -> bool:
        """Whether every attempt was refused."""
        return self.attempts > 0 and self.refused == self.attempts


@dataclass
class Erase:
    """Rows of a table that were removed, or should be: those with one of these values in each of these fields. Without a
    field it is all rows. `ended` is inf if the outcome is unknown."""

    table: str
    where: dict[str, set[str]]
    began: float
    ended: float = inf
    refused: bool = False
    done: bool = False

    def matches(self, row: Row) -> bool:
        if not isinstance(row, ROWS[self.table]):
            return False
        return all(getattr(row, name) in values for name, values in self.where.items())


@dataclass
class Count:
    """One counter in one answer. `complete_through_wall` is None if the answer had none."""

    n: int
    counter: str
    count: int
    live: bool  # not "stale"
    fresh: bool  # it had to be read from Redis after the request
    began: float
    ended: float
    complete_through_wall: float | None


@dataclass
class Membership:
    """One answer about members."""

    n: int
    counter: str
    began: float
    ended: float
    asked: list[Member]
    found: list[bool]


@dataclass
class Wait:
    """How long a client waited for a service."""

    n: int
    service: str
    began: float
    ended: float


@dataclass
class Loss:
    """Between these moments Redis has lost something of a derived counter, or of all counters if none is named; of all parts,
    or of those with these numbers."""

    began: float
    ended: float
    counter: str = ""
    parts: frozenset[int] = frozenset()
    of: int = 1

    def concerns(self, text: str, member: Member) -> bool:
        """Whether the answer to this question may have lost this member."""
        if self.counter not in ("", question_of(text).derived):
            return False
        return not self.parts or crc32(encode(member)) % self.of in self.parts


@dataclass
class Round:
    """Everything that happened between two tables."""

    # The rows in the primary and in the counters at the start.
    base: list[Row] = field(default_factory=list)
    base_wall: float = -inf
    requests: dict[str, Request] = field(default_factory=dict)
    erases: list[Erase] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    memberships: list[Membership] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    # While two servers believed to hold these parts: what was counted on one of them, the other one did not show.
    stale: list[Loss] = field(default_factory=list)
    stops: list[tuple[str, float, float]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    # By token: when an erase may first have met the row. Found when it is asked for the first time, by the checker.
    gone: dict[str, float] = field(default_factory=dict)
    # The rows in the primary at the end; None during the round.
    final: list[Row] | None = None


def read(path: Path) -> Iterator[Round]:
    """The rounds of a journal, including a last one that has not ended."""
    with path.open() as lines:
        # The last line of a run that was killed may be half a line.
        yield from rounds(json.loads(line) for line in lines if line.endswith("\n"))


def rounds(events: Iterable[dict[str, Any]]) -> Iterator[Round]:
    """The rounds in a sequence of events: each ends with a table, and the next one begins with it."""
    now = Round()
    invoked: dict[int, dict[str, Any]] = {}
    faults: dict[int, dict[str, Any]] = {}
    for event in events:
        kind = event["event"]
        if kind == "invoke":
            invoked[event["n"]] = event
            begin(now, event)
        elif kind == "complete":
            end(now, invoked.pop(event["n"]), event)
        elif kind in ("loss", "stale"):
            (now.losses if kind == "loss" else now.stale).append(
                Loss(
                    event["from"],
                    event["t"],
                    event.get("counter", ""),
                    frozenset(event.get("parts", ())),
                    event.get("of", 1),
                )
            )
        elif kind == "fault":
            faults[event["number"]] = event
        elif kind == "mended":
            fault = faults.pop(event["number"])
            # A service that is killed or stopped itself is not waiting for a store.
            now.stops.append((fault["target"].split()[0], fault["t"], event["t"]))
        elif kind == "table":
            now.final = [row for table, rows in event["rows"].items() for row in read_rows(table, rows)]
            yield now
            now = Round(base=now.final, base_wall=event["wall"])
    if now.requests or now.counts or now.memberships:
        yield now


def read_rows(table: str, rows: list[list[Any]]) -> list[Row]:
    """Rows as the journal writes them."""
    return [ROWS[table](*row) for row in rows]


def begin(now: Round, event: dict[str, Any]) -> None:
    """The effect of an invocation alone: from here on the operation may take place."""
    if event["op"] == "post":
        request = now.requests.setdefault(
            event["request"], Request(read_rows(event.get("table", "message"), event["rows"]), event["t"])
        )
        request.attempts += 1
    elif event["op"] == "erase":
        where = {name: set(said if isinstance(said, list) else [said]) for name, said in event["where"].items()}
        now.erases.append(Erase(event.get("table", "message"), where, event["t"]))
        event["erase"] = now.erases[-1]


def end(now: Round, asked: dict[str, Any], answer: dict[str, Any]) -> None:
    """The effect of a completion."""
    began, ended, outcome = asked["t"], answer["t"], answer["outcome"]
    if "service" in asked:
        now.waits.append(Wait(asked["n"], asked["service"], began, ended))
    if asked["op"] == "post":
        request = now.requests[asked["request"]]
        if outcome == "ok":
            if request.acknowledged == inf:
                request.acknowledged, request.acknowledged_wall = ended, answer["wall"]
            if answer["counted"]:
                request.counted_began, request.counted = began, ended
            request.answers.append(answer["answer"])
        request.refused += outcome == "refused"
    elif asked["op"] == "erase":
        erase: Erase = asked["erase"]
        erase.done, erase.refused = outcome == "ok", outcome == "refused"
        erase.ended = inf if outcome == "unknown" else ended
    elif asked["op"] == "counts" and outcome == "ok":
        now.counts += counts_of(asked, answer)
    elif asked["op"] == "members" and outcome == "ok":
        members = [tuple(values) for values in asked["asked"]]
        now.memberships.append(Membership(asked["n"], asked["counter"], began, ended, members, answer["found"]))


def counts_of(asked: dict[str, Any], answer: dict[str, Any]) -> Iterator[Count]:
    """The counters in an answer that have a count."""
    for name, said in answer["counters"].items():
        if said["count"] is not None:
            through = said["complete_through"]
            yield Count(
                asked["n"],
                name,
                said["count"],
                said["state"] == "live",
                asked["fresh"],
                asked["t"],
                answer["t"],
                None if through is None else datetime.fromisoformat(through).timestamp(),
            )
