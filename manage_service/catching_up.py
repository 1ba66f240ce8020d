"""Catch up: add the members of rows that were committed since the cursor, and move the cursor to the horizon.

Why the order is the proof:

1. One snapshot gives the horizon and the rows. Rows with an xact below the horizon are all in it, or will never be.
2. Their members are added, and taken off `suspects`, by the same atomic step that ingest uses. It raises the watermark
   to what the pass is about to claim: a sweep on a replica that came back earlier, between this and step 3, has to wait.
3. On the same connection (`stores.ConnectsOnce`), and only if the counter is still as it was in the beginning, the cursor
   is set. Redis cannot have lost the members of step 2 by then without the cursor's having gone, or the connection.

A keeper that dies anywhere in between leaves members that have a row, and an older cursor: the next pass repeats.
Two passes at once do the same work twice, and one of them moves the cursor.

Never ids or times instead of the horizon: an id is taken before its commit, and rows appear below a mark already passed.
"""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis

from manage_service.replica import Replica
from shared_models import rolls, states
from shared_models.counters import Counter
from shared_models.members import encode_all

# About how many rows one pass takes on: a fraction of a second of work, which is not lost when the pass is.
PASS_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass did. `behind` is the reason why it could not advance; empty when it did."""

    read_members: int = 0
    added: int = 0
    finished: bool = True
    behind: str = ""


def catch_up(counter: Counter, replica: Replica, redis: Redis) -> Pass:
    """One pass over one counter with a cursor; a cold one is left alone. Raises psycopg2.Error, redis.RedisError.

    `redis` must be a client of `stores.connect_for_passes`. `finished` is false where more rows wait for another pass.
    """
    state = states.read_state(redis, counter.name)
    if state.lost or state.cursor is None:
        return Pass(behind=f"the counter is cold: {state.why_cold}")
    with replica.snapshot() as snapshot:
        if snapshot.source != state.source:
            return Pass(behind=f"the cursor belongs to {state.source}, the replica shows {snapshot.source}")
        if snapshot.horizon < state.cursor:
            # It crashed and came back earlier, or this is another, slower one. Nothing below the cursor is ever undone.
            return Pass(behind=f"the replica shows xact {snapshot.horizon} at most, the cursor is at {state.cursor}")
        if state.count == 0 and state.gap < 0 and rolls.make_cold(redis, counter.name, state):
            # Cheaper than the reconcile that settles any other gap: there is nothing left to compare with.
            return Pass(behind="its set was deleted: the counter is cold, and gets built")
        # Cut at an xact: what is below the cut is complete, and the next pass goes on from there.
        cut = snapshot.slice_end(counter, state.cursor, PASS_ROWS)
        read = added = 0
        cursor = snapshot.horizon if cut is None else cut
        # Without a cut this reads above the horizon too: a transaction left open for long must not keep later rows
        # out of the count, though it keeps the cursor where it is.
        for values in snapshot.read_recent(counter, state.cursor, cut):
            read += len(values)
            members = encode_all(values, len(counter.fields))
            added += rolls.record(redis, {counter.name: members}, xact=cursor - 1, source=snapshot.source)
    through = None
    if cut is None:
        # A replica that came back earlier knows less, but what was counted stays counted.
        through = max(snapshot.committed_through, state.complete_through or snapshot.committed_through)
    advanced = rolls.advance(redis, counter.name, state, cursor, through)
    return Pass(read, added, finished=cut is None, behind="" if advanced else "the counter was changed meanwhile")
