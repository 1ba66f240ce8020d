"""The rules of the protocol, by name. The search leaves out one at a time: each must be needed."""

from __future__ import annotations

from collections.abc import Collection

RULES = {
    # A sweep
    "token": "a sweep removes only members that carry its own mark",
    "fence": "a sweep asks again once the replica shows the watermark",
    "cursor fence": "... and everything below the cursor, which a replica that came back earlier does not show",
    "claim": "a pass raises the watermark to what it is about to claim",
    "claim of a fill": "... and so does a fill",
    "unmark": "recording removes the mark",
    "unmark in catch-up": "catching up removes the mark",
    # A pass
    "compare": "a pass sets the cursor only if it is still the one that it started from",
    "compare build": "... of the same build: deleting a set by hand breaks no connection",
    "one connection": "a pass stays connected to one server: another one may be a primary that was replaced",
    "one history": "... and moves the cursor only if that server has had one history since: it has lost nothing",
    "history of a run": "a run verifies only in the history of Redis in which it began",
    "history of departures": "... nor are departures resolved in another one",
    "horizon": "the cursor is the horizon, not the highest xact seen",
    # A fill
    "fill lsn": "a chunk of a fill comes from a snapshot that is not earlier than the fill's first",
    "fill position": "a fill's position and its members are one atomic step",
    # The size
    "size": "a set that differs from its size is not live",
    "builds": "nor is one whose two hashes name different builds",
    "intake fill": "a fill continues only if the intake still names it",
    "begin keeps the gap": "a fill does not set the size to the members that it finds in the set",
    "begin makes cold": "a fill of a lost counter removes its old cursor",
    "verify gap": "a run corrects the size only if the gap is the one that it began with",
    "verify build": "... of the build that it looked at",
    "verify swept": "... and if it removed every member without a row: no other run has removed its marks",
    "settled once": "a run that settles a gap gives the counter a new build token: no other run settles it again",
    "settle fence": "a run that has a gap to settle reads the table behind the fence, too",
    # What a snapshot shows
    "lock": "a snapshot begins with the table's lock, so that the table cannot get another file meanwhile",
    "flushed": "a primary's log is on its disk before the snapshot is read: a crash cannot undo what it shows",
    # Timelines
    "timelines": "xacts of different timelines are not compared",
    "stragglers": "an acknowledgement of an earlier timeline does not replace the watermark of a later one",
    "source fence": "a sweep waits if the watermark belongs to a later timeline than the replica",
    "source of a pass": "a pass reads only the timeline that the cursor belongs to",
    "source of a fill": "a fill reads only the timeline that it began with",
    "source anew": "a connection that lived through a promotion asks for the timeline again",
    "not before the fork": "a replica names the new timeline when it has replayed all common commits, not earlier",
    "not after the fork": "... and before it replays anything else, not later",
    # A watermark that is missing, or impossible
    "reset waits": "after a watermark was set again, sweeps wait until the replica shows everything committed before",
    "reset by a fill": "... and after a fill of a counter whose intake was deleted, or may have been",
    # Departures
    "left after": "departures are resolved when their members have been swept, not before",
    "left compare": "... by the keeper that made the marks: another one may have made its own meanwhile",
    "mark compare": "... and a keeper makes no marks once another has begun: it would replace the other's",
    "below the cursor": "departures are read below the cursor only: ingest may still record rows above it",
    "departure fence": "a departure is settled behind a fence, like any sweep",
    "fence after marks": "... which is read after the marks were made",
    "unmark departing": "recording also removes the marks of departures",
    "late records": "a record whose xact is below the cursor adds nothing: catch-up has added it, or it has left again",
    "late passes": "... nor does a pass with a horizon below the cursor: another pass has moved it meanwhile",
    "late repairs": "... nor a run: it reads the chunk again",
    "late is not counted": "... and is acknowledged as counted only if the member is in the set",
    "all": "a reconcile resolves a departure that means all",
    "pruned": "pruning leaves a departure that means all",
    "later of both": "a departure has the later xact of the deletion and the row",
    "of this history": "... except for rows whose xact this history has not given out yet",
    "promote forgets": "a fill resolves no departures: the reconcile after it does",
    "reconciled from": "a run resolves the departures below the cursor that it began with, not below its last one",
    "all taken out": "... if it removed every member without a row: no other run has removed its marks",
    "suspects below the cursor": "... and looked for them where everything below that cursor is shown",
    "foreign rows": "every row keeps its member in the set, also one with an xact of another history",
    # A table that becomes another one without an xact: a part is attached, or detached
    "changed table": "after a pass has seen another table, complete_through does not move until a run has settled that",
    "settles itself": "... or only a retired part has left: a part that came, with rows, does not settle itself",
    "claim of a change": "... and the watermark is raised to what that snapshot showed",
    "compare change": "... nor does a pass move it if another table was noted since it began",
    "settled as begun": "a run settles only the change that was noted when it began",
    "noted table": "a sweep asks the table that is noted",
    "table of a run": "a run looks for missing members in that table only",
    "table of a fill": "a fill reads one table from its first snapshot on",
    # A watermark once more
    "missing stays missing": "recording sets no watermark if that of a complete counter is missing",
}


class Rules:
    """All rules except some, for example `Rules(frozenset({"fence"}))`. Raises ValueError for an unknown name."""

    def __init__(self, without: frozenset[str], known: Collection[str] = tuple(RULES)) -> None:
        if unknown := without - set(known):
            raise ValueError(f"no such rule: {', '.join(sorted(unknown))}")
        self.without = without

    def on(self, rule: str) -> bool:
        return rule not in self.without
