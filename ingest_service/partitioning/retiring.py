"""Retires old partitions: detaches them, has their members leave the counts, and drops them. The cost follows the partition.

For each partition, the oldest first:

1. **Mark.** The partition's comment says that it is being retired. The keeper reads that when it sees the partition gone: so it
   does not compare the whole table (`manage_service.protocol.changes`).
2. **Detach**, CONCURRENTLY: readers and writers go on. One that was interrupted is finalized.
3. **Note its distinct members as departures** of each counter, some at a time. The keeper looks for each whether another row has
   it, and removes the others (`manage_service.protocol.departures`). They are noted after the partition was detached, with a later
   xact. So a snapshot that shows a departure also shows the table without the partition. The comment keeps which counters are
   noted.
4. **Wait** until the keeper has resolved them: `left_through` of every part of every counter is beyond the last departure.
5. **Drop** it.

Each step looks at what is there. So the same command goes on where it was stopped, or killed. A departure is a hint: one that is
noted twice changes nothing, and one that is pruned before the keeper has read it means "all" (`ingest_service.writing.departures`).
So a partition can be dropped as soon as all are noted. The wait is for people, and for scripts that read the counts next.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from redis.exceptions import RedisError

from ingest_service import stores
from ingest_service.adoption.applying import LOCK_TIMEOUT_SECONDS, RETRIED, StoppedHalfway, holders
from shared_models import partitions, triggers
from shared_models.declarations import Counter, Table, families
from shared_models.protocol import keys, states
from shared_models.triggers import literal, quote

# The members of one departure. The keeper asks the table about as many at once.
CHUNK_MEMBERS = 20_000
# How many departures may wait for the keeper. Ingest prunes what is more than 300 MB.
MOST_WAITING = 100
PAUSE_SECONDS = 0.05
SAY_SECONDS = 2.0

Say = Callable[[str], None]

TIME_TYPES = ("date", "timestamp", "timestamptz")
# Whether the table is partitioned by ranges of one time.
BY_TIME = """
    SELECT t.typname FROM pg_partitioned_table AS p JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    JOIN pg_type AS t ON t.oid = a.atttypid WHERE p.partrelid = to_regclass(%s) AND p.partstrat = 'r' AND p.partnatts = 1
"""
# Those that were detached, and not dropped.
DETACHED = """
    SELECT c.oid::int8, n.nspname, c.relname, d.description FROM pg_description AS d JOIN pg_class AS c ON c.oid = d.objoid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND starts_with(d.description, %s) AND NOT c.relispartition
    ORDER BY 2, 3
"""
SIZES = "SELECT greatest(reltuples, 0)::bigint, pg_total_relation_size(oid) FROM pg_class WHERE oid = %s"
NOTED = re.compile(r'"((?:[^"]|"")*)"=(\d+)')


@dataclass(slots=True)
class Partition:
    """A partition that is to be retired. `noted`: the xact of the last departure, by the key of the counter."""

    oid: int
    schema: str
    name: str
    state: str  # attached, detaching, detached
    ends: datetime | None = None
    noted: dict[str, int] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The partition, quoted."""
        return f"{quote(self.schema)}.{quote(self.name)}"


class CannotRetire(Exception):
    """The table has no partitions that could be retired. The text says why."""


def mark_of(table: Table) -> str:
    """What the comment of each partition of the table begins with, while it is retired."""
    return f"{partitions.RETIRED} of {triggers.relation(table)}"


def find(cursor: Cursor, table: Table, before: datetime) -> list[Partition]:
    """The partitions that hold nothing from `before` on, and those that an earlier call has not ended, the oldest first.

    Raises CannotRetire.
    """
    name = triggers.relation(table)
    cursor.execute(BY_TIME, [name])
    types = [type_ for (type_,) in cursor.fetchall()]
    if not types or types[0] not in TIME_TYPES:
        raise CannotRetire(f"{table.schema}.{table.relation} is not partitioned by ranges of a time")
    cursor.execute(DETACHED, [mark_of(table)])
    unended = [
        Partition(oid, schema, of, "detached", None, read_noted(text)) for oid, schema, of, text in cursor.fetchall()
    ]
    cursor.execute(
        f"SELECT oid, schema, name, pending, ends FROM ({partitions.bounds(literal(name))}) AS p "
        "WHERE (ends <= %s OR pending) ORDER BY ends",
        [before],
    )
    due = [
        Partition(oid, schema, of, "detaching" if pending else "attached", ends)
        for oid, schema, of, pending, ends in cursor.fetchall()
    ]
    return [*unended, *due]


def next_due(cursor: Cursor, table: Table) -> tuple[str, datetime] | None:
    """The oldest partition that stays, and its end; None if there is none."""
    cursor.execute(
        f"SELECT name, ends FROM ({partitions.bounds(literal(triggers.relation(table)))}) AS p "
        "WHERE NOT pending AND ends < 'infinity' ORDER BY ends LIMIT 1"
    )
    found = cursor.fetchall()
    return found[0] if found else None


def sizes(cursor: Cursor, partition: Partition) -> tuple[int, int]:
    """About how many rows, and how many bytes."""
    cursor.execute(SIZES, [partition.oid])
    ((rows, size),) = cursor.fetchall()
    return rows, size


def read_noted(comment: str) -> dict[str, int]:
    """The counters of a comment, and the xacts."""
    return {key.replace('""', '"'): int(xact) for key, xact in NOTED.findall(comment.partition(" noted: ")[2])}


def retire(
    database: Connection,
    table: Table,
    counters: Sequence[Counter],
    partition: Partition,
    say: Say,
    patience_seconds: float,
) -> None:
    """All steps of one partition that are left. `database` is in autocommit. Raises StoppedHalfway, psycopg2.Error."""
    if partition.state != "detached":
        detach(database, table, partition, say, patience_seconds)
    for counter in counters:
        if triggers.key(counter) not in partition.noted:
            note_members(database, table, counter, partition, say, patience_seconds)
    wait(counters, partition, say, patience_seconds)
    try_to(database, f"DROP TABLE {partition.place}", partition.place, patience_seconds)
    say(f"{partition.name}: dropped")


def comment(database: Connection, table: Table, partition: Partition) -> str:
    """The statement that writes down how far this is."""
    noted = ", ".join(f"{quote(key)}={xact}" for key, xact in partition.noted.items())
    return f"COMMENT ON TABLE {partition.place} IS {literal(f'{mark_of(table)}; noted: {noted}')}"


def detach(database: Connection, table: Table, partition: Partition, say: Say, patience_seconds: float) -> None:
    """Steps 1 and 2."""
    name = triggers.relation(table)
    if partition.state == "attached":
        try_to(database, comment(database, table, partition), partition.place, patience_seconds)
    how = "CONCURRENTLY" if partition.state == "attached" else "FINALIZE"
    say(f"{partition.name}: {'detaching it' if how == 'CONCURRENTLY' else 'ending its detachment'}")
    with database.cursor() as cursor:
        # It waits for transactions that use the table, and nobody waits for it.
        cursor.execute(f"SET lock_timeout = 0; SET statement_timeout = {patience_seconds * 1000:.0f}")
        try:
            cursor.execute(f"ALTER TABLE {name} DETACH PARTITION {partition.place} {how}")
        except psycopg2.errors.QueryCanceled as error:
            if "statement timeout" not in str(error):
                raise
            raise StoppedHalfway(
                f"{partition.name} could not be detached within {patience_seconds:.0f} s; transactions that use the table: "
                f"{holders(database, name)}. End them, or wait; then run the same command again"
            ) from error
        finally:
            cursor.execute("SET statement_timeout = 0")
    if partition.state == "detaching":  # by hand, it may be
        try_to(database, comment(database, table, partition), partition.place, patience_seconds)
    partition.state = "detached"


def note_members(
    database: Connection, table: Table, counter: Counter, partition: Partition, say: Say, patience_seconds: float
) -> None:
    """Step 3 for one counter. The members do not pass through this process one by one, and are read once."""
    key, members, last = triggers.key(counter), 0, 0
    waiting: list[int] = []
    with database.cursor() as cursor:
        cursor.execute("SET lock_timeout = 0")
        cursor.execute(f"DECLARE leaving NO SCROLL CURSOR WITH HOLD FOR {chunks_of(counter, partition)}")
        while True:
            cursor.execute("FETCH leaving")
            chunk = cursor.fetchone()
            if chunk is None:
                break
            count, texts = chunk
            cursor.execute(
                f"INSERT INTO {triggers.DEPARTURE} (counter, element, xact) VALUES (%s, %s::text[], {triggers.LATEST_XACT})"
                " RETURNING xact",
                [key, texts],
            )
            ((last,),) = cursor.fetchall()
            members += count
            waiting.append(last)
            if len(waiting) > MOST_WAITING:
                wait_for_keeper([counter], waiting.pop(0), partition, say, patience_seconds)
        cursor.execute("CLOSE leaving")
        if not members:  # everything before this has nothing to do with the partition
            cursor.execute(f"SELECT {triggers.LATEST_XACT}")
            ((last,),) = cursor.fetchall()
    partition.noted[key] = last
    try_to(database, comment(database, table, partition), partition.place, patience_seconds)
    say(f"{partition.name}: {members:,} members of {counter.name} are noted")


def chunks_of(counter: Counter, partition: Partition) -> str:
    """The statement that gives the distinct members of the partition that count, some at a time: how many, and their array as a
    text."""
    terms = [f"({each.sql('gone.')})::text" for each in counter.terms]
    names = [f"t{number}" for number in range(len(terms))]
    filled = [f"gone.{quote(column)} IS NOT NULL" for column in triggers.columns_of(counter)]
    counts = " AND ".join([f"({counter.where})"] * bool(counter.where) + filled)
    listed = ", ".join(f"{term} AS {name}" for term, name in zip(terms, names, strict=True))
    return f"""
        SELECT count(*), array_agg(ARRAY[{", ".join(names)}])::text FROM (
            SELECT *, (row_number() OVER () - 1) / {CHUNK_MEMBERS} AS chunk FROM (
                SELECT DISTINCT {listed} FROM {partition.place} AS gone WHERE {counts}) AS members) AS numbered
        GROUP BY chunk
    """


def wait(counters: Sequence[Counter], partition: Partition, say: Say, patience_seconds: float) -> None:
    """Step 4."""
    for counter in counters:
        wait_for_keeper([counter], partition.noted[triggers.key(counter)], partition, say, patience_seconds)


def wait_for_keeper(
    counters: Sequence[Counter], xact: int, partition: Partition, say: Say, patience_seconds: float
) -> None:
    """Wait until these counters have resolved all departures up to this xact. Raises StoppedHalfway."""
    deadline, say_at = time.monotonic() + patience_seconds, time.monotonic() + SAY_SECONDS
    while reason := next(unresolved(counters, xact), ""):
        now = time.monotonic()
        if now > deadline:
            raise StoppedHalfway(
                f"{partition.name} is detached and not dropped: {reason}. When that is repaired, run the same command again"
            )
        if now > say_at:
            say(f"{partition.name}: {reason}")
            say_at = now + SAY_SECONDS
        time.sleep(PAUSE_SECONDS)


def unresolved(counters: Sequence[Counter], xact: int) -> Iterator[str]:
    """What the keeper has not resolved."""
    nodes = stores.redis_nodes()
    for part in (part for counter in counters for each in families(counter) for part in each.parts):
        try:
            (found,) = states.read_fields(
                nodes.of(keys.home_of(part)), keys.of_counter(part.name).state, "left_through"
            )
        except RedisError as error:
            nodes.look_again()
            yield f"Redis does not say how far {part.name} is: {error}"
            continue
        if found is None or not found.isdigit():
            yield f"{part.name} waits to be built or reconciled: see python -m manage_service status"
        elif int(found) <= xact:
            yield f"the keeper has resolved what left {part.name} below xact {int(found)}, and not up to {xact}"


def try_to(database: Connection, statement: str, place: str, patience_seconds: float) -> None:
    """Run a statement that needs a lock for a moment. Raises StoppedHalfway."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            with database.cursor() as cursor:
                cursor.execute(f"SET lock_timeout = {LOCK_TIMEOUT_SECONDS * 1000:.0f}")
                cursor.execute(statement)
            return
        except RETRIED:
            if time.monotonic() > deadline:
                raise StoppedHalfway(
                    f"no lock on {place} within {patience_seconds:.0f} s; in its way: {holders(database, place)}"
                ) from None
            time.sleep(PAUSE_SECONDS)
