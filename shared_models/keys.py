"""Every key that Rollcall has in Redis. No key string stands anywhere else.

The database (the number at the end of REDIS_URL) belongs to Rollcall alone. `{…}` is a hash tag: all keys of one counter
live in one slot, so that its atomic steps may touch several of them. The 1 is the layout: a new layout is a set of
cold counters, which get built.

    rollcall:1:{users}:members    SET     the members; absent while the count is zero
    rollcall:1:{users}:suspects   HASH    member -> token of the sweep that suspects it of having no row
    rollcall:1:{users}:state      HASH    cursor            every row with a lower xact is counted; absent means cold
                                          complete_through  microseconds since 1970 on the primary's clock: every row
                                                            committed before is counted
                                          source            "system identifier/timeline" that the cursor belongs to
                                          build             token of the fill that completed this counter
                                          watermark         highest xact acknowledged into it by ingest, or relied on
                                                            by a pass: a sweep has to see it first …
                                          watermark_source  … and the source that this xact belongs to
                                          verified_at       microseconds since 1970: end of the last reconcile …
                                          missing, extra    … and the drift that it found
                                          doubt             the cursor at the moment when the set came into being under
                                                            it: the keeper settles whether the set was empty, or lost
    rollcall:1:{users}:fill       HASH    the fill in progress: token, source, horizon, lsn, complete_through, jumping,
                                          position ("=" and the last member read; absent at the start), read, expected
    rollcall:1:{users}:samples    LIST    "microseconds count" of the last hour, the newest last: see shared_models.samples
    rollcall:1:run:{ID}           HASH    one run: see manage_service.runs
    rollcall:1:runs               ZSET    run id -> when it was asked for (seconds since 1970); bounded
    rollcall:1:runs:open          LIST    ids of runs that have not ended, in the order in which they were asked for
    rollcall:1:lock:NAME          STRING  who holds a lock, as "host:pid:random", with a time to live
    rollcall:1:keeper             HASH    what the keeper last did: ticked_at (microseconds), job, and failure, why it could not
                                          since; and what the replica last showed it: source (empty while it cannot be
                                          reached), committed_through (microseconds), behind_bytes, held_microseconds (see
                                          manage_service.keeper)
    rollcall:1:totals             HASH    numbers that only grow: see manage_service.totals
    rollcall:1:rate:SERVICE:TOKEN:SECOND  STRING  requests of a token (its name) in one second, for a few seconds

Who writes: ingest the first three of a counter, and it may end a fill; manage everything; query nothing; ingest and manage
their own rates. compose/redis/users.acl gives each exactly that.
"""

from __future__ import annotations

from dataclasses import dataclass

LAYOUT = 1
PREFIX = f"rollcall:{LAYOUT}:"


@dataclass(frozen=True, slots=True)
class CounterKeys:
    """The keys of one counter."""

    members: str
    suspects: str
    state: str
    fill: str
    samples: str


def of_counter(name: str) -> CounterKeys:
    """The keys of the counter with this name."""
    start = f"{PREFIX}{{{name}}}:"
    return CounterKeys(start + "members", start + "suspects", start + "state", start + "fill", start + "samples")


def of_run(run_id: str) -> str:
    """The record of one run."""
    return f"{PREFIX}run:{run_id}"


def of_lock(name: str) -> str:
    """A lock that avoids double work. Nothing is wrong where two hold it: the protocol is safe without."""
    return f"{PREFIX}lock:{name}"


def of_rate(service: str, token: str, second: int) -> str:
    """How many requests a token (its name) has sent to a service in one second (since 1970)."""
    return f"{PREFIX}rate:{service}:{token}:{second}"


RUNS = f"{PREFIX}runs"
RUNS_OPEN = f"{PREFIX}runs:open"
KEEPER = f"{PREFIX}keeper"
TOTALS = f"{PREFIX}totals"
