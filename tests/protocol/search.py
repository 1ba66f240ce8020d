"""Exhaustive search over the counting protocol: every interleaving of

    ingests         xact taken at begin, commits in any order, the Redis step may fail
    Postgres        an eraser; rewrites (ALTER TABLE … TYPE, TRUNCATE with a reload); xacts without a row; a crash of a
                    primary that is read itself; a promotion with part of the log, and a second replica that follows;
                    deletions that a trigger writes down, by transactions that may be older than the rows; TRUNCATE;
                    pruning; a row with an xact of another history; a part of the table that is attached, and detached
    the replicas    replay; come back earlier than they were
    the keeper      catch-up passes, runs that repair, a build that may die and be gone on with; departures are resolved by
                    one keeper or two, which may die at any time
    Redis           loses everything, or goes back to an older save, and everybody stays connected; fails over to a replica that
                    may lack the last steps, while the old primary still answers, and may follow and be promoted again; somebody
                    deletes the set, the intake or both, adds the
                    member or removes it by hand, writes a watermark that cannot be, or removes it

In every state in which query would answer (`Scripts.live`) these must hold:

    completeness      a committed row, not erased, whose xact is below the cursor  =>  the member is in the set
    read your write   acknowledged as counted, not erased since; the row was not lost with a primary, and Redis has not lost
                      the member since, by itself or by hand  =>  the member is in the set
    soundness         the member was put there by hand, and nobody has seen a row of it since  =>  it is not in the set
    departure         the last deletion of the member's rows was written down, with an xact below left_through, and no row has
                      come since; none was lost with a primary  =>  the member is not in the set
    attached row      a row of a part that was attached before complete_through, and is there  =>  the member is in the set
    foreign row       a fill or a run has seen a row with an xact of another history, not erased since  =>  the member is
                      in the set

Each rule of the protocol has a name (`rules`); `search(..., without={"fence"})` leaves it out and finds what breaks.

Groups and last days have a search of their own, which says what it covers: `elements`.

What is covered is one member of one counter; beside it stands the rest of the set, as one member with an old row, so that
a set can be deleted as a whole or be changed by one. Not covered:

    - two changes by hand that outweigh each other: a member added for one that was removed leaves the size right
    - the bucket filter of a reconcile (`test_bucket_filter` looks at three members in one bucket, beside departures, later days,
      and groups that are dropped)
    - slices of a pass, the chunks and rounds of a sweep or a fill, batches of departures: for one member each is one step
    - a foreign xact that this history reaches later, or has passed before: it is one that is never reached
    - a script that fails in the middle; a watermark that somebody has lowered; a size or a cursor that somebody writes
    - `complete_through`, but for attached parts; and all that is about time: leases, how long something is waited for, whether
      it ever ends
    - without the rule that a sweep takes out nothing once another table was noted the search finds nothing in what it can look at
      (`test_changed_tables` does)
    - a connection that leads to a replica of Redis; more than two failovers of Redis
    - more than one promotion of a database; a promotion of a primary that is read itself; two builders at once

By hand, with the shortest interleaving that breaks a promise:
`python -m tests.protocol.search ingests=2 erases=1 runs=1 without=fence`
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Set
from typing import NamedTuple

from tests.protocol.actors import Actors
from tests.protocol.damage import Damage
from tests.protocol.postgres import Postgres
from tests.protocol.rules import Rules
from tests.protocol.scripts import Scripts
from tests.protocol.state import ERASES, FOREIGN, PART, START, Left, Redis, Replica, State, genuine, rows
from tests.protocol.telling import as_lines, tell


class Result(NamedTuple):
    """The promise that was broken (None: none in any interleaving), how many states were seen, and how it came to it."""

    broken: str | None
    states: int
    path: list[State]


def search(
    ingests: int = 1,
    runs: int = 0,
    passes: int = 0,
    departers: int = 0,
    deleters: int = 0,
    replicas: int = 1,
    *,
    warm: bool = True,
    is_primary: bool = False,
    without: Set[str] = frozenset(),
    **left: int,
) -> Result:
    """Look at every state that can be reached. `left` is how often what comes from outside may happen (`state.Left`).

    `warm`: the counter is complete at the start. `is_primary`: the keeper reads the primary, which may crash.
    """
    outside = Left(**left)
    by_hand = bool(outside.damages or outside.poisons)
    rules = Rules(frozenset(without))
    postgres = Postgres(rules, is_primary=is_primary)
    has_parts = bool(outside.attaches)
    scripts = Scripts(rules, has_rest=by_hand, has_departures=bool(departers), has_parts=has_parts)
    actors = Actors(rules, postgres, scripts, verifying=bool(by_hand or departers or has_parts))
    damage = Damage(rules, postgres, scripts)

    redis = Redis()
    if warm:
        redis = Redis(rest=by_hand, size=int(by_hand), cursor=1, build=-1, intake_build=-1, water=0)
        if departers:
            redis = redis._replace(left=1)
    start = State(
        histories=((),),
        fork=0,
        next_xact=1,
        replicas=(Replica(),) * replicas,
        redis=redis,
        save=None,
        old=None,
        ingests=(START,) * ingests,
        runs=(START,) * runs,
        passes=(START,) * passes,
        builder=START,
        deleters=(START,) * deleters,
        departers=(START,) * departers,
        left=outside,
    )
    came_from: dict[State, State | None] = {start: None}
    waiting, seen = deque([start]), 1
    while waiting:
        state = waiting.popleft()
        if broken := broken_promise(state, scripts):
            return Result(broken, len(came_from), list(path_to(state, came_from))[::-1])
        for who in (postgres, actors, damage):
            for after in who.nexts(state):
                came_from.setdefault(after, state)
                if len(came_from) > seen:  # it was not there
                    seen += 1
                    waiting.append(after)
    return Result(None, len(came_from), [])


def broken_promise(s: State, scripts: Scripts) -> str | None:
    """Which promise does not hold here."""
    redis = s.redis
    if not scripts.live(redis):
        return None
    assert redis.cursor is not None
    if scripts.has_rest and not redis.rest:
        return "completeness"
    if redis.member:
        if redis.by_hand:
            return "soundness"
        return "departure" if has_left(s) else None
    if redis.foreign and any(writer == FOREIGN for _, writer in rows(s.histories[-1])):
        return "foreign row"
    if any(writer == PART for _, writer in rows(s.histories[-1])):
        attached = max(at for at, (kind, _, _) in enumerate(s.histories[-1]) if kind == "attach")
        if attached < redis.through:
            return "attached row"
    # A cursor of an earlier history says nothing of the rows that are only in the later one.
    claimed = s.histories[-1] if redis.history == len(s.histories) - 1 else s.histories[-1][: s.fork]
    writers = {writer for _, _, writer in claimed}
    for xact, writer in rows(s.histories[-1]):
        if writer in (FOREIGN, PART):
            continue
        if s.ingests[writer] == ("counted",):
            return "read your write"
        if xact < redis.cursor and writer in writers:
            return "completeness"
    return None


def has_left(s: State) -> bool:
    """Whether the member has no row, and the departure of the last one is said to be resolved."""
    log = s.histories[-1]
    if s.redis.left is None or s.redis.history != len(s.histories) - 1 or rows(log):
        return False
    if len(s.histories) > 1 and any(kind == "insert" for kind, _, _ in s.histories[0][s.fork :]):
        return False  # a row that was lost with its primary has no departure: the next reconcile takes its member out
    for at in range(len(log) - 1, -1, -1):
        kind, xact, _ = log[at]
        if kind == "detach":
            return False  # no departure: the next reconcile takes the member out
        if kind in ERASES and (kind == "empty" or rows(log[:at])):
            return kind != "erase" and max(xact, genuine(log[:at])) < s.redis.left
    return False


def path_to(state: State | None, came_from: dict[State, State | None]) -> Iterator[State]:
    while state is not None:
        yield state
        state = came_from[state]


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    left_out = {rule for rule in words.pop("without", "").split(",") if rule}
    result = search(**{name: int(number) for name, number in words.items()}, without=left_out)  # type: ignore[arg-type]
    print(f"{f'BROKEN: {result.broken}' if result.broken else 'holds'} in {result.states:,} states")
    print(*as_lines(tell(result.path)), sep="\n")
