"""The atomic steps of the protocol in Redis.

The scripts in `lua/` are the steps; each begins with the reason why it has to be atomic. Here they
get names and types. `shared_models.protocol.states` reads the state that they write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from secrets import token_hex
from typing import Any, TypeAlias, TypeVar

from redis import Redis
from redis.exceptions import NoScriptError

from shared_models.declarations import Storage
from shared_models.protocol import keys, storages, trips
from shared_models.protocol.moments import to_microseconds
from shared_models.protocol.states import Drift, State
from shared_models.protocol.trips import Argument, Command, Trip

# The most members that one Redis command names. 1,000 take about half a millisecond of the server's time. Other
# clients wait no longer than that for a reconcile, however large it is.
CHUNK_MEMBERS = 1_000
# … and the most groups that these members may belong to.
CHUNK_OF_GROUPS = 200
# The most members that one round trip of a scan looks at. Redis runs all commands in a client's buffer before it
# serves the next client. With 250 members the others wait 0.1 to 0.2 ms.
LOOK_MEMBERS = 250

T = TypeVar("T")
# One call of a script: its name and the storage that it works on, its keys, its arguments.
Call: TypeAlias = "tuple[Script, Sequence[str], tuple[Argument, ...]]"


def chunks(items: Sequence[T], size: int = CHUNK_MEMBERS) -> Iterator[Sequence[T]]:
    """The items in runs of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass(frozen=True, slots=True)
class Script:
    """One file of `lua/`, known to Redis by its SHA-1."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


def _text(name: str) -> str:
    return (files("shared_models") / "lua" / f"{name}.lua").read_text()


# What the scripts have in common, in the order in which they need each other.
_SHARED = ("below", "is_size", "raise_watermark", "history")
_OF_STORAGES = ("record", "begin", "fill", "promote", "sweep", "verify")
_OF_GROUPS = ("drop_groups", "mend_group")
_OTHERS = ("advance", "make_cold", "reset_watermark", "mark_departing", "resolve", "note_table")


def _script(name: str, storage: Storage | None) -> Script:
    text = _text(name)
    if storage is not None:
        text = f"local MAX_GROUPS = {storages.MAX_GROUPS}\n{_text(f'storage_{storage.value}')}{text}"
    shared = {each: _text(each) for each in _SHARED}
    needed = [each for each in _SHARED if f"{each}(" in text]
    if "raise_watermark" in needed and "below" not in needed:
        needed.insert(0, "below")
    return Script("".join(shared[each] for each in needed) + text)


# By name and storage. Scripts that do not depend on the storage are the same for each.
SCRIPTS: Mapping[tuple[str, Storage], Script] = {
    **{(name, storage): _script(name, storage) for name in _OF_STORAGES for storage in Storage},
    **{(name, Storage.GROUPS): _script(name, Storage.GROUPS) for name in _OF_GROUPS},
    **{(name, storage): script for name in _OTHERS for script in [_script(name, None)] for storage in Storage},
}


def load_scripts(client: Redis) -> None:
    """Load the scripts that Redis does not have (yet, or since it restarted). Ingest may call scripts but may not
    load them."""
    scripts = list(dict.fromkeys(SCRIPTS.values()))
    known = client.script_exists(*(script.sha for script in scripts))
    for script, is_known in zip(scripts, known, strict=True):
        if not is_known:
            client.script_load(script.text)


def _chunks_of(storage: Storage, elements: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Chunks of the elements, in their order. Each element may be of another group."""
    return chunks(elements, CHUNK_OF_GROUPS if storage is Storage.GROUPS else CHUNK_MEMBERS)


def _in_any_order(storage: Storage, elements: Sequence[bytes]) -> Iterator[Sequence[Argument]]:
    """The arguments for chunks of these elements, each of as few groups as possible: a group costs more than a member."""
    if storage is not Storage.GROUPS:
        yield from (storages.arguments(storage, chunk) for chunk in chunks(elements))
        return
    arguments: list[Argument] = []
    groups = members = 0
    for group, of_group in storages.by_head(elements).items():
        for some in chunks(of_group) if len(of_group) > CHUNK_MEMBERS else (of_group,):
            if groups == CHUNK_OF_GROUPS or members + len(some) > CHUNK_MEMBERS:
                yield arguments
                arguments, groups, members = [], 0, 0
            arguments += (group, len(some))
            arguments += some
            groups, members = groups + 1, members + len(some)
    if arguments:
        yield arguments


def _execute(client: Redis, calls: Sequence[Call]) -> list[Any]:
    """Calls of scripts, in order, in one round trip. Not a transaction: each call is atomic by itself."""
    return trips.finish(_executed(client, calls))


def _executed(client: Redis, calls: Sequence[Call], then: Sequence[Command] = ()) -> Trip[list[Any]]:
    """The same as a trip. The commands `then` follow the last call, over the same connection.

    A call that Redis has answered is never repeated. Only calls that did nothing are: Redis had forgotten their
    script in between.
    """
    replies = yield from _call(client, calls, then)
    unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        for script in dict.fromkeys(calls[index][0] for index in unknown):
            client.script_load(script.text)
        again = yield from _call(client, [calls[index] for index in unknown], then)
        for index, reply in zip([*unknown, *range(len(calls), len(replies))], again, strict=True):
            replies[index] = reply
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _call(client: Redis, calls: Sequence[Call], then: Sequence[Command]) -> Trip[list[Any]]:
    commands: list[Command] = [("EVALSHA", script.sha, len(on), *on, *args) for script, on, args in calls]
    return (yield from trips.send(client, [*commands, *then]))


def _execute_one(client: Redis, step: str, name: str, on: Sequence[str], *args: Argument) -> Any:
    """One step on one counter."""
    return _execute(client, [(SCRIPTS[step, keys.of_counter(name).storage], on, args)])[0]


def _seen(xact: int | None) -> int | str:
    """An xact as a script takes it; "" for None."""
    return "" if xact is None else xact


class SetChanged(Exception):
    """Something else has changed the set during the run, so the run proves nothing. Run again."""


class TableChanged(SetChanged):
    """The table is no longer the one that was asked, so its answer is void. Ask again."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the table of {name} was changed during the run (partitions, TRUNCATE, a rewrite, types or labels)"
        )


class AnotherHistory(SetChanged):
    """Redis may have lost what was read from it, or written to it. Run again."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Redis was restarted, or a replica of it was promoted, while {name} was compared with its table"
        )


class TooManyGroups(Exception):
    """A counter by group would have too many groups. It is refused; the other counters go on."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} has more than {storages.MAX_GROUPS:,} groups (MAX_GROUPS): group by something that has fewer values"
        )


class TooLate(Exception):
    """Catch-up has passed the members that should be added. They were counted, or they have left again."""


class NotCopied(Exception):
    """Too few replicas have acknowledged a write in time. It is on the primary, and it was counted there."""

    def __init__(self, acknowledged: int, copies: Copies, added: int = 0) -> None:
        super().__init__(
            f"{acknowledged} replicas of Redis acknowledged the members within {copies.milliseconds} ms; "
            f"WAIT_REPLICAS={copies.replicas}"
        )
        self.added = added


@dataclass(frozen=True, slots=True)
class Copies:
    """How many replicas have to acknowledge a write, and for how long to wait for them (0 would mean for ever)."""

    replicas: int
    milliseconds: int

    def commands(self, name: str) -> list[Command]:
        """The commands that wait until replicas have all that the server of this counter has now.

        WAIT covers only what its own connection has written, and returns at once if that is nothing: another connection may
        have added the members a moment ago. The first command always writes, so WAIT covers all writes before it.
        """
        return [
            ("HSET", keys.of_counter(name).intake, "waited", 1),
            ("WAIT", self.replicas, self.milliseconds),
        ]

    def check(self, acknowledged: int, added: int = 0) -> None:
        """Raises NotCopied if these were too few."""
        if acknowledged < self.replicas:
            raise NotCopied(acknowledged, self, added)


def copied(client: Redis, name: str, copies: Copies) -> Trip[None]:
    """Wait until replicas have all that the server of this counter has now. Raises NotCopied, redis.RedisError."""
    _, acknowledged = yield from _executed(client, [], copies.commands(name))
    copies.check(acknowledged)


def record(
    client: Redis,
    elements_by_counter: Mapping[str, Sequence[bytes]],
    xact: int | None = None,
    source: str = "",
    *,
    horizon: int | None = None,
) -> int:
    """Add elements to their counters, in one round trip; how many were new.

    `xact` and `source` raise the watermark: the transaction that stored the rows, or the highest one that a pass is about
    to claim. `horizon` is of the snapshot that showed the members; None if `xact` itself stored them. Raises
    TooLate or TooManyGroups if some of them were not added, and redis.RedisError. Then some may have been added, which is
    harmless: every element has a committed row.
    """
    return trips.finish(recorded(client, elements_by_counter, xact, source, horizon=horizon))


def recorded(
    client: Redis,
    elements_by_counter: Mapping[str, Sequence[bytes]],
    xact: int | None = None,
    source: str = "",
    *,
    horizon: int | None = None,
    copies: Copies | None = None,
) -> Trip[int]:
    """The same as a trip. With `copies` it raises NotCopied, too, if too few replicas have the elements in time."""
    calls: list[Call] = []
    names: list[str] = []
    for name, elements in elements_by_counter.items():
        at = keys.of_counter(name)
        on = (at.members, at.suspects, at.departing, at.intake, at.state)
        known, script = _seen(xact if horizon is None else horizon), SCRIPTS["record", at.storage]
        calls += [(script, on, (_seen(xact), source, known, *some)) for some in _in_any_order(at.storage, elements)]
        names += [name] * (len(calls) - len(names))
    if not calls:
        return 0
    replies = yield from _executed(client, calls, copies.commands(names[0]) if copies else ())
    added = replies[: len(calls)]
    if -1 in added:
        raise TooLate("catch-up has passed these rows: their members were counted, or have left again")
    if -2 in added:
        raise TooManyGroups(names[added.index(-2)])
    if copies:
        copies.check(replies[-1], sum(added))
    return sum(added)


def advance(client: Redis, name: str, was: State, cursor: int, complete_through: datetime | None) -> bool:
    """Move the cursor, if the counter is still as the pass found it. None: complete_through stays where it was."""
    return advance_all(client, {name: (was, cursor, complete_through)})[0]


def advance_all(client: Redis, moves: Mapping[str, tuple[State, int, datetime | None]]) -> list[bool]:
    """The same for several counters, in one round trip; for each whether its cursor was moved."""
    calls: list[Call] = []
    for name, (was, cursor, complete_through) in moves.items():
        at = keys.of_counter(name)
        through = "" if complete_through is None else to_microseconds(complete_through)
        args = (_seen(was.cursor), was.source, cursor, through, was.build, was.changed_at, was.history)
        calls.append((SCRIPTS["advance", at.storage], (at.state,), args))
    return list(map(bool, _execute(client, calls)))


def note_table(
    client: Redis, name: str, fingerprint: str, xact: int, source: str, parts: str, as_since: str = ""
) -> tuple[str, str]:
    """Note the table that a snapshot shows, which knows no xact above this one, and its parts; returns the change that is noted
    now, and the one that is settled.

    `as_since`: the change since which only retired parts have left, and empty ones have come; then this one is settled, too.
    """
    at = keys.of_counter(name)
    now = to_microseconds(datetime.now(UTC))
    args = (fingerprint, now, xact, source, parts, as_since)
    changed_at, settled = _execute_one(client, "note_table", name, [at.intake, at.state], *args)
    return changed_at.decode(), settled.decode()


def make_cold(client: Redis, name: str, was: State) -> bool:
    """Make the counter cold, if its cursor is still the one that was seen; returns whether it is cold now."""
    return bool(_execute_one(client, "make_cold", name, [keys.of_counter(name).state], _seen(was.cursor), was.build))


def reset_watermark(client: Redis, name: str, was: State, xact: int, source: str) -> bool:
    """Set a missing or impossible watermark to the highest xact that the replica knows; returns whether it was set."""
    at = keys.of_counter(name)
    now = to_microseconds(datetime.now(UTC))
    return bool(
        _execute_one(client, "reset_watermark", name, [at.intake, at.state], _seen(was.watermark), xact, source, now)
    )


def begin(
    client: Redis, name: str, token: str, horizon: int, source: str, fields: Mapping[str, Argument], *, claim: int
) -> None:
    """Note a new fill of the counter, up to this horizon of this source, with these other fields. `claim`: the highest xact that
    the first snapshot may show."""
    at = keys.of_counter(name)
    pairs = [part for pair in {"horizon": horizon, "source": source, **fields}.items() for part in pair]
    on = [at.members, at.intake, at.state, at.fill]
    _execute_one(client, "begin", name, on, token, to_microseconds(datetime.now(UTC)), claim, source, *pairs)


def fill(client: Redis, name: str, token: str, before: bytes, after: bytes, elements: Sequence[bytes]) -> bool:
    """Add a chunk of a fill, and move its position from `before` to `after`; False if the fill has been superseded.

    Raises TooManyGroups, redis.RedisError.
    """
    at = keys.of_counter(name)
    on = (at.members, at.suspects, at.departing, at.intake, at.fill)
    calls: list[Call] = []
    pieces = list(_chunks_of(at.storage, elements)) or [()]
    for number, piece in enumerate(pieces, 1):
        position = after if number == len(pieces) else position_after(piece[-1])
        some = storages.arguments(at.storage, piece)
        calls.append((SCRIPTS["fill", at.storage], on, (token, before, position, len(piece), *some)))
        before = position
    done = _execute(client, calls)
    if -2 in done:
        raise TooManyGroups(name)
    return -1 not in done


def position_after(member: bytes) -> bytes:
    """How a fill or a run notes that it has read up to this member. The empty text is a member, so b"" means the start."""
    return b"=" + member


def promote(client: Redis, name: str, token: str, position: bytes) -> bool:
    """Complete the counter, if this fill is still the one in progress."""
    at = keys.of_counter(name)
    return bool(_execute_one(client, "promote", name, [at.members, at.intake, at.state, at.fill], token, position))


def sweep(
    client: Redis, name: str, token: str, gone: Mapping[bytes, bytes], changed_at: str, *, departing: bool = False
) -> tuple[list[bytes], bool]:
    """Remove the elements that this sweep, or this batch of departures, still has marked.

    Returns the removed ones, and whether the caller has to ask about some again, because a record of an earlier day came in
    between. `gone`: for each element what replaces it; b"" for nothing. `changed_at` is of the table that was asked about
    them. Raises TableChanged if it is another table now.
    """
    at = keys.of_counter(name)
    on = (at.members, at.departing if departing else at.suspects, at.intake, at.state)
    calls: list[Call] = []
    for chunk in _chunks_of(at.storage, list(gone)):
        args = [part for each in chunk for part in (each, gone[each])] if at.storage is Storage.LAST_SEEN else chunk
        calls.append((SCRIPTS["sweep", at.storage], on, (token, changed_at, *args)))
    swept = _execute(client, calls)
    if -1 in swept:
        raise TableChanged(name)
    return [element for _, *some in swept for element in some], any(again for again, *_ in swept)


def begin_departing(client: Redis, name: str, token: str) -> None:
    """Begin a batch of departures. An earlier batch can no longer make marks, and resolves nothing."""
    at = keys.of_counter(name)
    pipe = client.pipeline(transaction=True)
    pipe.hset(at.state, "leaving", token)
    pipe.unlink(at.departing)
    pipe.execute()


def mark_departing(client: Redis, name: str, token: str, elements: Iterable[bytes]) -> bool:
    """Mark the elements of a batch; False if another batch has begun."""
    at = keys.of_counter(name)
    script, marks = SCRIPTS["mark_departing", at.storage], [storages.mark_of(at.storage, each) for each in elements]
    calls: list[Call] = [(script, (at.state, at.departing), (token, *chunk)) for chunk in chunks(marks)]
    return 0 not in _execute(client, calls)


def mark(client: Redis, name: str, token: str, elements: Sequence[bytes]) -> None:
    """Mark the elements that a sweep suspects."""
    at = keys.of_counter(name)
    for some in chunks([storages.mark_of(at.storage, each) for each in elements]):
        client.hset(at.suspects, mapping=dict.fromkeys(some, token))


def unmark(client: Redis, name: str, elements: Sequence[bytes]) -> None:
    """Take the marks of a sweep off."""
    at = keys.of_counter(name)
    for some in chunks([storages.mark_of(at.storage, each) for each in elements]):
        client.hdel(at.suspects, *some)


def drop_groups(client: Redis, name: str, groups: Sequence[bytes], token: str) -> list[bytes]:
    """Drop the sets of those of these groups that something else has changed, to read them again: each that is not as large as its
    size says. Returns these."""
    at = keys.of_counter(name)
    on = [at.members, at.intake, at.state, at.broken]
    return list(_execute_one(client, "drop_groups", name, on, token, *groups)) if groups else []


def mend_group(client: Redis, name: str, group: bytes, token: str, was: State) -> bool:
    """Note that a dropped group has been read again, if the counter is still as the reading found it."""
    at = keys.of_counter(name)
    args = (group, token, was.build, was.changed_at, was.history)
    return bool(_execute_one(client, "mend_group", name, [at.broken, at.state], *args))


def resolve(client: Redis, name: str, was: State, token: str, left_through: int | None) -> bool:
    """Note how far departures are resolved, if the counter is still as the batch found it. None: a reconcile must resolve them."""
    at = keys.of_counter(name)
    on = (at.state, at.departing)
    args = (_seen(was.left_through), was.build, token, _seen(left_through), was.history)
    return bool(_execute_one(client, "resolve", name, on, *args))


def resolve_all(client: Redis, found: Mapping[str, State]) -> None:
    """Note for counters without departures that these are resolved up to the cursor, in one round trip."""
    calls: list[Call] = []
    for name, was in found.items():
        at = keys.of_counter(name)
        args = (_seen(was.left_through), was.build, "", _seen(was.cursor), was.history)
        calls.append((SCRIPTS["resolve", at.storage], (at.state, at.departing), args))
    _execute(client, calls)


def verify(
    client: Redis,
    name: str,
    build: str,
    gap: int,
    at: datetime,
    drift: Drift,
    *,
    repaired: bool,
    history: str,
    left_through: int | None = None,
    changed_at: str = "",
) -> bool:
    """Note the drift that a reconcile found, if the counter is still the one that it looked at.

    `gap` is the number of members less the size when the run began. After a repair it is settled: the two are
    equal, and the counter has another build.
    All departures below `left_through` are resolved. `changed_at` is of the table that it was compared with, `history` that of
    Redis when it began. Raises SetChanged if the gap is another one now, or AnotherHistory.
    """
    on = keys.of_counter(name)
    done = _execute_one(
        client,
        "verify",
        name,
        [on.members, on.intake, on.state],
        *(
            build,
            gap,
            to_microseconds(at),
            drift.missing,
            drift.extra,
            int(repaired),
            token_hex(8),
            _seen(left_through),
            changed_at,
            history,
        ),
    )
    if done == -2:
        raise AnotherHistory(name)
    if done == -1:
        raise SetChanged(f"something other than Rollcall has changed the set of {name} during the run")
    return bool(done)
