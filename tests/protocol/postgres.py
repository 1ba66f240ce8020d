"""Postgres in the model: commits, replay, losses, xacts given out again; and what a snapshot shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.protocol.rules import Rules
from tests.protocol.state import (
    DONE,
    ERASES,
    Departure,
    Entry,
    Left,
    Replica,
    State,
    View,
    genuine,
    has_part,
    put,
    rows,
)

REWRITES = ("alter", "reload")


class Postgres:
    """`is_primary`: the keeper reads the primary itself; there is no replica."""

    def __init__(self, rules: Rules, *, is_primary: bool) -> None:
        self.on, self.is_primary = rules.on, is_primary
        self._views: dict[Any, list[View]] = {}

    def views(self, s: State) -> list[View]:
        """The snapshots that the replicas may give now."""
        begun = (actor for actor in s.ingests + s.deleters if actor[0] == "begun")
        unended = tuple(xact for _, xact, *_ in begun) if self.is_primary else ()
        key = s.histories, s.replicas, unended, s.next_xact if self.is_primary else 0
        if key not in self._views:
            self._views[key] = [view for replica in s.replicas for view in self.look(s, replica, unended)]
        return self._views[key]

    def look(self, s: State, replica: Replica, unended: tuple[int, ...]) -> Iterator[View]:
        log = s.histories[replica.history]
        if self.is_primary:
            # With the rule a snapshot waits until all that it shows is on the disk.
            if replica.shown == len(log) or not self.on("flushed"):
                yield self.view(replica, log, min([*unended, s.next_xact]), s.next_xact)
            return
        shown = log[: replica.shown]
        yield self.view(replica, shown, *self.horizon(shown))
        if not self.on("lock"):
            # Snapshots from before a rewrite, which read the table after it: it looks empty.
            for lsn in range(replica.shown):
                if any(kind in REWRITES for kind, _, _ in shown[lsn:]):
                    old = self.view(replica._replace(shown=lsn), shown[:lsn], *self.horizon(shown[:lsn]))
                    yield old._replace(rows=frozenset())

    def horizon(self, shown: tuple[Entry, ...]) -> tuple[int, int]:
        """Below the first, all transactions have ended; from the second on, a replica knows of none."""
        ended = {xact for _, xact, _ in shown}
        xmax = max(ended, default=0) + 1
        if not self.on("horizon"):
            return xmax, xmax
        return min([xact for xact in range(1, xmax) if xact not in ended] + [xmax]), xmax

    def view(self, replica: Replica, shown: tuple[Entry, ...], horizon: int, xmax: int) -> View:
        departures = self.departures(shown)
        return View(
            replica.named, replica.history, replica.shown, horizon, xmax, rows(shown), departures, has_part(shown)
        )

    def departures(self, log: tuple[Entry, ...]) -> frozenset[Departure]:
        """What the triggers have written down, less what was pruned."""
        found: frozenset[Departure] = frozenset()
        for at, (kind, xact, _) in enumerate(log):
            if kind == "prune":
                last = max((departed for departed, _ in found), default=0)
                found = frozenset({(last, True)} if found and self.on("pruned") else ())
            elif kind == "empty" or (kind == "leave" and rows(log[:at])):
                if self.on("later of both"):
                    xact = max(xact, genuine(log[:at]))
                if not self.on("of this history"):
                    xact = max([xact, *(stamped for stamped, _ in rows(log[:at]))])
                found |= {(xact, kind == "empty")}
        return found

    def is_committed(self, s: State, writer: int) -> bool:
        """Whether a commit has returned: on a primary that can crash it waits for the disk."""
        return not self.is_primary or writer in {by for _, _, by in s.histories[0][: s.replicas[0].shown]}

    def nexts(self, s: State) -> Iterator[State]:
        for i, replica in enumerate(s.replicas):
            for after, left in self.move(s, i, replica):
                yield s._replace(replicas=put(s.replicas, i, after), left=left)
        left = s.left
        if left.erases:
            yield commit(s, "erase", left._replace(erases=left.erases - 1))
        if left.departures or any(deleter != DONE for deleter in s.deleters):
            yield from delete(s)
        if left.empties:
            yield commit(s, "empty", left._replace(empties=left.empties - 1))
        if left.prunes:
            yield commit(s, "prune", left._replace(prunes=left.prunes - 1))
        if left.loads:
            yield commit(s, "load", left._replace(loads=left.loads - 1))
        if left.attaches and not has_part(s.histories[-1]):
            yield commit(s, "attach", left._replace(attaches=left.attaches - 1))
        if left.detaches and has_part(s.histories[-1]):
            yield commit(s, "detach", left._replace(detaches=left.detaches - 1))
        if left.rewrites:
            for kind in REWRITES:
                yield commit(s, kind, left._replace(rewrites=left.rewrites - 1))
        if left.burns:
            yield commit(s, "none", left._replace(burns=left.burns - 1))
        if left.crashes:
            yield crash(s)
        if left.promotions:
            yield promote(s)

    def move(self, s: State, index: int, replica: Replica) -> Iterator[tuple[Replica, Left]]:
        """A replica replays, comes back earlier than it was, or goes over to a new history."""
        promoted = len(s.histories) > 1
        if replica.shown < len(s.histories[replica.history]):
            yield replica._replace(shown=replica.shown + 1), s.left
        if s.left.backs and replica.shown and not (promoted and index == 0):
            earlier = replica._replace(shown=replica.shown - 1)
            if promoted and replica.shown == s.fork and self.on("not before the fork"):
                earlier = earlier._replace(named=0, history=0)
            yield earlier, s.left._replace(backs=s.left.backs - 1)
        if promoted and replica.history == 0:
            named = int(self.on("not after the fork"))
            if replica.shown > s.fork:  # it is ahead of the new history, and has to be copied again
                yield Replica(named, 1, s.fork), s.left
            elif replica.shown == s.fork or not self.on("not before the fork"):
                yield Replica(named, 1, replica.shown), s.left
        elif promoted and replica.named == 0:
            yield replica._replace(named=1), s.left


def commit(s: State, kind: str, left: Left) -> State:
    log = (*s.histories[-1], (kind, s.next_xact, -1))
    redis = s.redis._replace(foreign=False) if kind in ERASES else s.redis
    return s._replace(histories=(*s.histories[:-1], log), next_xact=s.next_xact + 1, left=left, redis=redis)


def delete(s: State) -> Iterator[State]:
    """The member's rows are deleted by a transaction that may have got its xact before theirs."""
    for i, (at, *facts) in enumerate(s.deleters):
        if at == "start":
            yield s._replace(next_xact=s.next_xact + 1, deleters=put(s.deleters, i, ("begun", s.next_xact)))
        elif at == "begun":
            log = (*s.histories[-1], ("leave", facts[0], -1))
            redis = s.redis._replace(foreign=False)
            yield s._replace(histories=(*s.histories[:-1], log), redis=redis, deleters=put(s.deleters, i, DONE))
    if s.left.departures:
        yield commit(s, "leave", s.left._replace(departures=s.left.departures - 1))


def crash(s: State) -> State:
    """The primary comes back with what is in the log on its disk, and hands out the xacts behind it again."""
    log = s.histories[0][: s.replicas[0].shown]
    kept = {writer for _, _, writer in log}
    ingests = tuple(
        DONE if actor[0] == "begun" or (actor[0] == "committed" and writer not in kept) else actor
        for writer, actor in enumerate(s.ingests)
    )
    next_xact = 1 + max((xact for _, xact, _ in log), default=0)
    left = s.left._replace(crashes=s.left.crashes - 1)
    return s._replace(histories=(log,), next_xact=next_xact, ingests=ingests, left=left)


def promote(s: State) -> State:
    """The first replica becomes the primary of a new history; what it has not replayed is lost.

    Transactions that were open there have ended; their xacts are not handed out again.
    """
    fork = s.replicas[0].shown
    log = s.histories[0][:fork]
    ended = {xact for _, xact, _ in log}
    next_xact = max(ended, default=0) + 1
    log += tuple(("none", xact, -1) for xact in range(1, next_xact) if xact not in ended)
    return s._replace(
        histories=(s.histories[0], log),
        fork=fork,
        next_xact=next_xact,
        replicas=(Replica(1, 1, fork), *s.replicas[1:]),
        left=s.left._replace(promotions=s.left.promotions - 1),
    )
