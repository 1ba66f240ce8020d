"""A counter's roll in Redis: the atomic steps of the protocol, and how its state is read.

The scripts beside this module (`lua/`) are the steps; each opens with the reason why it has to be atomic. Here they
get names and types. A function named `queue_…` puts its commands on a pipeline that the caller executes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, TypeAlias, TypeVar, cast

from redis import Redis
from redis.exceptions import NoScriptError

from shared_models import keys

# The most members that one Redis command names. 1,000 take about half a millisecond of the server's time:
# nobody else waits longer than that for a reconcile of whatever size.
CHUNK_MEMBERS = 1_000
# The most members that are looked at in one round trip by who looks at all of them. Redis carries out what lies in a
# client's buffer before it turns to the next client: 250 members are 0.1 to 0.2 ms that the others wait.
LOOK_MEMBERS = 250

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

T = TypeVar("T")
# One call of a script: its keys, its arguments.
Call: TypeAlias = tuple[Sequence[str], tuple[Any, ...]]


def chunks(items: Sequence[T], size: int = CHUNK_MEMBERS) -> Iterator[Sequence[T]]:
    """The items in runs of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def to_microseconds(moment: datetime) -> int:
    """An aware datetime as microseconds since 1970, exactly."""
    return (moment - EPOCH) // MICROSECOND


def from_microseconds(microseconds: bytes | int | None) -> datetime | None:
    """The way back; None stays None."""
    return None if microseconds is None else EPOCH + int(microseconds) * MICROSECOND


@dataclass(frozen=True, slots=True)
class Script:
    """One file of `lua/`, known to Redis by its SHA-1."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())

    def queue(self, pipe: Redis, on: Sequence[str], *args: Any) -> None:
        """Call it on a pipeline (or at once, on a client)."""
        pipe.execute_command("EVALSHA", self.sha, len(on), *on, *args)

    def call(self, client: Redis, on: Sequence[str], *args: Any) -> Any:
        """Call it now. Loads the script where Redis does not know it (yet, or since a restart)."""
        try:
            return client.evalsha(self.sha, len(on), *on, *args)
        except NoScriptError:
            # Nothing ran: the same connection may try again.
            return client.eval(self.text, len(on), *on, *args)


def _script(name: str) -> Script:
    return Script((files("shared_models") / "lua" / f"{name}.lua").read_text())


RECORD, ADVANCE, SETTLE, FILL, PROMOTE, SWEEP, VERIFY = map(
    _script, ("record", "advance", "settle", "fill", "promote", "sweep", "verify")
)


def _execute(client: Redis, script: Script, calls: list[Call]) -> list[Any]:
    """Calls of one script, in order, in one round trip. Not a transaction: each call is atomic by itself."""

    def once() -> list[Any]:
        pipe = client.pipeline(transaction=False)
        for on, args in calls:
            script.queue(pipe, on, *args)
        return pipe.execute()

    try:
        return once()
    except NoScriptError:
        client.script_load(script.text)
        return once()  # a call that did run the first time is repeated: every step but `fill` gives the same twice


def record(
    client: Redis, members_by_counter: Mapping[str, Sequence[bytes]], xact: int | None = None, source: str = ""
) -> int:
    """Add members to their counters, in one round trip; how many were new.

    `xact` and `source` raise the watermark: the transaction that stored the rows, or the highest one that a pass is about
    to claim. Raises redis.RedisError; any part may have been done then, which is harmless: every member has a committed
    row.
    """
    calls: list[Call] = []
    for name, members in members_by_counter.items():
        at = keys.of_counter(name)
        on = (at.members, at.suspects, at.state, at.fill)
        calls += [(on, ("" if xact is None else xact, source, *chunk)) for chunk in chunks(members)]
    return sum(_execute(client, RECORD, calls)) if calls else 0


def advance(client: Redis, name: str, was: State, cursor: int, complete_through: datetime | None) -> bool:
    """Move the cursor, if the counter is still as the pass found it. None: complete_through stays where it was."""
    through = "" if complete_through is None else to_microseconds(complete_through)
    return bool(ADVANCE.call(client, [keys.of_counter(name).state], was.cursor, was.source, cursor, through))


def settle(client: Redis, name: str, was: State, *, lost: bool) -> bool:
    """Make the counter cold where its set was lost, or take the doubt off it; whether it is cold now."""
    at = keys.of_counter(name)
    doubt = "" if was.doubt is None else was.doubt
    return bool(SETTLE.call(client, [at.members, at.state], was.cursor, doubt, int(lost)))


def fill(client: Redis, name: str, token: str, position: bytes, members: Sequence[bytes]) -> bytes | None:
    """Add a chunk of a fill, and move its position; the new position, or None where the fill has been superseded."""
    at = keys.of_counter(name)
    calls: list[Call] = []
    for chunk in chunks(members):
        calls.append(((at.members, at.suspects, at.fill), (token, position, *chunk)))
        position = position_after(chunk[-1])
    return None if -1 in _execute(client, FILL, calls) else position


def position_after(member: bytes) -> bytes:
    """How a fill or a run notes that it has read up to this member. The empty text is a member; b"" is the start."""
    return b"=" + member


def promote(client: Redis, name: str, token: str, position: bytes) -> bool:
    """Make the counter live, if this fill is still the one in progress."""
    at = keys.of_counter(name)
    return bool(PROMOTE.call(client, [at.state, at.fill, at.members], token, position))


def sweep(client: Redis, name: str, token: str, members: Sequence[bytes]) -> list[bytes]:
    """Take out the members that this sweep still suspects, and give them back."""
    at = keys.of_counter(name)
    calls: list[Call] = [((at.members, at.suspects), (token, *chunk)) for chunk in chunks(members)]
    return [member for gone in _execute(client, SWEEP, calls) for member in gone]


def verify(client: Redis, name: str, build: str, at: datetime, missing: int, extra: int) -> bool:
    """Note the drift that a reconcile found, if the counter is still the one that it looked at."""
    return bool(VERIFY.call(client, [keys.of_counter(name).state], build, to_microseconds(at), missing, extra))


@dataclass(frozen=True, slots=True)
class Drift:
    """What a reconcile found: members in the table only, and members in the set only."""

    missing: int
    extra: int


@dataclass(frozen=True, slots=True)
class State:
    """What Redis says of a counter, read in one atomic step. Xacts are 64-bit integers, moments are aware."""

    count: int
    cursor: int | None
    source: str
    build: str
    complete_through: datetime | None
    watermark: int
    watermark_source: str
    verified_at: datetime | None
    drift: Drift | None
    # The fill in progress: members read so far and about how many there are; None where there is no fill.
    filled: tuple[int, int] | None
    # The cursor when the set came into being under it; None where there is nothing to settle.
    doubt: int | None = None

    @property
    def cold(self) -> bool:
        """Never completed, or lost: its set is not to be counted."""
        return self.cursor is None


_FIELDS = (
    ["cursor", "source", "build", "complete_through", "watermark", "watermark_source", "verified_at", "missing", "extra",
     "doubt"]
)  # fmt: skip


def queue_state(pipe: Any, name: str) -> None:
    """Queue what `parse_state` reads, on a sync or async pipeline. The pipeline must be a transaction (MULTI):
    a count from before Redis was emptied with a state from after it, or the other way round, is not a fact."""
    at = keys.of_counter(name)
    pipe.scard(at.members)
    pipe.hmget(at.state, _FIELDS)
    pipe.hmget(at.fill, ["token", "read", "expected"])


def parse_state(count: int, state: Sequence[bytes | None], fill: Sequence[bytes | None]) -> State:
    """The three replies of `queue_state`, typed."""
    cursor, source, build, through, watermark, watermark_source, verified_at, missing, extra, doubt = state
    return State(
        count=count,
        cursor=None if cursor is None else int(cursor),
        source=(source or b"").decode(),
        build=(build or b"").decode(),
        complete_through=from_microseconds(through),
        watermark=int(watermark or 0),
        watermark_source=(watermark_source or b"").decode(),
        verified_at=from_microseconds(verified_at),
        drift=None if verified_at is None else Drift(int(missing or 0), int(extra or 0)),
        filled=None if fill[0] is None else (int(fill[1] or 0), int(fill[2] or 0)),
        doubt=None if doubt is None else int(doubt),
    )


def read_fields(client: Redis, key: str, *names: str) -> list[Any]:
    """Fields of a hash, as bytes; None for each that is not there."""
    return cast("list[Any]", client.hmget(key, names))


def read_states(client: Redis, names: Sequence[str]) -> dict[str, State]:
    """The state of each counter, all in one round trip and one moment."""
    pipe = client.pipeline(transaction=True)
    for name in names:
        queue_state(pipe, name)
    replies = pipe.execute()
    return {name: parse_state(*replies[3 * i : 3 * i + 3]) for i, name in enumerate(names)}
