"""Sweep: find the members without a row, and remove them. The second half of a reconcile, in rounds of mark, fence, sweep.

Why the order is the proof that a member with a row never leaves:

1. Mark. Members of the set that have no row on the replica are added to `suspects`, with a token of this sweep only.
   The replica shows everything below the cursor: a row that was deleted below it must not speak for its member. They
   may have a row that the replica does not show yet, or get one at any moment. The table is not asked about members
   that have a row by the bucket filter.
2. Fence. The watermark and the cursor are read *after* the marks were made. A process that recorded a member before its
   mark has raised the watermark by then (one atomic step). One that records it later removes the mark (the same
   step).
3. Ask again, in snapshots that show every transaction up to that watermark, and everything below that cursor. A member
   that was recorded before its mark now shows its row, if it still has one. The cursor, and the xacts of passes in
   the watermark, matter because a replica may come back at an earlier state, without rows that passes relied on.
4. Remove those that still have no row, each only if it still carries this token (one atomic step).
5. The table that is asked in step 3 is the one that the counter's state names, and in step 4 no process has seen another
   one since the fence was read. Otherwise a member whose row is in a part that was detached for a moment would leave,
   and nothing would notice.

A round marks ROUND_MEMBERS at most, so that `suspects` stays small however many rows were erased. The next round
continues the same scan of the set. The scan returns every member that is in the set for the whole time at least once,
also if other members leave.

Another run at the same time can only remove marks of this one, so that it removes fewer members. Batches of
departures have marks of their own, and may remove members during a run: see `departures`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import timedelta
from secrets import token_hex

from redis import Redis

from manage_service.protocol.bucket_filter import BucketFilter
from manage_service.protocol.canonical import IS_CANONICAL, is_date
from manage_service.protocol.freshness import why_stale
from manage_service.protocol.progress import Progress
from manage_service.replica.snapshots import Replica, Snapshot
from shared_models.declarations import Counter
from shared_models.protocol import elements, keys, states, steps, storages, timeline
from shared_models.protocol.members import Values
from shared_models.protocol.states import State

# How many members one question to the replica names. The answer takes 20 to 40 ms.
CHUNK_ASKED = 5_000
# How many members one round marks: about 5 MB of Redis' memory, and one wait for the replica.
ROUND_MEMBERS = 50_000
# How many members of the set one step reads, if it does not ask the table about them: 20 to 30 ms.
CHUNK_FILTERED = 25_000
# The keeper's clock says when it set a watermark again, the primary's clock when a row was committed. Synchronised
# clocks differ by less than this.
RESET_SLACK = timedelta(seconds=10)


def sweep(
    counter: Counter,
    replica: Replica,
    redis: Redis,
    bucket_filter: BucketFilter | None = None,
    *,
    take_out: bool,
    strict: bool = False,
    found: Callable[[list[bytes]], None],
    expected: int,
    swept_before: int = 0,
) -> Generator[Progress, None, bool]:
    """Find extra members, give them to `found`, and remove them unless `take_out` is off; returns whether it removed all
    of them.

    A step that waits for the replica says so; the caller limits the time. `redis` must be a
    client of `stores.connect_for_passes`. `bucket_filter`: the members of the table, if known. `expected`: about how many
    members the set has, for the progress. `swept_before`: how many members sweeps had removed before the filter was
    filled. `strict` is for a run that corrects the size: a member without a row that it could not remove, because its
    mark was missing, may still be there. Raises CounterWasLost, steps.TableChanged, steps.SetChanged (if
    strict), psycopg2.Error, redis.RedisError.
    """
    # Made here, not taken from the run: two processes may execute the same run, if one of them was stopped for
    # longer than its lease. They must not sweep with each other's marks.
    token = token_hex(8)
    forget_marks(counter, redis)
    marked: list[bytes] = []
    all_gone = True
    for progress, suspected in find_suspects(counter, replica, redis, bucket_filter, expected, swept_before):
        steps.mark(redis, counter.name, token, suspected)
        marked += suspected
        # A step of its own: between marking and sweeping, the caller makes sure that it still holds its lease.
        yield progress
        if len(marked) >= ROUND_MEMBERS:
            gone = yield from sweep_round(
                counter, token, marked, replica, redis, take_out=take_out, strict=strict, found=found
            )
            all_gone, marked = all_gone and gone, []
    gone = yield from sweep_round(counter, token, marked, replica, redis, take_out=take_out, strict=strict, found=found)
    return all_gone and gone


def sweep_round(
    counter: Counter,
    token: str,
    marked: list[bytes],
    replica: Replica,
    redis: Redis,
    *,
    take_out: bool,
    strict: bool,
    found: Callable[[list[bytes]], None],
) -> Generator[Progress, None, bool]:
    """Fence and sweep for marked members; returns whether all members without a row were removed."""
    state = states.read_state(redis, counter.name)
    all_gone = True
    for chunk in steps.chunks(marked, CHUNK_ASKED):
        extra = yield from ask_behind_fence(counter, state, list(chunk), replica, redis)
        if take_out:
            gone, _ = steps.sweep(redis, counter.name, token, extra, state.changed_at)
            found(gone)
            all_gone = all_gone and len(gone) == len(extra)
            if strict and not all_gone:
                raise steps.SetChanged(f"members of {counter.name} came back, or another run removed their marks")
        else:
            found(still_marked(counter, redis, token, list(extra)))
        steps.unmark(redis, counter.name, chunk)
        yield Progress("sweep")
    return all_gone


def ask_behind_fence(
    counter: Counter, state: State, members: list[bytes], replica: Replica, redis: Redis
) -> Generator[Progress, None, dict[bytes, bytes]]:
    """Those of these members that no row has, each with what replaces it: see `rowless`. It asks in a snapshot that shows
    everything that was acknowledged or relied on, as `state` says.

    Each step says why it waits. Raises CounterWasLost, steps.TableChanged.
    """
    while True:
        with replica.snapshot(counter) as snapshot:
            reason = fence(snapshot, state)
            if reason is None:
                if snapshot.fingerprint != state.fingerprint:
                    raise steps.TableChanged(counter.name)
                return rowless(counter, members, snapshot)
        yield Progress("fence", waiting=reason)
        state = with_new_watermark(counter, state, redis)


def with_new_watermark(counter: Counter, state: State, redis: Redis) -> State:
    """The state, with the watermark of now if the keeper has set it again since: the one that was read is missing, or no replica
    will ever show it.

    It proves the same: what was acknowledged before it was set again was committed before that moment, and the fence waits
    until the replica shows commits from after it.
    """
    now = states.read_state(redis, counter.name)
    if now.watermark_reset_at in (None, state.watermark_reset_at):
        return state
    return replace(
        state,
        watermark=now.watermark,
        watermark_source=now.watermark_source,
        watermark_reset_at=now.watermark_reset_at,
    )


def forget_marks(counter: Counter, redis: Redis) -> None:
    """Remove the marks of a run that died or was stopped. Losing a mark is always safe."""
    redis.unlink(keys.of_counter(counter.name).suspects)


def find_suspects(
    counter: Counter,
    replica: Replica,
    redis: Redis,
    bucket_filter: BucketFilter | None,
    expected: int,
    swept_before: int,
) -> Iterator[tuple[Progress, list[bytes]]]:
    """Read every member of the set; each step gives the members without a row on the replica."""
    at, state = keys.of_counter(counter.name), states.read_state(redis, counter.name)
    read, scans, step = 0, 1, CHUNK_ASKED
    if bucket_filter is not None:
        scans, step = 2, CHUNK_FILTERED
        for members in storages.scan(redis, at, step):
            bucket_filter.take_out(members)
            read += len(members)
            yield Progress("extra", read, max(read, scans * expected)), []
        # A member that departures removed meanwhile is still in the filter as a member of the set, and would hide an extra
        # one. Unless the filter was told of each, the table is asked about every member.
        if states.read_state(redis, counter.name).swept != swept_before + bucket_filter.swept:
            bucket_filter = None
        elif bucket_filter.even:
            return
    asked: list[bytes] = []
    for members in storages.scan(redis, at, step):
        asked += members if bucket_filter is None else bucket_filter.crowded(members)
        read += len(members)
        progress = Progress("extra", read, max(read, scans * expected))
        while len(asked) >= CHUNK_ASKED:
            yield from ask_rowless(counter, asked[:CHUNK_ASKED], state, replica, progress)
            asked = asked[CHUNK_ASKED:]
        yield progress, []
    yield from ask_rowless(counter, asked, state, replica, Progress("mark", read, read))


def ask_rowless(
    counter: Counter, members: list[bytes], state: State, replica: Replica, progress: Progress
) -> Iterator[tuple[Progress, list[bytes]]]:
    """A step with the members without a row on the replica. Until it shows everything below the cursor of `state`, steps that wait.

    An earlier replica may show a row that was deleted below that cursor. Then its member would stay, and the run would say that
    all departures below the cursor are resolved. Raises CounterWasLost.
    """
    while members:
        with replica.snapshot(counter) as snapshot:
            behind = why_stale(snapshot, state)
            suspected = [] if behind else list(rowless(counter, members, snapshot))
        if behind is None:
            yield progress, suspected
            return
        yield replace(progress, waiting=behind), []
    yield progress, []


def fence(snapshot: Snapshot, state: State) -> str | None:
    """None if the snapshot shows everything up to the watermark and the cursor of `state`; otherwise what is missing.

    Raises CounterWasLost.
    """
    behind = why_stale(snapshot, state)
    if behind is not None:
        return behind
    if state.watermark is None:
        return "the watermark of the counter is missing; the keeper has to set it again"
    if state.watermark_reset_at is not None and snapshot.committed_through <= state.watermark_reset_at + RESET_SLACK:
        return (
            f"the watermark was set again at {state.watermark_reset_at:%H:%M:%S}; the replica shows commits "
            f"up to {snapshot.committed_through:%H:%M:%S}, and has to show those of {RESET_SLACK.seconds} s later"
        )
    if state.watermark_source != snapshot.source:
        database, line = timeline.split(snapshot.source)
        written, written_line = timeline.split(state.watermark_source)
        if database == written and written_line < line:
            # The primary that acknowledged it was replaced, and the replica follows its successor: the row is in
            # the common history, which the replica shows, or it was lost with the old primary.
            return None
        return f"ingest writes to {state.watermark_source}, the replica shows {snapshot.source}"
    if snapshot.horizon <= state.watermark:
        return (
            f"ingest has acknowledged xact {state.watermark}, the replica shows all below {snapshot.horizon}: "
            "it is behind, or an older transaction is still open on the primary"
        )
    return None


def rowless(counter: Counter, members: list[bytes], snapshot: Snapshot) -> dict[bytes, bytes]:
    """Those of these elements that no row has, each with what replaces it: b"" for nothing, or, in a counter with last_seen, the
    day of the member's last row, which is an earlier one.

    Elements that no row could have are among them, because nobody can ask Postgres for these; and those that belong to another part
    of the counter, which has them, too, if they have a row."""
    checks = [IS_CANONICAL[each.type] for each in counter.terms]
    asked: dict[Values, bytes] = {}
    gone = {}
    for member in members:
        values = elements.decode(counter, with_possible_day(counter, member))
        if (
            values is None
            or elements.shard_of(counter, member) != counter.shard
            or not all(check(text) for check, text in zip(checks, values, strict=True))
        ):
            gone[member] = b""
        else:
            asked[values] = member
    if not asked:
        return gone
    if counter.last_seen is None:
        return gone | dict.fromkeys(elements.encode_all(counter, snapshot.without_row(counter, list(asked))), b"")
    last = snapshot.last_seen(counter, [values[:-1] for values in asked])
    for of_row, member in asked.items():
        text = last[tuple(map(str, of_row[:-1]))]
        day = b"" if text is None else elements.day_of(text).encode()
        if text is None or day < elements.split(member)[0]:
            gone[member] = day
    return gone


def with_possible_day(counter: Counter, element: bytes) -> bytes:
    """The element; with another day if something else has written one that is none. Its member may have a row."""
    if counter.last_seen is None:
        return element
    head, member = elements.split(element)
    day = head.decode(errors="replace")
    if elements.DAY.fullmatch(day) and is_date(day):
        return element
    return elements.LAST_DAY.encode() + elements.SEPARATOR + member


def still_marked(counter: Counter, redis: Redis, token: str, members: list[bytes]) -> list[bytes]:
    """The members that `steps.sweep` would remove; it does not remove them."""
    at = keys.of_counter(counter.name)
    marked = []
    for some in steps.chunks(members):
        holders = redis.hmget(at.suspects, [storages.mark_of(at.storage, each) for each in some])
        marked += [member for member, holder in zip(some, holders, strict=True) if holder == token.encode()]
    return marked
