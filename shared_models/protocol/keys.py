"""Every key that Rollcall has in Redis. No other module writes a key string.

The database (the number at the end of REDIS_URL) belongs to Rollcall alone. `{…}` is a hash tag: all keys of one declared
counter are in one slot, so that its atomic steps may touch several of them, and Redis can intersect its groups. WHAT is
`{users}:users.1f2e3d4c`: the tag, the derived counter's name, a dot, and its definition (`Counter.definition`). So an edited
declaration gives another counter, which is cold until the keeper has built it. A service that still has the old file continues
with the old one. The 2 is the layout: in a new layout all counters are cold, too.

A counter with several shards has these keys once for each part: `{users.07.1}:users.1f2e3d4c` (`tag_of`). Part 7 of 16 may have
the tag of part 7 of 32, and no key of it: the number of shards is in the definition.

    rollcall:2:WHAT:members    the elements; absent while there are none. By the counter's storage:
                               SET     member
                               ZSET    group -> how many members it has (a directory)
                               HASH    member -> the last day on which it has a row
    rollcall:2:WHAT:members:GENERATION:GROUP  SET  the members of one group. If the directory does not name it, it is of no group
    rollcall:2:WHAT:names      ZSET    the groups of the directory, all with score 0: in the order of their bytes
    rollcall:2:WHAT:broken     HASH    group -> token: something else has changed its set; it was dropped, and is read again
    rollcall:2:WHAT:days       HASH    day -> how many members were last seen on it
    rollcall:2:WHAT:suspects   HASH    element (last seen: member) -> token of the sweep that suspects it of having no row
    rollcall:2:WHAT:departing  HASH    the same -> token of the batch of departures that it is in
    rollcall:2:WHAT:intake     HASH    what ingest writes, too:
                                          size              entries that the protocol has added to `members`, less those that
                                                            it has removed. If there is another number of entries,
                                                            something else has changed it, and the counter is not live
                                          generation        of the sets of groups: the token of the fill that began them
                                          elements          how many members all groups have together
                                          build             token of the fill that completed this counter. If there is a cursor,
                                                            a missing size, or another build, means: lost
                                          fill              token of the fill in progress
                                          watermark         highest xact that ingest has acknowledged into it, or that a
                                                            pass relies on: a sweep has to see it first …
                                          watermark_source  … and the source that this xact belongs to
                                          waited            1 if ingest waits for replicas: see steps.Copies
    rollcall:2:WHAT:state      HASH    cursor            every row with a lower xact is counted; absent means cold
                                          complete_through  microseconds since 1970 on the primary's clock: every row
                                                            committed before is counted
                                          source            "system identifier/database/timeline" that the cursor belongs to
                                          build             token of the fill that completed this counter, or of the
                                                            reconcile that last settled a gap of it
                                          verified_at       microseconds since 1970: end of the last reconcile …
                                          missing, extra    … the drift that it found …
                                          repaired          … and 1 if it has repaired it
                                          left_through      departures with a lower xact are resolved; absent means that a
                                                            reconcile has to resolve them
                                          leaving           token of the batch of departures that is being resolved
                                          swept             how many members sweeps have removed
                                          fingerprint       the table's last one: see manage_service.replica.sql
                                          parts             … a hash of its columns, and its parts as oid/file
                                          changed_at        microseconds since 1970: when it was first seen …
                                          settled           … and the changed_at that a fill or a reconcile has settled;
                                                            while the two differ, complete_through stands still
                                          refused           why the keeper cannot build it
                                          watermark_reset_at  microseconds since 1970: when the keeper set the watermark
                                          again
    rollcall:2:WHAT:fill       HASH    the fill in progress: token, source, horizon, lsn, complete_through,
                                          fingerprint, changed_at, jumping, gap, read, expected, position ("=" and
                                          the last member read; absent at the start)
    rollcall:2:WHAT:samples    LIST    "microseconds count" of the last hour, the newest last: see shared_models.protocol.samples
    rollcall:2:{all-runs}:ID      HASH    one run: see manage_service.runs.registry
    rollcall:2:{all-runs}         ZSET    run id -> when it was asked for (seconds since 1970); bounded
    rollcall:2:{all-runs}:open    LIST    ids of runs that have not ended, in the order in which they were asked for
    rollcall:2:lock:NAME          STRING  who holds a lock, as "host:pid:random", with a time to live
    rollcall:2:keeper             HASH    what the keeper last did: ticked_at (microseconds), job, and failure, why it has not
                                          worked since; and what the replica last showed: source (empty while it cannot be
                                          reached), committed_through (microseconds), behind_bytes, held_microseconds,
                                          passed_over (see manage_service.keeper.loop)
    rollcall:2:totals             HASH    numbers that only grow: see manage_service.runs.totals
    rollcall:2:rate:SERVICE:TOKEN:SECOND  STRING  requests of a token (its name) in one second, for a few seconds

Ingest writes the keys of a counter from `members` to `intake`, except `broken`, and reads the state. Manage writes everything,
query writes nothing. Ingest and manage write their own rates. The others check the values that ingest writes: see
`shared_models.protocol.states`. compose/redis/users.acl gives each service exactly these rights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import count

from redis.crc import key_slot

from shared_models import declarations
from shared_models.declarations import Counter, Storage, get_counter

LAYOUT = 2
PREFIX = f"rollcall:{LAYOUT}:"
SLOTS = 16_384  # of a cluster


@dataclass(frozen=True, slots=True)
class CounterKeys:
    """The keys of one derived counter, and what holds its elements."""

    storage: Storage
    members: str
    suspects: str
    departing: str
    intake: str
    state: str
    fill: str
    samples: str
    names: str
    broken: str
    days: str

    def group(self, generation: object, group: bytes) -> bytes:
        """The set of one group; `generation` as Redis gave it: bytes, or None before the first."""
        assert generation is None or isinstance(generation, bytes)  # noqa: S101  (for the type checker)
        return b"%s:%s:%s" % (self.members.encode(), generation or b"", group)


# By name, for the declarations that they were made of: a file is read once, and tests read others.
_keys: dict[str, CounterKeys] = {}
_declared: tuple[Counter, ...] = ()


def of_counter(name: str) -> CounterKeys:
    """The keys of the part with this name, as it is declared here and now."""
    global _keys, _declared
    if _declared is not declarations.COUNTERS:
        _keys, _declared = {each.name: keys_of(each) for each in declarations.parts()}, declarations.COUNTERS
    # A counter that was removed from the file gets keys that do not exist.
    return _keys.get(name) or _keys_at(name, name, Storage.SET)


def keys_of(counter: Counter) -> CounterKeys:
    """The keys of this part."""
    return _keys_at(tag_of(counter), what_of(counter), counter.storage)


def of_samples(name: str) -> str:
    """The samples of the derived counter with this name: they are where its first part is."""
    return of_counter(get_counter(name).parts[0].name).samples


def home_of(part: Counter) -> str:
    """A key of this part: the others are where this one is."""
    return of_counter(part.name).state


def tag_of(part: Counter) -> str:
    """The hash tag of a part: "users", or "users.07.1" for part 7.

    Part i of n lies in the i-th of n equal slices of the slots, so that servers with equal slices have equally many parts. The
    last number is the smallest one with which it does.
    """
    tag = part.tag or part.key_name.partition(":")[0]
    if part.shards == 1:
        return tag
    return _tag_in_slice(f"{tag}.{part.shard:02}", part.shard, part.shards)


@cache
def _tag_in_slice(stem: str, shard: int, shards: int) -> str:
    return next(tag for n in count() if key_slot((tag := f"{stem}.{n}").encode()) * shards // SLOTS == shard)


def _keys_at(tag: str, what: str, storage: Storage) -> CounterKeys:
    return CounterKeys(storage, *(f"{PREFIX}{{{tag}}}:{what}:{each}" for each in CounterKeys.__slots__[1:]))


def what_of(counter: Counter) -> str:
    """How keys name a derived counter."""
    return f"{counter.key_name}.{counter.definition}"


def what_in(key: str) -> str | None:
    """The counter that a key names, or named in an earlier version; None if it names none."""
    found = re.match(re.escape(PREFIX) + r"\{([^}]+)\}:(?:(.+?\.[0-9a-f]{8}):)?", key, re.DOTALL)
    return None if found is None else found[2] or found[1]


def declared_prefixes() -> tuple[str, ...]:
    """The beginnings of the keys of the counters that are declared here and now."""
    return tuple(keys_of(each).members.removesuffix("members") for each in declarations.parts())


def of_run(run_id: str) -> str:
    """The record of one run."""
    return f"{RUNS}:{run_id}"


def of_lock(name: str) -> str:
    """A lock that avoids double work. If two processes hold it, that does no harm: the protocol is safe without it."""
    return f"{PREFIX}lock:{name}"


def of_rate(service: str, token: str, second: int) -> str:
    """How many requests a token (its name) has sent to a service in one second (since 1970)."""
    return f"{PREFIX}rate:{service}:{token}:{second}"


COUNTERS = f"{PREFIX}{{*}}:*"  # the keys of all counters, as SCAN takes it; and those of runs
# In one slot, because they change together. No counter has this tag.
RUNS = f"{PREFIX}{{all-runs}}"
RUNS_OPEN = f"{RUNS}:open"
KEEPER = f"{PREFIX}keeper"
TOTALS = f"{PREFIX}totals"
