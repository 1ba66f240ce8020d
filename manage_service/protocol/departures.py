"""Departures: remove the members of rows that were deleted or changed, within seconds.

Triggers note which members a statement may have taken a row from, with its xact (`rollcall_triggers.departure`). That
is a hint: before the keeper removes a member, it asks the table. A lost hint costs time until the next reconcile, but
never makes a count wrong.

Why the order is the proof that everything below `left_through` has left, and that a member with a row never leaves:

1. Departures are read below the cursor, in a snapshot that shows everything below it. After that nobody can add a
   member for an older row: a record with an xact below the cursor, and a pass or a run with a horizon below
   it, add nothing (record.lua). So a member that is not in the set now, or leaves in step 4, comes back only for a
   newer row, whose own departure comes later.
2. Members that have a row in this snapshot are done: if they lose that row, too, that is another departure. The others
   are marked in `departing`, each with the token of this batch. If another keeper begins a batch, its token replaces
   this one.
3. Fence. The watermark and the cursor are read once, after the last mark. (If they were read again at each try, they
   would move ahead for as long as ingest writes.) The table is asked in a snapshot that shows everything up to them: see
   `sweep`.
4. Members that still have no row, and still carry the mark, are removed. If a mark is missing, a record removed it. In a
   counter with last_seen, the member's day is lowered to that of its last row. A record of an earlier day in between leaves
   another mark, because it does not prove that the marked day has a row: then the batch begins again. All the
   time the table is the one that the counter's state names (see `sweep`). Otherwise the batch begins again at another
   tick.
5. Only now `left_through` moves, if it and the token are still those of this batch, in the history of Redis in which it began:
   after a failover, removed members may be back (`catch_up`). If a keeper dies, or loses its
   connection, `left_through` stays, and the next keeper does the batch again, with marks and a fence of its own.

A departure without a member means "all": TRUNCATE, a statement that removed very many members, pruned departures.
Then `left_through` is removed, and the schedule asks at once for a reconcile, which sets it again. A fill also removes
it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from secrets import token_hex

from redis import Redis

from manage_service.protocol.freshness import CounterWasLost
from manage_service.protocol.progress import Progress, Steps
from manage_service.protocol.sweep import CHUNK_ASKED, ask_behind_fence, rowless
from manage_service.replica.snapshots import Replica, Snapshot
from shared_models import triggers
from shared_models.declarations import Counter
from shared_models.protocol import elements, states, steps
from shared_models.protocol.elements import encode_all


def departing(counters: Sequence[Counter], replica: Replica, redis: Redis) -> list[Counter]:
    """Those of these parts, which one server holds, that have departures beyond `left_through`, for `resolve_departures`.

    The others have no departures below the cursor. One snapshot shows this for all of them (step 1 of the proof), and their
    `left_through` moves. Raises psycopg2.Error, redis.RedisError.
    """
    found = states.read_states(redis, [counter.name for counter in counters])
    resolved = [each for each in counters if found[each.name].left_through is not None]
    since: dict[str, int] = {}
    for each in resolved:  # parts of the same counter share their departures
        key, left_through = triggers.key(each), found[each.name].left_through or 0
        since[key] = min(left_through, since.get(key, left_through))
    with replica.snapshot() as snapshot:
        have = snapshot.departing(since)
    quiet = {each.name: found[each.name] for each in resolved if triggers.key(each) not in have}
    steps.resolve_all(
        redis,
        {
            name: state
            for name, state in quiet.items()
            if not state.lost
            and state.source == snapshot.source
            and state.cursor is not None
            and state.left_through != state.cursor <= snapshot.horizon
        },
    )
    return [each for each in resolved if triggers.key(each) in have]


class AskAgain(Exception):
    """A record of an earlier day came between the mark and the sweep: ask for the last day once more."""


def resolve_departures(
    counter: Counter, replica: Replica, redis: Redis, swept: Callable[[list[bytes]], None] = lambda members: None
) -> Steps:
    """Batches of departures, until there are none below the cursor. Gives the members that they remove to `swept`.

    There has to be a table of departures (`Snapshot.has_departures`). It never waits: a step that cannot continue says
    so. `redis` must be a client of `stores.connect_for_passes`. Raises psycopg2.Error, redis.RedisError.
    """
    while (yield from resolve_batch(counter, replica, redis, swept)):
        pass


def resolve_batch(
    counter: Counter, replica: Replica, redis: Redis, swept: Callable[[list[bytes]], None]
) -> Generator[Progress, None, bool]:
    """One batch, if there is one; returns whether there are more below the cursor."""
    state = states.read_state(redis, counter.name)
    if state.lost or state.cursor is None or state.left_through is None:
        return False
    with replica.snapshot(counter) as snapshot:
        if snapshot.source != state.source or snapshot.horizon < state.cursor:
            return False
        if snapshot.fingerprint != state.fingerprint:
            return False  # the next pass notes it
        until, departed = read_departed(counter, state.left_through, state.cursor, snapshot)
        if departed is None:
            steps.resolve(redis, counter.name, state, "", None)
            return False
        leaving = rowless(counter, departed, snapshot)
    token = ""
    if leaving:
        token = token_hex(8)
        steps.begin_departing(redis, counter.name, token)
        if not steps.mark_departing(redis, counter.name, token, leaving):
            return False
        yield Progress("mark", len(leaving))
        try:
            yield from take_out(counter, token, leaving, replica, redis, swept)
        except (CounterWasLost, steps.TableChanged, AskAgain):
            return False  # the keeper builds the counter, or the batch begins again
    resolved = until == state.left_through or steps.resolve(redis, counter.name, state, token, until)
    return resolved and until < state.cursor


def read_departed(part: Counter, since: int, below: int, snapshot: Snapshot) -> tuple[int, list[bytes] | None]:
    """A batch of departures of one part: the xact before which it ends, and its elements; None: all."""
    until, departed = snapshot.once(
        ("departed", part.whole, since, below), lambda: snapshot.departed(part, since, below)
    )
    if departed is None:
        return until, None
    mine = (each for each in encode_all(part, departed) if elements.shard_of(part, each) == part.shard)
    return until, list(mine)


def take_out(
    counter: Counter,
    token: str,
    leaving: Mapping[bytes, bytes],
    replica: Replica,
    redis: Redis,
    swept: Callable[[list[bytes]], None],
) -> Steps:
    """Fence and sweep for the marked members. Raises CounterWasLost, steps.TableChanged,
    AskAgain."""
    fence_state = states.read_state(redis, counter.name)
    again = False
    for chunk in steps.chunks(list(leaving), CHUNK_ASKED):
        extra = yield from ask_behind_fence(counter, fence_state, list(chunk), replica, redis)
        gone, some_again = steps.sweep(redis, counter.name, token, extra, fence_state.changed_at, departing=True)
        swept(gone)
        again = again or some_again
        yield Progress("sweep")
    if again:
        raise AskAgain
