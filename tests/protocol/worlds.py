"""Small worlds: each has only a few actors and faults, so that the search can visit all of its states."""

from __future__ import annotations

from typing import Any

World = dict[str, Any]  # what `search` is called with

_COLD: World = {"ingests": 1, "warm": False}
_DAMAGED: World = {"ingests": 1, "runs": 1, "damages": 1, "fills": 1}
_UNDER_A_PASS: World = {"ingests": 1, "runs": 1, "passes": 1, "damages": 1, "backs": 1, "fills": 0}
_LOST_UNDER_A_RUN: World = {"ingests": 1, "runs": 1, "damages": 1, "losses": 1, "fills": 0}
_FAILOVERS: World = {"ingests": 1, "passes": 1, "failovers": 2}
_DEPARTURE: World = {"ingests": 1, "passes": 1, "departers": 1, "departures": 1}
_RECONCILED: World = {"ingests": 1, "runs": 1, "passes": 1, "departers": 1}
_PARTS: World = {"ingests": 0, "runs": 1, "passes": 1, "attaches": 1}
_PRIMARY: World = {"passes": 1, "is_primary": True, "crashes": 1}
_SECOND_REPLICA: World = {"ingests": 1, "runs": 1, "promotions": 1, "replicas": 2, "fills": 1}
_SECOND_REPLICA_AHEAD: World = {**_COLD, "passes": 1, "promotions": 1, "replicas": 2, "others": 1, "fills": 1}

# Everything holds in these.
WORLDS: dict[str, World] = {
    "two runs": {"ingests": 2, "erases": 1, "runs": 2},
    "two passes": {"ingests": 2, "erases": 1, "passes": 2},
    "a replica that comes back earlier": {"ingests": 2, "erases": 1, "runs": 1, "passes": 1, "backs": 1},
    "Redis loses things twice": {"ingests": 1, "passes": 1, "losses": 2},
    "builds, and Redis loses things": {**_COLD, "ingests": 2, "passes": 1, "losses": 1, "fills": 1},
    "builds, and all stores go back": {**_COLD, "erases": 1, "passes": 1, "losses": 1, "backs": 1},
    "keys changed under a pass": _UNDER_A_PASS,
    "keys changed under a build": {**_DAMAGED, "backs": 1},
    "keys changed, two builds": {"ingests": 1, "passes": 1, "damages": 2, "backs": 1},
    "keys changed twice": {"ingests": 1, "runs": 1, "damages": 2},
    "keys changed, two runs": {"ingests": 1, "runs": 2, "damages": 1, "fills": 0},
    "keys changed under the first build": {**_COLD, "runs": 1, "damages": 1, "fills": 1},
    "keys changed, and a watermark that is gone": {**_DAMAGED, "poisons": 1},
    "keys changed twice, two runs": {"ingests": 1, "runs": 2, "damages": 2, "fills": 1},
    "keys changed, and Redis loses things": {"ingests": 1, "passes": 1, "damages": 1, "losses": 1, "fills": 1},
    "keys changed under a run, and Redis loses things": _LOST_UNDER_A_RUN,
    "failovers of Redis under two passes": {**_FAILOVERS, "passes": 2},
    "failovers of Redis under a run": {"ingests": 2, "erases": 1, "runs": 1, "failovers": 2},
    "failovers of Redis under a build": {**_COLD, "passes": 1, "failovers": 1, "fills": 2},
    "failovers of Redis, and departures": {**_DEPARTURE, "failovers": 2},
    "failovers of Redis, and keys changed under a run": {**_LOST_UNDER_A_RUN, "losses": 0, "failovers": 2},
    "keys changed, and a promotion": {**_DAMAGED, "promotions": 1},
    "a watermark that cannot be": {"ingests": 2, "runs": 1, "passes": 1, "poisons": 1},
    "rewrites": {"ingests": 2, "runs": 1, "passes": 1, "rewrites": 1},
    "rewrites under a build": {**_COLD, "ingests": 2, "passes": 1, "rewrites": 1},
    "the primary is read, and crashes": {**_PRIMARY, "ingests": 2, "runs": 1, "burns": 1},
    "the primary is read, and takes a deletion back": {**_PRIMARY, "ingests": 1, "runs": 1, "erases": 1},
    "the primary is read, and other rows come": {**_PRIMARY, "ingests": 1, "runs": 1, "burns": 1, "others": 1},
    "departures of old transactions": {"ingests": 2, "passes": 1, "departers": 1, "deleters": 1},
    "departures, two passes and two keepers": {"ingests": 1, "passes": 2, "departers": 2, "departures": 1},
    "departures, and two runs": {**_DEPARTURE, "runs": 2},
    "departures, and all stores go back": {**_DEPARTURE, "backs": 1, "losses": 1},
    "departures under a build": {**_DEPARTURE, "warm": False, "fills": 1, "runs": 1},
    "departures, and a promotion": {**_DEPARTURE, "promotions": 1, "fills": 1},
    "departures, and keys changed": {**_DEPARTURE, "damages": 1, "fills": 1},
    "departures under a run, and keys changed": {**_DEPARTURE, "passes": 0, "runs": 1, "damages": 1, "fills": 0},
    "departures under a run, and a replica that comes back earlier": {**_DEPARTURE, "runs": 1, "backs": 1},
    "departures, and rewrites": {**_DEPARTURE, "rewrites": 1},
    "departures, and the primary is read, and crashes": {**_DEPARTURE, **_PRIMARY},
    "departures, and bypassed triggers": {**_DEPARTURE, "erases": 1},
    "departures are pruned": {**_DEPARTURE, "passes": 0, "runs": 1, "prunes": 1},
    "TRUNCATE": {**_RECONCILED, "empties": 1},
    "a row of another history": {**_RECONCILED, "passes": 0, "deleters": 1, "loads": 1},
    "a row of another history under a build": {**_COLD, "runs": 1, "departers": 1, "loads": 1, "fills": 1},
    "a part comes": {**_PARTS, "ingests": 1, "backs": 1},
    "a part comes and goes and comes": {**_PARTS, "attaches": 2, "detaches": 1},
    "a part comes and goes, and departures": {**_PARTS, "departers": 1, "departures": 1, "attaches": 2, "detaches": 1},
    "a part comes and goes under a build": {
        **_COLD,
        "ingests": 0,
        "runs": 1,
        "passes": 1,
        "attaches": 2,
        "detaches": 1,
    },
    "a promotion": {"ingests": 2, "runs": 1, "passes": 1, "promotions": 1},
    "a promotion, and other rows come": {**_SECOND_REPLICA, "others": 1},
    "a promotion, and a second replica": {**_SECOND_REPLICA, "ingests": 2},
    "a promotion, and a second replica that was ahead": _SECOND_REPLICA_AHEAD,
    "a promotion, and a second replica that comes back earlier": {**_SECOND_REPLICA, "backs": 1, "fills": 2},
}


# Large also where each thing in them happens once.
LARGE = {
    "departures, and keys changed",
    "departures, and all stores go back",
    "departures, and a promotion",
    "a promotion, and a second replica that was ahead",
    "a promotion, and other rows come",
    "a part comes",
}

# Together they take longer than all others.
VERY_LARGE = {
    "keys changed twice, two runs",
    "builds, and all stores go back",
    "a replica that comes back earlier",
    "departures, and two runs",
    "a watermark that cannot be",
    "keys changed twice",
    "failovers of Redis under a run",
}


def once(world: World) -> World:
    """The same world, with each thing in it happening once at the most; a second replica stays."""
    return {name: number if name == "replicas" else min(number, type(number)(1)) for name, number in world.items()}


# A world in which each rule is needed. Where another rule makes up for it there, `without` leaves that one out, too.
NEEDED: dict[str, World] = {
    "token": {"ingests": 2, "erases": 1, "runs": 2},
    "fence": {"ingests": 2, "erases": 1, "runs": 1},
    "cursor fence": {**_COLD, "runs": 1, "others": 1, "backs": 1, "fills": 1, "without": {"claim of a fill"}},
    "claim": _UNDER_A_PASS,
    "claim of a fill": _SECOND_REPLICA,
    "unmark": {"ingests": 2, "erases": 1, "runs": 1},
    "unmark in catch-up": _UNDER_A_PASS,
    "compare": {"ingests": 1, "passes": 1, "damages": 1, "fills": 1},
    "compare build": {"ingests": 1, "passes": 1, "damages": 2, "backs": 1},
    "one connection": {**_FAILOVERS, "failovers": 1},
    "one history": {"ingests": 1, "passes": 1, "losses": 1},
    "history of a run": _LOST_UNDER_A_RUN,
    "history of departures": {**_DEPARTURE, "losses": 1},
    "horizon": {"ingests": 2, "erases": 1, "runs": 1},
    "fill lsn": {**_COLD, "backs": 1},
    "fill position": {**_COLD, "losses": 1},
    "size": _DAMAGED,
    "builds": _DAMAGED,
    "intake fill": {"ingests": 1, "damages": 2},
    "begin keeps the gap": {**_COLD, "damages": 1, "fills": 1},
    "begin makes cold": {"ingests": 1, "damages": 1, "promotions": 1, "fills": 1},
    "verify gap": _DAMAGED,
    "verify build": {"ingests": 1, "runs": 1, "damages": 2},
    "verify swept": {"ingests": 1, "runs": 2, "damages": 1, "fills": 0},
    "settled once": {"ingests": 1, "runs": 2, "damages": 2, "fills": 0},
    "settle fence": _UNDER_A_PASS,
    "lock": {"ingests": 1, "passes": 1, "rewrites": 1},
    "flushed": {**_PRIMARY, "ingests": 1, "burns": 1},
    "timelines": {**_SECOND_REPLICA, "others": 1},
    "stragglers": {"ingests": 2, "runs": 1, "promotions": 1, "fills": 1},
    "source fence": _SECOND_REPLICA,
    "source of a pass": _SECOND_REPLICA_AHEAD,
    "source of a fill": {**_SECOND_REPLICA, "runs": 0, "others": 1},
    "source anew": _SECOND_REPLICA,
    "not before the fork": _SECOND_REPLICA,
    "not after the fork": _SECOND_REPLICA_AHEAD,
    "left after": _DEPARTURE,
    "left compare": {**_DEPARTURE, "departers": 2},
    "mark compare": {**_DEPARTURE, "departers": 2},
    "below the cursor": _DEPARTURE,
    "departure fence": {**_DEPARTURE, "ingests": 2},
    "fence after marks": {**_DEPARTURE, "ingests": 2},
    "unmark departing": {**_DEPARTURE, "ingests": 2},
    "late records": _DEPARTURE,
    "late passes": {**_DEPARTURE, "passes": 2},
    "late repairs": {**_DEPARTURE, "runs": 1},
    "late is not counted": {"ingests": 1, "passes": 1, "damages": 1, "fills": 1, "backs": 1},
    "all": {"ingests": 1, "passes": 1, "departers": 1, "empties": 1},
    "pruned": {**_DEPARTURE, "prunes": 1},
    "later of both": {**_DEPARTURE, "passes": 2, "departures": 0, "deleters": 2},
    "of this history": {**_DEPARTURE, "loads": 1},
    "promote forgets": {**_COLD, "departers": 1, "departures": 1, "fills": 1},
    "reconciled from": {**_DEPARTURE, "runs": 1},
    "foreign rows": {"ingests": 0, "runs": 1, "departers": 1, "loads": 1},
    "all taken out": {**_DEPARTURE, "runs": 2},
    "suspects below the cursor": {**_DEPARTURE, "runs": 1, "backs": 1},
    "changed table": _PARTS,
    "settles itself": _PARTS,
    "claim of a change": {**_COLD, "runs": 1, "attaches": 1, "backs": 1, "fills": 1},
    "compare change": {**_PARTS, "runs": 2, "attaches": 2, "detaches": 1},
    "settled as begun": {**_PARTS, "runs": 2, "attaches": 2, "detaches": 1},
    "noted table": {**_PARTS, "attaches": 2, "detaches": 1},
    "table of a run": {**_PARTS, "attaches": 2, "detaches": 1},
    "table of a fill": {**_COLD, "ingests": 0, "passes": 1, "attaches": 2, "detaches": 1},
    "reset waits": {"ingests": 1, "runs": 1, "poisons": 1},
    "reset by a fill": _DAMAGED,
    "missing stays missing": {"ingests": 1, "runs": 1, "poisons": 1, "promotions": 1},
}
# A snapshot of a primary that shows what is not on its disk yet: of each kind, something is taken back.
NOT_FLUSHED: dict[str, World] = {
    "a row of another": {**_PRIMARY, "ingests": 1, "others": 1},
    "an xact without a row": {**_PRIMARY, "ingests": 1, "burns": 1},
    "a deletion": {**_PRIMARY, "ingests": 1, "passes": 0, "runs": 1, "erases": 1},
}
# The lock is needed by all three who read the table.
WITHOUT_THE_LOCK: dict[str, World] = {
    "a pass": {"ingests": 1, "passes": 1, "rewrites": 1},
    "a build": {**_COLD, "rewrites": 1},
    "a sweep": {"ingests": 1, "runs": 1, "rewrites": 1},
}
