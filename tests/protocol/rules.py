"""The rules of the protocol, by name. The search leaves out one at a time: each must be needed."""

RULES = {
    # A sweep
    "token": "a sweep takes out only what carries its own mark",
    "fence": "a sweep asks again once the replica shows the watermark",
    "cursor fence": "... and all that is below the cursor, which a replica that came back earlier does not",
    "claim": "a pass raises the watermark to what it is about to claim",
    "claim of a fill": "... and so does a fill",
    "unmark": "recording takes the mark off",
    "unmark in catch-up": "catching up takes the mark off",
    # A pass
    "compare": "a pass sets the cursor only where it is still the one that it started from",
    "compare build": "... of the same build: a set that is deleted by hand breaks no connection",
    "one connection": "a pass over a broken connection is void",
    "horizon": "the cursor is the horizon, not the highest xact seen",
    # A fill
    "fill lsn": "a chunk of a fill comes from a snapshot that is not earlier than the fill's first",
    "fill position": "a fill's position and its members are one atomic step",
    # The size
    "size": "a set that differs from its size is not live",
    "builds": "nor is one whose two hashes name different builds",
    "intake fill": "a fill goes on only where the intake still names it",
    "begin keeps the gap": "a fill does not make right what it finds in the set",
    "begin makes cold": "a fill of a counter that was lost drops what is left of its cursor",
    "verify gap": "a run makes the size right only where the gap is the one that it began with",
    "verify build": "... on the build that it looked at",
    "verify swept": "... and where it took out all that had no row: no other run has taken its marks away",
    "settled once": "a gap that was settled makes another build of the counter: no other run settles it again",
    "settle fence": "a run that has a gap to settle reads the table behind the fence, too",
    # What a snapshot shows
    "lock": "a snapshot begins with the table's lock, so the table gets no other file under it",
    "flushed": "a primary's log is on its disk before the snapshot is read: a crash takes nothing back that it shows",
    # Timelines
    "timelines": "xacts of different timelines are not compared",
    "stragglers": "what an earlier timeline acknowledges does not replace the watermark of a later one",
    "source fence": "a sweep waits where the watermark belongs to a later timeline than the replica",
    "source of a pass": "a pass reads only the timeline that the cursor belongs to",
    "source of a fill": "a fill reads only the timeline that it began with",
    "source anew": "a connection that lived through a promotion asks for the timeline again",
    "not before the fork": "a replica names the new timeline when it has replayed all that is common, not earlier",
    "not after the fork": "... and before it replays anything else, not later",
    # A watermark that is missing, or cannot be
    "reset waits": "after a watermark was set anew, sweeps wait until the replica shows what was committed before",
    "reset by a fill": "... as they do after a fill of a counter whose intake was deleted, or may have been",
    # Departures
    "left after": "departures are resolved when their members have been swept, not before",
    "left compare": "... by the keeper that made the marks: another one may have made its own meanwhile",
    "mark compare": "... and a keeper makes no marks once another has begun: it would take the other's away",
    "below the cursor": "departures are read below the cursor only: of what is above it, ingest may still record something",
    "departure fence": "a departure is settled behind a fence, like any sweep",
    "fence after marks": "... which is read after the marks were made",
    "unmark departing": "recording takes the marks of departures off, too",
    "late records": "a record whose xact is below the cursor adds nothing: catch-up has it, or it has left again",
    "late passes": "... nor does a pass with a horizon below the cursor: another pass has moved it meanwhile",
    "late repairs": "... nor a run: it reads the chunk again",
    "late is not counted": "... and is acknowledged only where the member is in the set",
    "all": "a departure that means all is resolved by a reconcile",
    "pruned": "what is pruned leaves one that means all",
    "later of both": "a departure has the xact of the deletion, or of the rows, whichever is later",
    "of this history": "... but for rows whose xact this history has not given out yet",
    "promote forgets": "a fill says nothing of what has left before: the reconcile after it does",
    "reconciled from": "a run resolves the departures below the cursor that it began with, not those below the one at its end",
    "all taken out": "... where it took out all that had no row: no other run has taken its marks away",
    "foreign rows": "a row is a row, whatever its xact: one of another history keeps the member in the set",
    # A table that becomes another one without an xact: a part is attached, or detached
    "changed table": "after another table was seen, passes claim no more moments until a run has settled that",
    "claim of a change": "... and the watermark is raised to what showed it",
    "compare change": "... nor does a pass claim one where another table was noted since it began",
    "settled as begun": "a run settles only the change that was noted when it began",
    "noted table": "a sweep asks the table that is noted",
    "table of a run": "a run looks for what is missing in that table only",
    "table of a fill": "a fill reads one table from its first snapshot on",
    # A watermark once more
    "missing stays missing": "recording sets no watermark where that of a complete counter is missing",
}


class Rules:
    """All of them, but for some."""

    def __init__(self, without: frozenset[str]) -> None:
        if unknown := without - set(RULES):
            raise ValueError(f"no such rule: {', '.join(sorted(unknown))}")
        self.without = without

    def on(self, rule: str) -> bool:
        return rule not in self.without
