"""The states of the model. Everything is a tuple, so that the search can look a state up among the known ones."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

Entry = tuple[str, int, int]  # kind, xact, which ingest wrote it
Row = tuple[int, int]  # xact, which ingest wrote it
Departure = tuple[int, bool]  # xact, whether it means "all": reconcile this counter
Saw = str  # what a chunk of the table shows of the member: "row", "foreign row", or nothing
Actor = tuple[Any, ...]  # where it is, and what it has noted

START: Actor = ("start",)
DONE: Actor = ("done",)

# The writer of a row that came with a dump, or from a copied cluster, and its xact: one of another history.
FOREIGN = -2
FOREIGN_XACT = 50
# The writer of the row in the part that is attached and detached, and its xact: below every cursor.
PART = -3
PART_XACT = 0

# What leaves the member without a row: triggers bypassed, or not.
ERASES = ("erase", "leave", "empty")


class Fill(NamedTuple):
    """A fill in progress. `done` is its position: the one chunk that there is has been added."""

    token: int
    source: int
    history: int
    horizon: int
    lsn: int
    gap: int
    attached: bool = False
    change: int = 0
    done: bool = False


class Redis(NamedTuple):
    """What is in Redis: the set, its suspects, the intake, the state, and the fill."""

    member: bool = False
    rest: bool = False  # other members: their rows are old, and nobody erases them
    mark: int | None = None
    size: int | None = None
    intake_build: int | None = None
    intake_fill: int | None = None
    water: int | None = None
    water_source: int = 0
    cursor: int | None = None
    source: int = 0
    build: int | None = None
    reset: int = 0  # how many commits there were when the watermark was set again
    fill: Fill | None = None
    left: int | None = None  # departures below are resolved
    leaving: int | None = None  # token of the batch of departures that is being resolved …
    leaving_mark: int | None = None  # … and of the one that the member is marked by
    attached: bool = False  # the table that was seen last has the part
    change: int = 0  # how often it was seen to be another one …
    settled: int = 0  # … and the change that a fill or a run has settled
    through: int = 0  # complete_through: how many entries of the history it claims; only where parts are attached
    own: int = 0  # Redis' name for its own history (master_replid): another one since each loss and each failover
    # Not in Redis, but facts: the member was put there by hand, and nobody has seen a row of it since; the history that the
    # cursor stands for, whatever the replica called it; a foreign row of the member has been seen, and is there.
    by_hand: bool = False
    history: int = 0
    foreign: bool = False

    @property
    def held(self) -> int:
        return self.member + self.rest

    @property
    def gap(self) -> int:
        return self.held - (self.size or 0)


class Replica(NamedTuple):
    """It shows the first `shown` entries of a history, and calls that timeline `named`.

    A primary that is read itself shows all: then this is what is on its disk.
    """

    named: int = 0
    history: int = 0
    shown: int = 0


class View(NamedTuple):
    """What a snapshot shows."""

    source: int
    history: int
    lsn: int
    horizon: int
    xmax: int
    rows: frozenset[Row]
    departures: frozenset[Departure] = frozenset()
    attached: bool = False


class Seen(NamedTuple):
    """The state of a counter as a run has read it, to hold snapshots against."""

    source: int
    cursor: int
    water: int | None
    water_source: int
    reset: int
    attached: bool
    change: int


class Left(NamedTuple):
    """How often each thing that comes from outside may still happen."""

    erases: int = 0
    backs: int = 0  # a replica comes back earlier than it was
    losses: int = 0  # Redis loses everything, or goes back to an older save
    failovers: int = 0  # a replica of Redis that may lack the last steps is promoted, and the old primary still answers
    fills: int = 2
    damages: int = 0  # somebody changes the keys by hand
    others: int = 0  # a row of another member is stored
    poisons: int = 0  # somebody writes a watermark that cannot be, or removes it
    rewrites: int = 0  # ALTER TABLE … TYPE, or TRUNCATE with a reload in one transaction
    burns: int = 0  # a transaction takes an xact and stores no row
    crashes: int = 0  # of the primary
    promotions: int = 0  # of the first replica
    departures: int = 0  # the member's rows are deleted, and a trigger writes that down
    empties: int = 0  # TRUNCATE, and a trigger writes that down
    prunes: int = 0  # departures that are old are removed
    loads: int = 0  # a row with an xact of another history is stored
    attaches: int = 0  # a part with an old row of the member comes to the table
    detaches: int = 0  # … and goes


class State(NamedTuple):
    """Everything. An entry of a history is made when its transaction commits; the last history is the truth."""

    histories: tuple[tuple[Entry, ...], ...]
    fork: int  # how many entries are common to both histories
    next_xact: int
    replicas: tuple[Replica, ...]
    redis: Redis
    save: Redis | None
    old: Redis | None  # a primary of Redis that was replaced and does not know it: what happens there is void
    ingests: tuple[Actor, ...]
    runs: tuple[Actor, ...]
    passes: tuple[Actor, ...]
    builder: Actor
    deleters: tuple[Actor, ...]
    departers: tuple[Actor, ...]
    left: Left
    at_old: frozenset[tuple[str, int]] = frozenset()  # those who are connected to that old primary: field and index


def put(actors: tuple[T, ...], index: int, actor: T) -> tuple[T, ...]:
    """The actors, with another one at this index."""
    return (*actors[:index], actor, *actors[index + 1 :])


def rows(log: tuple[Entry, ...]) -> frozenset[Row]:
    """The member's rows after these entries."""
    found: frozenset[Row] = frozenset()
    part: frozenset[Row] = frozenset({(PART_XACT, PART)})  # what is in the part
    for kind, xact, writer in log:
        if kind == "insert":
            found |= {(xact, writer)}
        elif kind == "load":
            found |= {(FOREIGN_XACT, FOREIGN)}
        elif kind == "attach":
            found |= part
        elif kind == "detach":
            found -= part
        elif kind in ERASES:
            part -= found
            found = frozenset()
        elif kind == "reload":
            found = frozenset((FOREIGN_XACT if by == FOREIGN else xact, by) for _, by in found)
    return found


def has_part(log: tuple[Entry, ...]) -> bool:
    """Whether the part is attached after these entries."""
    return [kind for kind, _, _ in log if kind in ("attach", "detach")][-1:] == ["attach"]


def genuine(log: tuple[Entry, ...]) -> int:
    """The highest xact of the member's rows after these entries that this history has given out."""
    return max((xact for xact, by in rows(log) if by != FOREIGN), default=0)
