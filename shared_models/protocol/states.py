"""The state of a counter in Redis: read in one atomic step, typed, and checked for impossible values.

Ingest writes one of the hashes, and people with a console may write any of them. A value that cannot be parsed, or
is impossible (a moment in the future), is treated as missing, for this counter alone. `State.disbelieved` names it,
and the keeper repairs it: it builds the counter, or reconciles it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.nodes import Nodes
from shared_models.protocol import keys, storages
from shared_models.protocol.moments import from_microseconds

V = TypeVar("V")

# A server does not change that while it runs.
_in_cluster: WeakKeyDictionary[Redis, bool] = WeakKeyDictionary()

# Clocks differ by less than this. No clock has shown a moment that is further in the future.
CLOCK_SLACK = timedelta(hours=1)
# Postgres keeps an xact in 64 bits, with a sign.
XACT_LIMIT = 1 << 63
# As Redis and the scripts write it. They compare xacts by their lengths, and Redis adds to no other number.
NUMBER = re.compile(rb"0|-?[1-9][0-9]*")
SOURCE = re.compile(r"\d+/\d+/\d+")
# Lua counts exactly up to here.
SIZE_LIMIT = 10**15


@dataclass(frozen=True, slots=True)
class Drift:
    """The drift that a reconcile found: how many members are in the table only, and how many in the set only."""

    missing: int
    extra: int


@dataclass(frozen=True, slots=True)
class State:
    """A counter in Redis. Xacts are 64-bit integers, moments are aware; None means missing."""

    count: int  # entries: members, or groups
    size: int | None = None  # entries that the protocol has added, less those that it has removed
    elements: int | None = None  # of a counter by group: the members of all groups together
    cursor: int | None = None
    source: str = ""
    build: str = ""
    intake_build: str = ""
    complete_through: datetime | None = None
    watermark: int | None = None
    watermark_source: str = ""
    watermark_reset_at: datetime | None = None
    verified_at: datetime | None = None
    drift: Drift | None = None
    repaired: bool = False  # the reconcile that found the drift has repaired it
    filled: tuple[int, int] | None = None  # the fill in progress: members read so far, and about how many there are
    left_through: int | None = None  # departures with a lower xact are resolved
    swept: int = 0  # members that sweeps have removed
    fingerprint: str = ""  # the table's last one
    changed_at: str = ""  # when it was first seen (microseconds since 1970), which names the change …
    settled: str = ""  # … and the one that a fill or a reconcile has settled
    refused: str = ""  # why the keeper cannot build it
    disbelieved: tuple[str, ...] = ()  # fields with impossible values
    unreadable: str = ""  # Redis' error if the counter cannot be read at all
    away: str = ""  # why its server cannot be reached
    history: str = ""  # of the Redis that it was read from (`history_in`); only if `read_states` has read it

    @property
    def lost(self) -> bool:
        """Never completed, or lost: the fields that a cursor needs are missing, or belong to another build."""
        return self.cursor is None or self.size is None or self.build != self.intake_build

    @property
    def gap(self) -> int:
        """Members that something other than the protocol has added to the set, less those that it has removed."""
        return self.count - (self.size or 0)

    @property
    def cold(self) -> bool:
        """Whether it has no correct count: it is lost, or something other than the protocol has changed it."""
        return self.lost or self.gap != 0 or self.complete_through is None

    @property
    def withheld(self) -> str:
        """Why complete_through stands still although the counter is live: a sentence, or empty."""
        if self.cold or self.changed_at == self.settled:
            return ""
        return (
            "its table has changed (partitions, TRUNCATE, a rewrite, types or labels): "
            "complete_through stands still until the keeper has reconciled it"
        )

    @property
    def condition(self) -> str:
        """Whether it can be counted, in a word: "live", or why not."""
        if not self.cold:
            return "live"
        if self.away:
            return "away"
        if self.unreadable:
            return "unreadable"
        if self.refused:
            return "refused"
        if self.lost:
            return "lost" if self.filled is None else "building"
        return "changed" if self.gap else "unclaimed"

    @property
    def why_cold(self) -> str:
        """Why it cannot be counted, in a sentence; empty if it can."""
        holder, entries, mends = "set", "members", "reconciles"
        if self.elements is not None:
            holder, entries, mends = "directory", "groups", "builds"
        return {
            "live": "",
            "away": f"the server that holds a part of it does not answer ({self.away})",
            "unreadable": f"a key of it in Redis has a wrong type ({self.unreadable}); the keeper removes it and builds again",
            "refused": f"the keeper cannot build it: {self.refused}",
            "lost": "it has not been built yet, or it was lost; the keeper builds it",
            "building": "the keeper is building it",
            "changed": f"its {holder} has {self.count} {entries}, but {self.size} were recorded: something other than Rollcall has "
            f"changed it; the keeper {mends} it",
            "unclaimed": "its complete_through is missing or impossible; the keeper's next pass repairs it",
        }[self.condition]


class _Reader:
    """Fields of one hash, by name; remembers those with impossible values."""

    def __init__(self, names: Sequence[str], values: Sequence[bytes | None], now: datetime) -> None:
        self._values = dict(zip(names, values, strict=True))
        self._now = now
        self.disbelieved: list[str] = []

    def text(self, name: str) -> str:
        return (self._values[name] or b"").decode(errors="replace")

    def number(self, name: str, limit: int, low: int = 0) -> int | None:
        value = self._values[name]
        if value is None:
            return None
        number = int(value) if len(value) <= 20 and NUMBER.fullmatch(value) else limit
        if low <= number < limit:
            return number
        self.disbelieved.append(name)
        return None

    def moment(self, name: str) -> datetime | None:
        try:
            found = from_microseconds(self._values[name])
            if found is None or found <= self._now + CLOCK_SLACK:
                return found
        except (ValueError, OverflowError):
            pass
        self.disbelieved.append(name)
        return None


_STATE = (
    "cursor", "source", "build", "complete_through", "verified_at", "missing", "extra", "repaired", "refused",
    "watermark_reset_at", "left_through", "swept", "fingerprint", "changed_at", "settled",
)  # fmt: skip
_INTAKE = ("size", "build", "watermark", "watermark_source", "elements")
_FILL = ("token", "read", "expected")
# How many replies `queue_state` adds for one counter: `parse_states` cuts a long answer by it.
REPLIES = 4


class Pipe(Protocol):
    """A pipeline of redis-py, sync or async."""

    def scard(self, name: str, /) -> object: ...
    def zcard(self, name: str, /) -> object: ...
    def hlen(self, name: str, /) -> object: ...
    def hmget(self, name: str, keys: Sequence[str], /) -> object: ...


def queue_state(pipe: Pipe, name: str) -> None:
    """Queue what `parse_state` reads, on a sync or async pipeline. The pipeline must be a transaction (MULTI):
    a count from before Redis was emptied with a state from after it, or the other way round, is not a fact.
    Execute it with raise_on_error=False: a key of another type concerns one counter only."""
    at = keys.of_counter(name)
    storages.queue_count(pipe, at)
    pipe.hmget(at.intake, _INTAKE)
    pipe.hmget(at.state, _STATE)
    pipe.hmget(at.fill, _FILL)


def parse_state(replies: Sequence[Any], now: datetime | None = None) -> State:
    """The replies of `queue_state` for one counter, typed. Raises redis.RedisError if they are Redis' refusal."""
    for reply in replies:
        if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            return State(count=0, unreadable=str(reply))
        if isinstance(reply, Exception):
            raise reply
    now = now or datetime.now(UTC)
    count, of_intake, of_state, of_fill = replies
    intake, state, fill = _Reader(_INTAKE, of_intake, now), _Reader(_STATE, of_state, now), _Reader(_FILL, of_fill, now)
    verified_at = state.moment("verified_at")
    missing, extra = state.number("missing", SIZE_LIMIT), state.number("extra", SIZE_LIMIT)
    proved = verified_at is not None and missing is not None and extra is not None
    filled = None
    if fill.text("token"):
        filled = fill.number("read", SIZE_LIMIT) or 0, fill.number("expected", SIZE_LIMIT) or 0
    cursor, left_through = state.number("cursor", XACT_LIMIT, low=1), state.number("left_through", XACT_LIMIT, low=1)
    if cursor is not None and left_through is not None and left_through > cursor:
        # Departures are read below the cursor only. A `left_through` above it would hide the next ones.
        state.disbelieved.append("left_through")
        left_through = None
    return State(
        count=count,
        size=intake.number("size", SIZE_LIMIT, low=-SIZE_LIMIT),
        elements=intake.number("elements", SIZE_LIMIT),
        cursor=cursor,
        source=state.text("source"),
        build=state.text("build"),
        intake_build=intake.text("build"),
        complete_through=state.moment("complete_through"),
        watermark=intake.number("watermark", XACT_LIMIT, low=1)
        if SOURCE.fullmatch(intake.text("watermark_source"))
        else None,
        watermark_source=intake.text("watermark_source"),
        watermark_reset_at=state.moment("watermark_reset_at"),
        verified_at=verified_at if proved else None,
        drift=Drift(missing, extra) if proved else None,  # type: ignore[arg-type]
        repaired=state.text("repaired") == "1",
        filled=filled,
        left_through=left_through,
        swept=state.number("swept", SIZE_LIMIT) or 0,
        fingerprint=state.text("fingerprint"),
        changed_at=state.text("changed_at"),
        settled=state.text("settled"),
        refused=state.text("refused"),
        disbelieved=tuple(intake.disbelieved + state.disbelieved + fill.disbelieved),
    )


def parse_states(names: Sequence[str], replies: Sequence[Any]) -> dict[str, State]:
    """The replies of `queue_state` for several counters, in their order. Raises redis.RedisError."""
    return {name: parse_state(replies[i * REPLIES : (i + 1) * REPLIES]) for i, name in enumerate(names)}


def read_states(client: Redis, names: Sequence[str]) -> dict[str, State]:
    """The state of each of these parts, which this server holds; all in one round trip. Raises redis.RedisError.

    The states of one counter are of one moment; those of others may be of another one: in a cluster no transaction covers both.
    The history of the server is of a moment before.
    """
    pipe, found = client.pipeline(transaction=False), {}
    pipe.info("replication")
    in_cluster = is_in_cluster(client)
    if in_cluster:
        pipe.execute_command("CLUSTER INFO")
    for name in names:
        pipe.execute_command("MULTI")
        queue_state(pipe, name)
        pipe.execute_command("EXEC")
    info, *replies = pipe.execute(raise_on_error=False)
    history = history_in(info, replies.pop(0) if in_cluster else None)
    for number, name in enumerate(names, 1):
        # Redis says OK to MULTI, and QUEUED to each command; EXEC has all replies.
        done = replies[number * (REPLIES + 2) - 1]
        if isinstance(done, Exception):
            raise done
        found[name] = replace(parse_state(done), history=history)
    return found


def is_in_cluster(client: Redis) -> bool:
    """Whether this server is one of a cluster. Raises redis.RedisError."""
    if client not in _in_cluster:
        _in_cluster[client] = client.info("cluster").get("cluster_enabled") == 1
    return _in_cluster[client]


def history_in(info: Mapping[str, Any] | Exception, cluster: Mapping[str, str] | Exception | None = None) -> str:
    """Redis' name for its own history (see lua/history.lua), by INFO replication, and CLUSTER INFO of a server in a cluster.

    Raises redis.RedisError.
    """
    if isinstance(info, Exception):
        raise info
    if isinstance(cluster, Exception):
        raise cluster
    if info.get("role") != "master":
        return ""  # a replica: nothing can be claimed by what is read from it
    if not info.get("master_replid"):
        raise RedisError(
            "INFO replication says no master_replid: Rollcall cannot know whether this Redis has lost writes"
        )
    name = str(info["master_replid"])
    if cluster is None:
        return name
    if not cluster.get("cluster_my_epoch"):
        raise RedisError(
            "CLUSTER INFO says no cluster_my_epoch: Rollcall cannot know whether slots have moved away and back"
        )
    return f"{name}/{cluster['cluster_my_epoch']}"


def read_state(client: Redis, name: str) -> State:
    """The state of one counter. Raises redis.RedisError."""
    return read_states(client, [name])[name]


def read_wholes(nodes: Nodes[Redis], counters: Sequence[Counter] | None = None) -> dict[str, State]:
    """The state of these derived counters, or of all that are kept, by name: see `combine`. Raises redis.RedisError; if one of
    several servers does not answer, only the counters that it has parts of are cold."""
    counters = declarations.kept() if counters is None else counters
    found: dict[str, State] = {}
    for client, parts in nodes.by_client([part for each in counters for part in each.parts], keys.home_of):
        names = [part.name for part in parts]
        try:
            found |= read_states(client, names)
        except RedisError as error:
            if nodes.is_one:
                raise
            nodes.look_again()
            found |= dict.fromkeys(names, State(count=0, away=str(error)))
    return {each.name: combine([found[part.name] for part in each.parts]) for each in counters}


def combine(parts: Sequence[State]) -> State:
    """The state of a derived counter with these parts. It is cold if one of them is, for that one's reason.

    Counts add up; what is claimed is what all of them claim. Of a counter by group, `count` is the number of groups in the part
    that has most: most groups have members in every part.
    """
    if len(parts) == 1:
        return parts[0]
    cold = next((part for part in parts if part.cold), None)
    filled = [part.filled for part in parts if part.filled is not None]
    if cold is not None:
        return replace(cold, filled=added(filled), disbelieved=union(part.disbelieved for part in parts))
    counts, drifts = [part.count for part in parts], [part.drift for part in parts]
    is_grouped = all(part.elements is not None for part in parts)
    known = [drift for drift in drifts if drift is not None]
    return replace(
        # The one that is furthest behind says what the counter is waiting for.
        min(parts, key=lambda part: (part.complete_through is not None, part.complete_through)),
        count=max(counts) if is_grouped else sum(counts),
        size=max(counts) if is_grouped else sum(counts),
        elements=sum(part.elements or 0 for part in parts) if is_grouped else None,
        cursor=least(part.cursor for part in parts),
        watermark=max((part.watermark for part in parts if part.watermark is not None), default=None),
        verified_at=least(part.verified_at for part in parts),
        drift=Drift(sum(each.missing for each in known), sum(each.extra for each in known))
        if len(known) == len(parts)
        else None,
        repaired=all(part.repaired for part in parts),
        filled=added(filled),
        left_through=least(part.left_through for part in parts),
        swept=sum(part.swept for part in parts),
        disbelieved=union(part.disbelieved for part in parts),
    )


def least(values: Iterable[V | None]) -> V | None:
    """The least value; None if one of them is missing."""
    found = list(values)
    return None if None in found else min(found)  # type: ignore[type-var]


def added(filled: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Fills in progress, together."""
    return (sum(read for read, _ in filled), sum(expected for _, expected in filled)) if filled else None


def union(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The names, each once."""
    return tuple(dict.fromkeys(name for some in names for name in some))


def read_fields(client: Redis, key: str, *names: str) -> list[bytes | None]:
    """Fields of a hash, as bytes; None for each that is not there."""
    return cast("list[bytes | None]", client.hmget(key, names))


def remove_misfits(client: Redis, name: str) -> Mapping[str, str]:
    """Remove the keys of a counter that have a wrong type; returns them, with their type.

    Rollcall has not written them, and the counter has no count while they are there.
    """
    at = keys.of_counter(name)
    expected = {
        at.members: storages.type_of(at.storage),
        at.names: "zset",
        at.broken: "hash",
        at.days: "hash",
        at.suspects: "hash",
        at.departing: "hash",
        at.intake: "hash",
        at.state: "hash",
        at.fill: "hash",
    }
    found = {key: cast("bytes", client.type(key)).decode() for key in expected}
    misfits = {key: kind for key, kind in found.items() if kind not in ("none", expected[key])}
    if at.broken in misfits and at.state not in misfits:
        # Now nobody knows which groups have to be read again. So the keeper builds the counter.
        client.hdel(at.state, "cursor")
    if misfits:
        client.unlink(*misfits)
    return misfits
