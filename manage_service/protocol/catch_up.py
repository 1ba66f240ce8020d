"""Catch up: add the members of rows that were committed since the cursor, and move the cursor to the horizon.

Why the order is the proof:

1. One snapshot gives the horizon and the rows. Every row with an xact below the horizon is in it, or will never exist.
2. The atomic step that ingest uses adds their members and removes their marks. It also raises the watermark to
   what the pass is about to claim. So a sweep on a replica that came back earlier, between this and step 3, has to
   wait.
3. The pass sets the cursor on the same connection (`stores.ConnectsOnce`), and only if the counter is still as it was at
   the start. Redis cannot have lost the members of step 2 by then, unless the cursor or the connection is lost, too.
4. If the table itself becomes another one (ATTACH, DETACH, TRUNCATE, a rewrite, ALTER TYPE, labels of an enum), rows
   appear and disappear without an xact. A pass that sees another fingerprint notes it. Then `complete_through` stands
   still until a reconcile or a fill that began after it has ended. A change that was undone before a pass saw it has
   changed nothing: the cursor has not moved meanwhile, and a sweep removes no member by the answer of a table that is
   not the noted one (`sweep`).
5. Most passes have nothing to read. Those over the counters of one table share a snapshot, and their cursors move in one
   round trip (`catch_up_at_rest`). The proof for each is the same: its state was read before the snapshot, and it has no
   row to read.

A keeper that dies anywhere in between leaves members that have a row, and an older cursor: the next pass repeats. Two
passes at the same time do the same work twice, and one of them moves the cursor.

Ids or times cannot replace the horizon: a row gets its id before the commit, so rows may appear below a position that
was already passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache

from psycopg2.errors import LockNotAvailable
from redis import Redis

from manage_service.replica.snapshots import NotOnDisk, Replica, Shown, Snapshot
from manage_service.replica.sql import described_by
from shared_models.declarations import Counter, Storage
from shared_models.protocol import states, steps
from shared_models.protocol.elements import encode_all
from shared_models.protocol.states import State

# About how many rows one pass reads: a fraction of a second of work. If the pass fails, its members stay.
PASS_ROWS = 50_000
CHANGED = "the counter was changed meanwhile"
LOCKED = "another session holds a lock on the table, to change or empty it"


@dataclass(frozen=True, slots=True)
class Memory:
    """Rows above the cursor that earlier passes have added. For the same Redis connection, build and source only."""

    build: str
    source: str
    shown: Shown


@dataclass(frozen=True, slots=True)
class Pass:
    """The result of a pass. `behind` is the reason why it could not advance; empty if it did."""

    read_members: int = 0
    added: int = 0
    finished: bool = True
    behind: str = ""
    failed: bool = False  # Postgres refused a statement
    memory: Memory | None = None  # for the next pass


def catch_up(
    counter: Counter,
    replica: Replica,
    redis: Redis,
    memory: Memory | None = None,
    between: Callable[[], None] = lambda: None,
) -> Pass:
    """One pass over one counter with a cursor; a cold one is left alone. Raises psycopg2.Error, redis.RedisError.

    `redis` must be a client of `stores.connect_for_passes`. `finished` is false if more rows wait for another pass.
    `between` is called between two chunks of rows, to renew leases: a transaction may be large.
    """
    state = states.read_state(redis, counter.name)
    if state.lost or state.cursor is None:
        return Pass(behind=f"the counter is cold: {state.why_cold}")
    shown = shown_before(memory, state)
    # Before the snapshot: see `snapshots`.
    showing = replica.ended_now(*((state.cursor, ()) if shown is None else (shown.xmax, shown.unended)))
    try:
        with replica.snapshot(counter) as snapshot:
            return pass_over(counter, state, shown, showing, snapshot, redis, between)
    except LockNotAvailable:
        return Pass(behind=LOCKED)
    except NotOnDisk as error:
        return Pass(behind=str(error))


def catch_up_at_rest(
    counters: Sequence[Counter],
    found: Mapping[str, State],
    memories: Mapping[str, Memory],
    replica: Replica,
    redis: Redis,
) -> dict[str, Pass]:
    """One pass over each of these counters (of one table) that has nothing to read; the others need `catch_up`.

    `found`: their states, read before this, over `redis`. Memories do not change, because the passes add nothing. Raises
    psycopg2.Error, redis.RedisError.
    """
    complete = {each.name: found[each.name] for each in counters if not found[each.name].lost}
    if not complete:
        return {}
    try:
        with replica.snapshot(counters[0]) as snapshot:
            # Most counters ask about the same rows, and some have the same columns.
            has_recent = cache(lambda since, shown: snapshot.has_recent(counters[0], since, shown))
            fingerprint = cache(snapshot.fingerprint_as)
            resting = {
                counter.name: state
                for counter in counters
                if (state := complete.get(counter.name))
                and (state.source, state.gap) == (snapshot.source, 0)
                and state.cursor is not None
                and state.cursor <= snapshot.horizon
                and not has_recent(state.cursor, shown_before(memories.get(counter.name), state))
                and state.fingerprint == fingerprint(described_by(counter))
            }
            moves = {name: (state, snapshot.horizon, through(state, snapshot)) for name, state in resting.items()}
            advanced = steps.advance_all(redis, moves)
    except (LockNotAvailable, NotOnDisk) as error:
        behind = str(error) if isinstance(error, NotOnDisk) else LOCKED
        return dict.fromkeys(complete, Pass(behind=behind))
    return {
        name: Pass(behind=state.withheld if moved else CHANGED)
        for (name, state), moved in zip(resting.items(), advanced, strict=True)
    }


def shown_before(memory: Memory | None, state: State) -> Shown | None:
    """The rows above the cursor that earlier passes have added."""
    return memory.shown if memory is not None and (memory.build, memory.source) == (state.build, state.source) else None


def through(state: State, snapshot: Snapshot) -> datetime | None:
    """The complete_through after a pass that has read all of a snapshot; None if it stands still."""
    if state.changed_at != state.settled:
        return None
    # A replica that came back earlier knows less, but counted members stay counted.
    return max(snapshot.committed_through, state.complete_through or snapshot.committed_through)


def pass_over(
    counter: Counter,
    state: State,
    shown: Shown | None,
    showing: Shown | None,
    snapshot: Snapshot,
    redis: Redis,
    between: Callable[[], None],
) -> Pass:
    """The pass, in its snapshot. `shown`: rows that earlier passes have added; `showing`: rows added after this one."""
    cursor_before = state.cursor
    assert cursor_before is not None  # noqa: S101  (for the type checker)
    if snapshot.source != state.source:
        return Pass(behind=f"the cursor belongs to {state.source}, the replica shows {snapshot.source}")
    if snapshot.horizon < cursor_before:
        # It crashed and came back earlier, or this is another, slower replica. The keeper never moves a cursor back.
        return Pass(behind=f"the replica shows xact {snapshot.horizon} at most, the cursor is at {cursor_before}")
    is_gone = state.count == 0 and state.gap < 0
    if (is_gone or (state.gap and counter.storage is not Storage.SET)) and steps.make_cold(redis, counter.name, state):
        # Cheaper than the reconcile that settles any other gap of a set: there is nothing left to compare with.
        return Pass(behind="its keys were deleted, or changed: the counter is cold, and is built")
    if snapshot.fingerprint != state.fingerprint:
        changed_at = steps.note_table(redis, counter.name, snapshot.fingerprint, snapshot.xmax - 1, snapshot.source)
        state = replace(state, fingerprint=snapshot.fingerprint, changed_at=changed_at)
    # Cut at an xact: everything below the cut is complete, and the next pass continues from there.
    cut = snapshot.slice_end(counter, cursor_before, PASS_ROWS)
    cursor = snapshot.horizon if cut is None else cut
    # A sweep has to see this: complete_through also claims rows above the horizon, and no later pass may read them again.
    claim = cursor - 1 if cut is not None else snapshot.xmax - 1
    read = added = 0
    # Without a cut this also reads above the horizon: a transaction that stays open holds back the cursor, but
    # must not keep later rows out of the count. Below the horizon it leaves out no row: the cursor relies on that.
    for values in snapshot.read_recent(counter, cursor_before, cut, shown):
        read += len(values)
        members = encode_all(counter, list(values))
        try:
            added += steps.record(redis, {counter.name: members}, claim, snapshot.source, horizon=snapshot.horizon)
        except steps.TooLate:
            # Another pass has moved the cursor, and members of this snapshot may have left since.
            return Pass(behind=CHANGED)
        except steps.TooManyGroups as error:
            # The cursor stays. The counter lacks members, so it must not be shown. A build says when there is room again.
            steps.make_cold(redis, counter.name, state)
            return Pass(behind=str(error), failed=True)
        between()
    complete_through = through(state, snapshot) if cut is None else None
    advanced = steps.advance(redis, counter.name, state, cursor, complete_through)
    return Pass(
        read,
        added,
        finished=cut is None,
        behind=state.withheld if advanced else CHANGED,
        memory=Memory(state.build, state.source, showing) if showing and cut is None and advanced else None,
    )
