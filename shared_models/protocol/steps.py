"""The atomic steps of the protocol in Redis.

The scripts in `lua/` are the steps; each begins with the reason why it has to be atomic. Here they
get names and types. `shared_models.protocol.states` reads the state that they write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from secrets import token_hex
from typing import Any, TypeAlias, TypeVar

from redis import Redis
from redis.exceptions import NoScriptError

from shared_models.protocol import keys
from shared_models.protocol.moments import to_microseconds
from shared_models.protocol.states import Drift, State

# The most members that one Redis command names. 1,000 take about half a millisecond of the server's time. Other
# clients wait no longer than that for a reconcile, however large it is.
CHUNK_MEMBERS = 1_000
# The most members that one round trip of a scan looks at. Redis runs all commands in a client's buffer before it
# serves the next client. With 250 members the others wait 0.1 to 0.2 ms.
LOOK_MEMBERS = 250

T = TypeVar("T")
Argument: TypeAlias = bytes | str | int
# One call of a script: its keys, its arguments.
Call: TypeAlias = tuple[Sequence[str], tuple[Argument, ...]]


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


def _script(name: str) -> Script:
    text = _text(name)
    for shared in ("raise_watermark", "below", "is_size"):
        if f"{shared}(" in text:
            text = _text(shared) + text
    return Script(text)


(
    RECORD,
    ADVANCE,
    BEGIN,
    FILL,
    PROMOTE,
    SWEEP,
    VERIFY,
    MAKE_COLD,
    RESET_WATERMARK,
    MARK_DEPARTING,
    RESOLVE,
    NOTE_TABLE,
) = SCRIPTS = tuple(
    map(
        _script,
        (
            "record",
            "advance",
            "begin",
            "fill",
            "promote",
            "sweep",
            "verify",
            "make_cold",
            "reset_watermark",
            "mark_departing",
            "resolve",
            "note_table",
        ),
    )
)


def load_scripts(client: Redis) -> None:
    """Load the scripts that Redis does not have (yet, or since it restarted). Ingest may call scripts but may not
    load them."""
    known = client.script_exists(*(script.sha for script in SCRIPTS))
    for script, is_known in zip(SCRIPTS, known, strict=True):
        if not is_known:
            client.script_load(script.text)


def _execute(client: Redis, script: Script, calls: Sequence[Call]) -> list[Any]:
    """Calls of one script, in order, in one round trip. Not a transaction: each call is atomic by itself.

    A call that Redis has answered is never repeated. Only calls that did nothing are: Redis had forgotten their
    script in between.
    """
    replies = _call(client, script, calls)
    unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        client.script_load(script.text)
        for index, reply in zip(unknown, _call(client, script, [calls[index] for index in unknown]), strict=True):
            replies[index] = reply
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _call(client: Redis, script: Script, calls: Sequence[Call]) -> list[Any]:
    pipe = client.pipeline(transaction=False)
    for on, args in calls:
        pipe.execute_command("EVALSHA", script.sha, len(on), *on, *args)
    return pipe.execute(raise_on_error=False)


def _execute_one(client: Redis, script: Script, on: Sequence[str], *args: Argument) -> Any:
    return _execute(client, script, [(on, args)])[0]


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


class TooLate(Exception):
    """Catch-up has passed the members that should be added. They were counted, or they have left again."""


def record(
    client: Redis,
    members_by_counter: Mapping[str, Sequence[bytes]],
    xact: int | None = None,
    source: str = "",
    *,
    horizon: int | None = None,
) -> int:
    """Add members to their counters, in one round trip; returns how many were new.

    `xact` and `source` raise the watermark: the transaction that stored the rows, or the highest one that a pass is about
    to claim. `horizon` is of the snapshot that showed the members; None if `xact` itself stored them. Raises
    TooLate if some of them were not added, and redis.RedisError. Then some may have been added, which is harmless:
    every member has a committed row.
    """
    calls: list[Call] = []
    for name, members in members_by_counter.items():
        at = keys.of_counter(name)
        on = (at.members, at.suspects, at.departing, at.intake, at.state)
        known = _seen(xact if horizon is None else horizon)
        calls += [(on, (_seen(xact), source, known, *chunk)) for chunk in chunks(members)]
    added = _execute(client, RECORD, calls) if calls else []
    if -1 in added:
        raise TooLate("catch-up has passed these rows: their members were counted, or have left again")
    return sum(added)


def advance(client: Redis, name: str, was: State, cursor: int, complete_through: datetime | None) -> bool:
    """Move the cursor, if the counter is still as the pass found it. None: complete_through stays where it was."""
    through = "" if complete_through is None else to_microseconds(complete_through)
    on = [keys.of_counter(name).state]
    return bool(
        _execute_one(client, ADVANCE, on, _seen(was.cursor), was.source, cursor, through, was.build, was.changed_at)
    )


def note_table(client: Redis, name: str, fingerprint: str, xact: int, source: str) -> str:
    """Note the table that a snapshot shows, which knows no xact above this one; returns the change that is noted now."""
    at = keys.of_counter(name)
    now = to_microseconds(datetime.now(UTC))
    changed_at: bytes = _execute_one(client, NOTE_TABLE, [at.intake, at.state], fingerprint, now, xact, source)
    return changed_at.decode()


def make_cold(client: Redis, name: str, was: State) -> bool:
    """Make the counter cold, if its cursor is still the one that was seen; returns whether it is cold now."""
    return bool(_execute_one(client, MAKE_COLD, [keys.of_counter(name).state], _seen(was.cursor), was.build))


def reset_watermark(client: Redis, name: str, was: State, xact: int, source: str) -> bool:
    """Set a missing or impossible watermark to the highest xact that the replica knows; returns whether it was set."""
    at = keys.of_counter(name)
    now = to_microseconds(datetime.now(UTC))
    return bool(_execute_one(client, RESET_WATERMARK, [at.intake, at.state], _seen(was.watermark), xact, source, now))


def begin(client: Redis, name: str, token: str, horizon: int, source: str, fields: Mapping[str, Argument]) -> None:
    """Note a new fill of the counter, up to this horizon of this source, with these other fields."""
    at = keys.of_counter(name)
    pairs = [part for pair in {"horizon": horizon, "source": source, **fields}.items() for part in pair]
    on = [at.members, at.intake, at.state, at.fill]
    _execute_one(client, BEGIN, on, token, to_microseconds(datetime.now(UTC)), horizon - 1, source, *pairs)


def fill(client: Redis, name: str, token: str, position: bytes, members: Sequence[bytes]) -> bytes | None:
    """Add a chunk of a fill, and move its position; the new position, or None if the fill has been superseded."""
    at = keys.of_counter(name)
    calls: list[Call] = []
    for chunk in chunks(members):
        calls.append(((at.members, at.suspects, at.departing, at.intake, at.fill), (token, position, *chunk)))
        position = position_after(chunk[-1])
    return None if -1 in _execute(client, FILL, calls) else position


def position_after(member: bytes) -> bytes:
    """How a fill or a run notes that it has read up to this member. The empty text is a member, so b"" means the start."""
    return b"=" + member


def promote(client: Redis, name: str, token: str, position: bytes) -> bool:
    """Complete the counter, if this fill is still the one in progress."""
    at = keys.of_counter(name)
    return bool(_execute_one(client, PROMOTE, [at.members, at.intake, at.state, at.fill], token, position))


def sweep(
    client: Redis, name: str, token: str, members: Sequence[bytes], changed_at: str, *, departing: bool = False
) -> list[bytes]:
    """Remove the members that this sweep, or this batch of departures, still has marked, and return them.

    `changed_at` is of the table that was asked about them. Raises TableChanged if that is another one now.
    """
    at = keys.of_counter(name)
    on = (at.members, at.departing if departing else at.suspects, at.intake, at.state)
    calls: list[Call] = [(on, (token, changed_at, *chunk)) for chunk in chunks(members)]
    swept = _execute(client, SWEEP, calls)
    if -1 in swept:
        raise TableChanged(name)
    return [member for gone in swept for member in gone]


def begin_departing(client: Redis, name: str, token: str) -> None:
    """Begin a batch of departures. An earlier batch can no longer make marks, and resolves nothing."""
    at = keys.of_counter(name)
    pipe = client.pipeline(transaction=True)
    pipe.hset(at.state, "leaving", token)
    pipe.unlink(at.departing)
    pipe.execute()


def mark_departing(client: Redis, name: str, token: str, members: Sequence[bytes]) -> bool:
    """Mark the members of a batch; False if another batch has begun."""
    at = keys.of_counter(name)
    calls: list[Call] = [((at.state, at.departing), (token, *chunk)) for chunk in chunks(members)]
    return 0 not in _execute(client, MARK_DEPARTING, calls)


def resolve(client: Redis, name: str, was: State, token: str, left_through: int | None) -> bool:
    """Note how far departures are resolved, if the counter is still as the batch found it. None: a reconcile must do it."""
    at = keys.of_counter(name)
    on = (at.state, at.departing)
    return bool(_execute_one(client, RESOLVE, on, _seen(was.left_through), was.build, token, _seen(left_through)))


def verify(
    client: Redis,
    name: str,
    build: str,
    gap: int,
    at: datetime,
    drift: Drift,
    *,
    repaired: bool,
    left_through: int | None = None,
    changed_at: str = "",
) -> bool:
    """Note the drift that a reconcile found, if the counter is still the one that it looked at.

    `gap` is the number of members less the size when the run began. After a repair it is settled: the two are
    equal, and the counter has another build.
    All departures below `left_through` are resolved. `changed_at` is of the table that it was compared with. Raises
    SetChanged if the gap is another one now.
    """
    on = keys.of_counter(name)
    done = _execute_one(
        client,
        VERIFY,
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
        ),
    )
    if done == -1:
        raise SetChanged(f"something other than Rollcall has changed the set of {name} during the run")
    return bool(done)
