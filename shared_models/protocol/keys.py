"""Every key that Rollcall has in Redis. No other module writes a key string.

The database (the number at the end of REDIS_URL) belongs to Rollcall alone. `{…}` is a hash tag: all keys of one counter
are in one slot, so that its atomic steps may touch several of them. TAG is the counter's name, a dot, and its definition
(`Counter.definition`): `{users.1f2e3d4c}`. So another declaration is another counter, cold until it is built;
a service with the old file continues with the old one. The 2 is the layout: in a new one all counters are cold, too.

    rollcall:2:{TAG}:members    SET     the members; absent while the count is zero
    rollcall:2:{TAG}:suspects   HASH    member -> token of the sweep that suspects it of having no row
    rollcall:2:{TAG}:departing  HASH    member -> token of the batch of departures that it is in
    rollcall:2:{TAG}:intake     HASH    what ingest writes, too:
                                          size              members that the protocol has added to the set, less those that
                                                            it has removed: if the set has another number of members,
                                                            something else has changed it, and the counter is not live
                                          build             token of the fill that completed this counter; under a cursor
                                                            a missing size, or another build, means: lost
                                          fill              token of the fill in progress
                                          watermark         highest xact that ingest has acknowledged into it, or that a
                                                            pass relies on: a sweep has to see it first …
                                          watermark_source  … and the source that this xact belongs to
    rollcall:2:{TAG}:state      HASH    cursor            every row with a lower xact is counted; absent means cold
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
                                          changed_at        microseconds since 1970: when it was first seen …
                                          settled           … and the changed_at that a fill or a reconcile has settled;
                                                            while the two differ, complete_through stands still
                                          refused           why the keeper cannot build it
                                          watermark_reset_at  microseconds since 1970: when the keeper set the watermark
                                          again
    rollcall:2:{TAG}:fill       HASH    the fill in progress: token, source, horizon, lsn, complete_through,
                                          fingerprint, changed_at, jumping, gap, read, expected, position ("=" and
                                          the last member read; absent at the start)
    rollcall:2:{TAG}:samples    LIST    "microseconds count" of the last hour, the newest last: see shared_models.protocol.samples
    rollcall:2:run:{ID}           HASH    one run: see manage_service.runs.registry
    rollcall:2:runs               ZSET    run id -> when it was asked for (seconds since 1970); bounded
    rollcall:2:runs:open          LIST    ids of runs that have not ended, in the order in which they were asked for
    rollcall:2:lock:NAME          STRING  who holds a lock, as "host:pid:random", with a time to live
    rollcall:2:keeper             HASH    what the keeper last did: ticked_at (microseconds), job, and failure, why it has not
                                          worked since; and what the replica last showed: source (empty while it cannot be
                                          reached), committed_through (microseconds), behind_bytes, held_microseconds (see
                                          manage_service.keeper.loop)
    rollcall:2:totals             HASH    numbers that only grow: see manage_service.runs.totals
    rollcall:2:rate:SERVICE:TOKEN:SECOND  STRING  requests of a token (its name) in one second, for a few seconds

Ingest writes the first four keys of a counter, and reads the state. Manage writes everything, query writes nothing.
Ingest and manage write their own rates. The others check the values that ingest writes: see
`shared_models.protocol.states`. compose/redis/users.acl gives each service exactly these rights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from shared_models import declarations

LAYOUT = 2
PREFIX = f"rollcall:{LAYOUT}:"


@dataclass(frozen=True, slots=True)
class CounterKeys:
    """The keys of one counter."""

    members: str
    suspects: str
    departing: str
    intake: str
    state: str
    fill: str
    samples: str


def of_counter(name: str) -> CounterKeys:
    """The keys of the counter with this name, by its present declaration."""
    for counter in declarations.COUNTERS:
        if counter.name == name:
            return _of_tag(PREFIX, f"{name}.{counter.definition}")
    return _of_tag(PREFIX, name)  # removed from the file: these keys do not exist


@lru_cache(maxsize=1_000)
def _of_tag(prefix: str, tag: str) -> CounterKeys:
    return CounterKeys(*(f"{prefix}{{{tag}}}:{name}" for name in CounterKeys.__slots__))


def tag_of(key: str) -> str | None:
    """The tag of the counter that a key belongs to; None if it belongs to no counter."""
    found = re.match(re.escape(PREFIX) + r"\{([^}]+)\}:", key)
    return None if found is None else found[1]


def declared_tags() -> set[str]:
    """The tags of the declared counters."""
    return {f"{counter.name}.{counter.definition}" for counter in declarations.COUNTERS}


def of_run(run_id: str) -> str:
    """The record of one run."""
    return f"{PREFIX}run:{run_id}"


def of_lock(name: str) -> str:
    """A lock that avoids double work. If two processes hold it, that does no harm: the protocol is safe without it."""
    return f"{PREFIX}lock:{name}"


def of_rate(service: str, token: str, second: int) -> str:
    """How many requests a token (its name) has sent to a service in one second (since 1970)."""
    return f"{PREFIX}rate:{service}:{token}:{second}"


COUNTERS = f"{PREFIX}{{*}}:*"  # the keys of all counters, as SCAN takes it
RUNS = f"{PREFIX}runs"
RUNS_OPEN = f"{PREFIX}runs:open"
KEEPER = f"{PREFIX}keeper"
TOTALS = f"{PREFIX}totals"
