"""Build: complete a counter that has no cursor, or whose cursor belongs to another history of the database.

Why the order is the proof:

1. A snapshot gives the horizon. It is noted in the counter's `fill`, with a new token. The same step raises the
   watermark to what the fill is about to claim, as a pass does: `complete_through` also claims rows above the horizon. So a sweep
   on a replica that is behind has to wait.
2. Every distinct member of the table is added, chunk by chunk in the order of the index. Each chunk comes from a
   snapshot of its own that shows at least what the first one showed: its lsn is not lower (a replica that crashed may
   come back earlier). It is of the same table: its fingerprint is the same (a part that is detached while its chunk is read
   may come back). Otherwise the fill begins again. A row from below the horizon is in the table for the whole time, and
   so in its chunk, or it was deleted.
3. One atomic step writes each chunk and the fill's position. If Redis loses one, it loses both. Each step, and the last one,
   demands the position that the step before it has written. So a position proves that Redis has all chunks up to it, whatever
   history Redis has (see `catch_up`). After a crash of the keeper, a restart of Redis from an older save, or a failover, the fill
   continues from the position in Redis. If something
   else has changed the set or the intake meanwhile, members of the fill may be lost: it ends, and begins again.
4. If the fill with this token is still the one in progress, one atomic step sets the cursor to the horizon and removes
   the fill.

Until then a counter without a cursor is cold. A counter whose source changed (failover, restore) keeps its answer:
every row from before `complete_through` is still counted. Its catch-up waits for the new cursor.

Members that were in the set before a build stay: ingest may have acknowledged them a moment ago. The first reconcile
removes those without a row. The schedule runs it at once, because the counter has never been verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from secrets import token_hex

import structlog
from redis import Redis

from manage_service.protocol.groups import forget_generations
from manage_service.protocol.in_step import read_chunk
from manage_service.protocol.progress import Progress, Steps
from manage_service.replica.snapshots import Replica, Snapshot
from shared_models.declarations import Counter
from shared_models.protocol import keys, states, steps
from shared_models.protocol.moments import to_microseconds
from shared_models.protocol.states import State
from shared_models.protocol.timeline import split

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Fill:
    """The fill in progress, as it is in Redis."""

    token: str
    source: str
    lsn: int
    fingerprint: str
    position: bytes
    read: int
    expected: int
    jumping: bool


def needs_building(state: State, source: str) -> bool:
    """Whether the counter has no cursor in this history of the database.

    If a replica shows an earlier timeline than the counter's, it has not followed yet, and the keeper waits for it. A
    fill from it would claim rows that the later timeline has lost.
    """
    if state.lost or state.source == source:
        return state.lost
    database, timeline = split(source)
    own_database, own_timeline = split(state.source)
    return database != own_database or timeline > own_timeline


def build(counter: Counter, replica: Replica, redis: Redis) -> Steps:
    """Complete the counter, or continue where another keeper stopped. Raises psycopg2.Error, redis.RedisError,
    steps.TooManyGroups.

    Ends early, without an error, if another fill of the same counter has begun since.
    """
    removed = states.remove_misfits(redis, counter.name)
    if removed:
        log.error("build.removed_misfits", counter=counter.name, keys=removed)
    fill = read_fill(counter, redis)
    if fill is None:
        with replica.snapshot(counter) as snapshot:
            fill = begin_fill(counter, snapshot, redis)
    position, read = fill.position, fill.read
    while True:
        with replica.snapshot(counter) as snapshot:
            behind = snapshot.source == fill.source and snapshot.lsn < fill.lsn
            if not behind:
                if (snapshot.source, snapshot.fingerprint) != (fill.source, fill.fingerprint):
                    fill = begin_fill(counter, snapshot, redis)
                    position, read = fill.position, fill.read
                    continue
                chunk = read_chunk(counter, position, snapshot, jumping=fill.jumping)
        if behind:
            yield Progress(
                "build", read, fill.expected, waiting="the replica came back at an earlier state; it has to catch up"
            )
            continue
        if chunk is None:
            steps.promote(redis, counter.name, fill.token, position)
            forget_generations(counter, redis)
            return
        try:
            if not steps.fill(redis, counter.name, fill.token, position, chunk.position, chunk.elements):
                return
        except steps.TooManyGroups:
            # The next fill begins with no groups: there may be room then, and the groups of this one may have left.
            redis.unlink(keys.of_counter(counter.name).fill)
            raise
        position, read = chunk.position, read + len(chunk.elements)
        yield Progress("build", read, max(read, fill.expected))


def begin_fill(counter: Counter, snapshot: Snapshot, redis: Redis) -> Fill:
    """Note a new fill that begins with this snapshot. It replaces one that was in progress."""
    snapshot.check(counter)
    estimate = snapshot.estimate(counter)
    fill = Fill(
        token=token_hex(8),
        source=snapshot.source,
        lsn=snapshot.lsn,
        fingerprint=snapshot.fingerprint,
        position=b"",
        read=0,
        expected=0 if estimate is None else estimate.members // counter.shards,
        jumping=estimate is not None and estimate.jumping_pays,
    )
    parts = snapshot.once(("parts", counter.whole), lambda: snapshot.parts(counter))
    changed_at, _ = steps.note_table(
        redis, counter.name, snapshot.fingerprint, snapshot.xmax - 1, snapshot.source, parts
    )
    steps.begin(
        redis,
        counter.name,
        fill.token,
        snapshot.horizon,
        fill.source,
        {
            "lsn": fill.lsn,
            "fingerprint": fill.fingerprint,
            "changed_at": changed_at,
            "complete_through": to_microseconds(snapshot.committed_through),
            "expected": fill.expected,
            "jumping": int(fill.jumping),
        },
        claim=snapshot.xmax - 1,
    )
    return fill


def read_fill(counter: Counter, redis: Redis) -> Fill | None:
    """The fill in progress in Redis; None if there is none, or if it cannot be parsed."""
    names = ("token", "source", "lsn", "fingerprint", "position", "read", "expected", "jumping")
    fields = states.read_fields(redis, keys.of_counter(counter.name).fill, *names)
    token, source, lsn, fingerprint, position, read, expected, jumping = fields
    if token is None or source is None or lsn is None or expected is None:
        return None
    try:
        return Fill(
            token=token.decode(),
            source=source.decode(),
            lsn=int(lsn),
            fingerprint=(fingerprint or b"").decode(),
            position=position or b"",
            read=int(read or 0),
            expected=int(expected),
            jumping=jumping == b"1",
        )
    except ValueError:
        return None
