"""Reconcile: make a counter equal to the table, in both directions, and report the drift.

1. *missing*: the run reads the table's distinct members in the order of the index, and adds those that are not in the
   set. A member is drift only if it has a row below the cursor, where the counter claims to be complete. If its row
   is newer, ingest has committed it and not counted it yet, and this counts it a little earlier.
2. *extra*: the run finds and removes the members of the set that have no row (`sweep`). The first half puts the members
   of the table that are in the set, or that it adds, into a bucket filter (`bucket_filter`). The filter leaves few
   members of the set to ask the table about. They stay in the set until the run ends, because only a sweep removes
   members, only with its marks, and the marks of earlier sweeps are removed before the filter is filled. Departures
   remove members meanwhile, and count them in `swept`. In the same process they tell the filter (`filters`). A run that
   finds more swept than its filter knows asks about every member. There is nothing extra if nothing was missing and
   nothing swept, the set had as many members before the first half as after it, and the table has as many: a filter
   with one bucket would say so. So verifying a counter without drift costs reading its index once, if no member is added
   or removed just then.
3. The drift is noted on the counter with the time, if it is still the counter that the run looked at. A repair corrects
   the set's size in the same step: by now the run has looked at every member that something else had added or removed
   before the run began. All members that left below the cursor that the run began with have been removed, too, and
   `left_through` says so. A change by hand during the run shows as another gap between set and size, and the run starts
   again. It also starts again if a snapshot shows another table than the first one: a part that is detached while its
   chunk is read, and attached again, would be missing. The run settles a change of the table that was noted before it
   began, if none was noted since.

A `check` does all of this except adding and removing, and finds the same drift. After a crash a run continues from its
position. Then the run has no filter of what it read before, and asks about every member. The scan of the second half starts
again; looking twice at a member changes nothing.

All of this happens in one history of Redis (`catch_up`), which the findings name. If Redis was restarted, or a replica of it was
promoted, the run looks again from the start. The record of the run may be on another server, so its position proves nothing
about this one. And it is not enough that what the run has written is still there: it also relies on members that it has seen
in the set, or has not seen there.
"""

from __future__ import annotations

from datetime import UTC, datetime

from redis import Redis

from manage_service.protocol.bucket_filter import BucketFilter
from manage_service.protocol.build import build, needs_building
from manage_service.protocol.changes import note_change
from manage_service.protocol.findings import Findings
from manage_service.protocol.freshness import CounterWasLost, why_stale
from manage_service.protocol.in_step import read_chunk
from manage_service.protocol.progress import Progress, Steps
from manage_service.protocol.sweep import fence, forget_marks, sweep, with_new_watermark
from manage_service.replica.snapshots import Replica, Snapshot
from shared_models.declarations import Counter, Storage
from shared_models.protocol import keys, states, steps, storages
from shared_models.protocol.elements import encode_all
from shared_models.protocol.states import Drift, State
from shared_models.protocol.storages import Found

# A set that something else changes during every attempt of a run cannot be verified.
ATTEMPTS = 3


def reconcile(
    counter: Counter,
    findings: Findings,
    replica: Replica,
    redis: Redis,
    *,
    repair: bool,
    filters: dict[str, BucketFilter],
) -> Steps:
    """Reconcile one counter. It writes into `findings`, from which the run can continue.

    It puts its filter into `filters`, by the name of the counter, for the part of this process that resolves
    departures. A counter without a cursor is built first. `redis` must be a client of `stores.connect_for_passes`.
    Raises CounterWasLost, steps.SetChanged, psycopg2.Error, redis.RedisError.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return (yield from reconcile_once(counter, findings, replica, redis, repair=repair, filters=filters))
        except steps.SetChanged:
            if attempt == ATTEMPTS:
                raise
            findings.look_again(repaired=repair)


def reconcile_once(
    counter: Counter,
    findings: Findings,
    replica: Replica,
    redis: Redis,
    *,
    repair: bool,
    filters: dict[str, BucketFilter],
) -> Steps:
    """One attempt of `reconcile`, which tries again if the set was changed by hand."""
    with replica.snapshot(counter) as snapshot:
        snapshot.check(counter)
        source, estimate = snapshot.source, snapshot.estimate(counter)
        state = states.read_state(redis, counter.name)
        if state.source == source and not needs_building(state, source) and state.fingerprint != snapshot.fingerprint:
            note_change(counter, state, snapshot, redis)
            state = states.read_state(redis, counter.name)
    if needs_building(state, source):
        yield from build(counter, replica, redis)
        state = states.read_state(redis, counter.name)
    if findings.build not in ("", state.build):
        findings.start_over()
    elif findings.build and (findings.changed_at, findings.history) != (state.changed_at, state.history):
        findings.look_again(repaired=repair)
    if not findings.build:
        findings.build, findings.gap = state.build, state.gap
        findings.changed_at, findings.history = state.changed_at, state.history
    # None if this continues from the middle: another run may have worked in between.
    count_before, bucket_filter = (None, None) if findings.position else (state.count, BucketFilter(counter.storage))
    filters.pop(counter.name, None)
    if bucket_filter is not None:
        filters[counter.name] = bucket_filter
    forget_marks(counter, redis)

    jumping = estimate is not None and estimate.jumping_pays
    expected = max(state.count if state.elements is None else state.elements, 1)
    while not findings.table_read:
        with replica.snapshot(counter) as snapshot:
            # Acknowledged members may be among those removed by hand: the table has to show them before the size is
            # correct.
            behind = fence(snapshot, state) if findings.gap else why_stale(snapshot, state)
            if behind is None:
                if snapshot.fingerprint != state.fingerprint:
                    raise steps.TableChanged(counter.name)
                try:
                    more = compare_chunk(
                        counter, findings, snapshot, redis, bucket_filter, jumping=jumping, repair=repair
                    )
                except steps.TooLate as error:
                    behind = str(error)
        if behind is not None:
            yield Progress("missing", findings.read, expected, waiting=behind)
            state = with_new_watermark(counter, state, redis)
            continue
        if not more:
            findings.table_read = True
        yield Progress("missing", findings.read, max(findings.read, expected))

    if not repair:
        findings.forget_extra()
    after = states.read_state(redis, counter.name)
    all_gone = True
    if is_suspicious(counter, findings, state, after, count_before):
        all_gone = yield from sweep(
            counter,
            replica,
            redis,
            bucket_filter,
            take_out=repair,
            strict=findings.gap != 0,
            found=lambda members: findings.note_extra(counter, members),
            expected=expected,
            swept_before=state.swept,
        )
    now = datetime.now(UTC)
    drift = Drift(findings.missing, findings.extra)
    left_through = state.cursor if repair and all_gone else None
    if not steps.verify(
        redis,
        counter.name,
        findings.build,
        findings.gap,
        now,
        drift,
        repaired=repair,
        history=findings.history,
        left_through=left_through,
        changed_at=findings.changed_at,
    ):
        raise CounterWasLost(f"{counter.name} was lost or built again during the run, which proves nothing")
    findings.verified_at = now


def compare_chunk(
    counter: Counter,
    findings: Findings,
    snapshot: Snapshot,
    redis: Redis,
    bucket_filter: BucketFilter | None,
    *,
    jumping: bool,
    repair: bool,
) -> bool:
    """Compare the next chunk of the table with the set; False if there is none. Raises steps.TooLate: read it again."""
    chunk = read_chunk(counter, findings.position, snapshot, jumping=jumping)
    if chunk is None:
        return False
    members = chunk.elements
    cursor, found = find(counter, members, redis)
    absent = [index for index, each in enumerate(found) if each is Found.ABSENT]
    if absent:
        values = [chunk.values[index] for index in absent]
        # The cursor was read in the same step as the set: a member with a row below it had to be in the set.
        owed = snapshot.with_row_below(counter, values, cursor) if cursor is not None else ()
        if repair:
            added = [members[index] for index in absent]
            steps.record(redis, {counter.name: added}, source=snapshot.source, horizon=snapshot.horizon)
        findings.note_missing(counter, encode_all(counter, owed))
        findings.absent += len(absent)
    # If a member is there with a later day, the second half looks at it, as at a member that is only in the set.
    findings.later += found.count(Found.LATER)
    if bucket_filter is not None:
        bucket_filter.put_in(
            [member for member, each in zip(members, found, strict=True) if is_there(each, repair=repair)]
        )
    findings.position, findings.read = chunk.position, findings.read + len(members)
    return True


def is_there(found: Found, *, repair: bool) -> bool:
    """Whether an element is in the set by now: a repair has added the absent ones."""
    return found is Found.THERE or (repair and found is Found.ABSENT)


def is_suspicious(counter: Counter, findings: Findings, before: State, after: State, count_before: int | None) -> bool:
    """Whether the set may hold something that the table does not have: see 2. above.

    Of a counter by group only the number of groups is known, and a group may have too many members.
    """
    if counter.storage is Storage.GROUPS:
        return True
    same_count = count_before == findings.read == after.count
    return bool(findings.absent or findings.later or after.swept != before.swept or not same_count)


def find(counter: Counter, members: list[bytes], redis: Redis) -> tuple[int | None, list[Found]]:
    """The cursor, and then, read a moment later, whether the set has each of these members."""
    at = keys.of_counter(counter.name)
    cursor = redis.hget(at.state, "cursor")
    found: list[Found] = []
    for some in steps.chunks(members, steps.LOOK_MEMBERS):
        found += storages.find(redis, at, some)
    return None if cursor is None else int(cursor), found
