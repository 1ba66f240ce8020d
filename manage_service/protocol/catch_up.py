"""Catch up: add the members of rows that were committed since the cursor, and move the cursor to the horizon.

Why the order is the proof:

1. One snapshot gives the horizon and the rows. Every row with an xact below the horizon is in it, or will never exist.
2. The atomic step that ingest uses adds their members and removes their marks. It also raises the watermark to
   what the pass is about to claim. So a sweep on a replica that came back earlier, between this and step 3, has to
   wait.
3. The pass sets the cursor only if the counter is still as it was at the start, and Redis still has the history that it had
   then. Redis gives its history a new name at each start and at each promotion (lua/history.lua). And the pass has one
   connection (`stores.ConnectsOnce`), so it talks to one server all the time. One server with one history has lost nothing of
   what the pass has read or written. One connection alone does not prove that: a primary that is demoted, follows its successor
   and is promoted again keeps its clients, and may have lost the members of step 2. One history at both ends alone does not
   prove it either: in between, another connection may lead to a primary that was replaced and does not know it.
4. If the table itself becomes another one (ATTACH, DETACH, TRUNCATE, a rewrite, ALTER TYPE, labels of an enum), rows
   appear and disappear without an xact. A pass that sees another fingerprint notes it. Then `complete_through` stands
   still until a reconcile or a fill that began after it has ended; `changes` says which changes settle themselves. A
   change that was undone before a pass saw it has changed nothing: the cursor has not moved meanwhile, and a sweep
   removes no member by the answer of a table that is not the noted one (`sweep`).
5. The parts of a counter share the snapshot and the rows, and each part has a pass of its own: with its server, state and cursor.
   The rows begin at the least cursor. A part that is further gets some members once more, and each has a row in this snapshot,
   which shows everything below that part's cursor, too. If a part fails, the others go on.
6. Most passes have nothing to read. Those over the counters of one table share a snapshot, and their cursors move in one
   round trip (`catch_up_at_rest`). The proof for each is the same: its state was read before the snapshot, and it has no
   row to read.

A keeper that dies anywhere in between leaves members that have a row, and an older cursor: the next pass repeats. Two
passes at the same time do the same work twice, and one of them moves the cursor.

Ids or times cannot replace the horizon: a row gets its id before the commit, so rows may appear below a position that
was already passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from psycopg2.errors import LockNotAvailable
from redis import Redis
from redis.exceptions import RedisError

from manage_service.protocol.changes import note_change
from manage_service.replica.snapshots import NotOnDisk, Replica, Shown, Snapshot
from manage_service.replica.sql import described_by
from shared_models.declarations import Counter, Storage, get_counter
from shared_models.nodes import Nodes
from shared_models.protocol import keys, states, steps
from shared_models.protocol.elements import by_part, encode_all
from shared_models.protocol.states import State

# About how many rows one pass reads: a fraction of a second of work. If the pass fails, its members stay.
PASS_ROWS = 50_000
CHANGED = "the counter was changed meanwhile"
LOCKED = "another session holds a lock on the table, to change or empty it"


@dataclass(frozen=True, slots=True)
class Memory:
    """Rows above the cursors that earlier passes have added to all parts. Only for these builds, histories of Redis and source."""

    builds: Mapping[str, tuple[str, str]]  # by part: its build, and the history of its Redis
    source: str
    shown: Shown

    def holds_for(self, found: Mapping[str, State]) -> bool:
        """Whether it is about these parts."""
        return all(
            (self.builds.get(name), self.source) == ((state.build, state.history), state.source)
            for name, state in found.items()
        )


@dataclass(slots=True)
class Pass:
    """The result of a pass over one part. `behind` is the reason why it could not advance; empty if it did."""

    read_members: int = 0
    added: int = 0
    finished: bool = True
    behind: str = ""
    failed: bool = False  # Postgres, or the server of the part, refused something
    error: RedisError | None = None  # what its server said
    memory: Memory | None = None  # for the next pass


def catch_up(
    parts: Sequence[Counter],
    replica: Replica,
    nodes: Nodes[Redis],
    memory: Memory | None = None,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Pass]:
    """One pass over each of these parts of one derived counter that has a cursor; cold ones are left alone.

    Raises psycopg2.Error, and redis.RedisError if there is one server. `nodes` must be those of `stores.nodes_for_passes`.
    `finished` is false if more rows wait for another pass.
    `between` is called between two chunks of rows, to renew leases: a transaction may be large.
    """
    passes = {part.name: Pass() for part in parts}
    found: dict[str, State] = {}
    clients: dict[
        str, Redis
    ] = {}  # for the whole pass: the map may be read again meanwhile, and lead to another server
    for part in parts:
        with noting_failure(nodes, passes[part.name]):
            clients[part.name] = nodes.of(keys.home_of(part))
            found[part.name] = states.read_state(clients[part.name], part.name)
    for name, state in list(found.items()):
        if state.lost or state.cursor is None:
            passes[name].behind = f"the counter is cold: {state.why_cold}"
            del found[name]
    if not found:
        return passes
    since = min(state.cursor or 0 for state in found.values())
    shown = memory.shown if memory is not None and memory.holds_for(found) else None
    # Before the snapshot: see `snapshots`.
    showing = replica.ended_now(*((since, ()) if shown is None else (shown.xmax, shown.unended)))
    behind = ""
    try:
        with replica.snapshot(parts[0]) as snapshot:
            pass_over(parts, found, passes, shown, showing, snapshot, nodes, clients, between)
    except LockNotAvailable:
        behind = LOCKED
    except NotOnDisk as error:
        behind = str(error)
    if behind:
        for name in found:
            passes[name].behind = behind
    return passes


@contextmanager
def noting_failure(nodes: Nodes[Redis], of_part: Pass) -> Iterator[None]:
    """What concerns one part: if its server fails, the parts on other servers go on."""
    try:
        yield
    except RedisError as error:
        if nodes.is_one:
            raise
        of_part.failed, of_part.error, of_part.behind = True, error, f"{type(error).__name__}: {error}"


def catch_up_at_rest(
    parts: Sequence[Counter],
    found: Mapping[str, State],
    memories: Mapping[str, Memory],
    replica: Replica,
    nodes: Nodes[Redis],
) -> dict[str, Pass]:
    """One pass over each of these parts (of counters of one table) that has nothing to read; the others need `catch_up`.

    `found`: their states, read before this, over `nodes`. `memories`: by derived counter. They do not change, because the passes
    add nothing. Raises psycopg2.Error, and redis.RedisError if there is one server.
    """
    complete = [each for each in parts if each.name in found and not found[each.name].lost]
    if not complete:
        return {}
    passes: dict[str, Pass] = {}
    try:
        with replica.snapshot(complete[0]) as snapshot:
            # Most parts ask about the same rows, and some have the same columns.
            has_recent = cache(lambda since, shown: snapshot.has_recent(complete[0], since, shown))
            fingerprint = cache(snapshot.fingerprint_as)
            resting = [
                part
                for part in complete
                if (state := found[part.name]).source == snapshot.source
                and state.gap == 0
                and state.cursor is not None
                and state.cursor <= snapshot.horizon
                and not has_recent(state.cursor, shown_before(memories.get(part.whole), part, state))
                and state.fingerprint == fingerprint(described_by(part))
            ]
            for client, some in nodes.by_client(resting, keys.home_of):
                of_server = Pass()
                with noting_failure(nodes, of_server):
                    moves = {
                        part.name: (state, snapshot.horizon, through(state, snapshot))
                        for part in some
                        for state in [found[part.name]]
                    }
                    advanced = steps.advance_all(client, moves)
                    for (name, (state, *_)), moved in zip(moves.items(), advanced, strict=True):
                        passes[name] = Pass(behind=state.withheld if moved else CHANGED)
                if of_server.failed:
                    passes |= {part.name: of_server for part in some}
    except (LockNotAvailable, NotOnDisk) as error:
        behind = str(error) if isinstance(error, NotOnDisk) else LOCKED
        return {part.name: Pass(behind=behind) for part in complete}
    return passes


def shown_before(memory: Memory | None, part: Counter, state: State) -> Shown | None:
    """The rows above the cursor that earlier passes have added to this part."""
    return memory.shown if memory is not None and memory.holds_for({part.name: state}) else None


def through(state: State, snapshot: Snapshot) -> datetime | None:
    """The complete_through after a pass that has read all of a snapshot; None if it stands still."""
    if state.changed_at != state.settled:
        return None
    # A replica that came back earlier knows less, but counted members stay counted.
    return max(snapshot.committed_through, state.complete_through or snapshot.committed_through)


def pass_over(
    parts: Sequence[Counter],
    found: dict[str, State],
    passes: Mapping[str, Pass],
    shown: Shown | None,
    showing: Shown | None,
    snapshot: Snapshot,
    nodes: Nodes[Redis],
    clients: Mapping[str, Redis],
    between: Callable[[], None],
) -> None:
    """The passes of the parts in `found`, in their snapshot. It takes a part that cannot go on out of `found`; its pass says why.

    `shown`: rows that earlier passes have added; `showing`: rows that are added after this one.
    """
    part_of, counter = {part.name: part for part in parts}, get_counter(parts[0].whole)

    def leave(name: str, behind: str) -> None:
        passes[name].behind = behind
        del found[name]

    def fail(name: str) -> None:
        if passes[name].error is not None:
            del found[name]

    for name, state in list(found.items()):
        with noting_failure(nodes, passes[name]):
            found[name], behind = ready(part_of[name], state, snapshot, clients[name])
            if behind:
                leave(name, behind)
        fail(name)
    if not found:
        return
    since = min(state.cursor or 0 for state in found.values())
    # Cut at an xact: everything below the cut is complete, and the next pass continues from there.
    cut = snapshot.slice_end(counter, since, PASS_ROWS)
    cursor = snapshot.horizon if cut is None else cut
    for name, state in list(found.items()):
        if (state.cursor or 0) > cursor:  # this part is further, and waits for the others
            passes[name].finished = False
            del found[name]
    # A sweep has to see this: complete_through also claims rows above the horizon, and no later pass may read them again.
    claim = cursor - 1 if cut is not None else snapshot.xmax - 1
    # Without a cut this also reads above the horizon: a transaction that stays open holds back the cursor, but
    # must not keep later rows out of the count. Below the horizon it leaves out no row: the cursors rely on that.
    for values in snapshot.read_recent(counter, since, cut, shown):
        for part, members in by_part(counter, encode_all(counter, list(values))):
            if part.name not in found:
                continue
            done = passes[part.name]
            done.read_members += len(members)
            redis = clients[part.name]
            with noting_failure(nodes, done):
                try:
                    done.added += steps.record(
                        redis, {part.name: members}, claim, snapshot.source, horizon=snapshot.horizon
                    )
                except steps.TooLate:
                    # Another pass has moved the cursor, and members of this snapshot may have left since.
                    leave(part.name, CHANGED)
                except steps.TooManyGroups as error:
                    # The cursor stays. The counter lacks members, so it must not be shown. A build says when there is room again.
                    steps.make_cold(redis, part.name, found[part.name])
                    leave(part.name, str(error))
                    done.failed = True
            fail(part.name)
        between()
    for name, state in list(found.items()):
        complete_through = through(state, snapshot) if cut is None else None
        with noting_failure(nodes, passes[name]):
            passes[name].finished = cut is None
            if steps.advance(clients[name], name, state, cursor, complete_through):
                passes[name].behind = state.withheld
            else:
                leave(name, CHANGED)
        fail(name)
    if showing and cut is None and found:
        builds = {name: (state.build, state.history) for name, state in found.items()}
        memory = Memory(builds, snapshot.source, showing)
        for name in found:
            passes[name].memory = memory


def ready(part: Counter, state: State, snapshot: Snapshot, redis: Redis) -> tuple[State, str]:
    """The state of a part at the beginning of its pass, and why it cannot begin; empty if it can."""
    if snapshot.source != state.source:
        return state, f"the cursor belongs to {state.source}, the replica shows {snapshot.source}"
    if state.cursor is not None and snapshot.horizon < state.cursor:
        # It crashed and came back earlier, or this is another, slower replica. The keeper never moves a cursor back.
        return state, f"the replica shows xact {snapshot.horizon} at most, the cursor is at {state.cursor}"
    is_gone = state.count == 0 and state.gap < 0
    if (is_gone or (state.gap and part.storage is not Storage.SET)) and steps.make_cold(redis, part.name, state):
        # Cheaper than the reconcile that settles any other gap of a set: there is nothing left to compare with.
        return state, "its keys were deleted, or changed: the counter is cold, and is built"
    if snapshot.fingerprint != state.fingerprint:
        state = note_change(part, state, snapshot, redis)
    return state, ""
