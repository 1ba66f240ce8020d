"""Notes that a table has become another one, and says which changes settle themselves.

Rows come and leave with the parts of a table, without an xact. So a change withholds `complete_through` until a fill or a
reconcile that began after it has ended (`catch_up`, 4.). For two changes, which come every month, nothing has to be read again:

- An **empty** part has come: a partition that was made ahead. The snapshot shows that it was attached, and nobody else writes to a
  table while it is attached: so the snapshot shows every row that it brought, and there is none. The snapshot also shows
  every row below the cursor. So the part's rows, if it gets some, are above the cursor, and catch-up finds them.
- A **retired** part has left (`ingest_service.retaining`). Rows that leave withdraw nothing from what complete_through says:
  that concerns rows that are there. Its members are noted as departures, after it was detached.

The change has a new name all the same. So a sweep or a run that has asked the earlier table is void, and if the part is
attached again, with rows, that is a change that does not settle itself.
"""

from __future__ import annotations

from dataclasses import replace

from redis import Redis

from manage_service.replica.snapshots import Snapshot
from shared_models.declarations import Counter
from shared_models.protocol import keys, states, steps
from shared_models.protocol.states import State


def note_change(part: Counter, state: State, snapshot: Snapshot, redis: Redis) -> State:
    """The state, with the table of this snapshot, which is not the one that the state names. Raises psycopg2.Error,
    redis.RedisError."""
    (known,) = states.read_fields(redis, keys.of_counter(part.name).state, "parts")
    parts = snapshot.once(("parts", part.whole), lambda: snapshot.parts(part))
    # The parts are those of the change that the state names, or Redis settles nothing: each change has a name of its own.
    settles = (
        known is not None
        and state.cursor is not None
        and snapshot.horizon >= state.cursor
        and snapshot.once(("settles", part.whole, known), lambda: settles_itself(known.decode(), parts, snapshot))
    )
    as_since = state.changed_at if settles else ""
    at_most = snapshot.xmax - 1
    changed_at, settled = steps.note_table(
        redis, part.name, snapshot.fingerprint, at_most, snapshot.source, parts, as_since
    )
    return replace(state, fingerprint=snapshot.fingerprint, changed_at=changed_at, settled=settled)


def settles_itself(before: str, now: str, snapshot: Snapshot) -> bool:
    """Whether only retired parts have left and empty ones have come."""
    shape, was = read_parts(before)
    shape_now, is_now = read_parts(now)
    if shape != shape_now or any(is_now[part] != file for part, file in was.items() if part in is_now):
        return False
    left, came = was.keys() - is_now.keys(), is_now.keys() - was.keys()
    return (not left or snapshot.are_retired(left)) and (not came or snapshot.are_empty(came))


def read_parts(text: str) -> tuple[str, dict[int, str]]:
    """The hash of the columns, and the file of each part by its oid."""
    shape, *parts = text.split()
    return shape, {int(oid): file for oid, _, file in (each.partition("/") for each in parts)}
