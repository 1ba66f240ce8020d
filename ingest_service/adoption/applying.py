"""Carrying out a plan while the application writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection

from ingest_service.adoption.plan import Plan

# A session that waits for a lock on a table holds up all that come after it. So this waits for a short time, and
# tries again later.
LOCK_TIMEOUT_SECONDS = 0.5
PAUSE_SECONDS = 1.0
PROGRESS_SECONDS = 1.0

Say = Callable[[str], None]
Connect = Callable[[], Connection]

RETRIED = (psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected)

HOLDERS = """
    SELECT string_agg(format('%%s (%%s, %%s for %%s s)', a.pid, a.usename, a.state,
                             round(extract(epoch FROM now() - a.xact_start))),
                      ', ' ORDER BY a.xact_start)
    FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.relation = to_regclass(%s) AND l.granted AND l.pid <> pg_backend_pid()
"""
# What is being waited for, and how much is done, in the words of Postgres.
PROGRESS = """
    SELECT p.phase, CASE WHEN p.blocks_total > 0 THEN 100 * p.blocks_done / p.blocks_total END,
           CASE WHEN p.current_locker_pid <> 0 THEN p.current_locker_pid END
    FROM pg_stat_progress_create_index AS p WHERE p.pid = %s
"""


class StoppedHalfway(Exception):
    """A part was carried out and the rest was not: the same command goes on from there."""


def apply(connection: Connection, plan: Plan, connect: Connect, say: Say, patience_seconds: float) -> None:
    """All of the plan. `connection` is in autocommit; `connect` opens one more, to watch."""
    if plan.apart_first:
        apart(connection, plan, connect, say, patience_seconds)
    together(connection, plan, say, patience_seconds)
    if not plan.apart_first:
        apart(connection, plan, connect, say, patience_seconds)


def together(connection: Connection, plan: Plan, say: Say, patience_seconds: float) -> None:
    """The part that locks the table, in one transaction."""
    if plan.together:
        retrying(connection, lambda: in_one_transaction(connection, plan.together), plan, say, patience_seconds)
        say(f"{len(plan.together)} statements in one transaction: done")


def in_one_transaction(connection: Connection, statements: tuple[str, ...]) -> None:
    """All of them or none."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            cursor.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_SECONDS * 1000:.0f}")
            for statement in statements:
                cursor.execute(statement)
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")


def apart(connection: Connection, plan: Plan, connect: Connect, say: Say, patience_seconds: float) -> None:
    """The indexes, one after the other."""
    for statement in plan.apart:
        if "CONCURRENTLY" in statement:
            with watched(connection, connect, say), connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = 0")  # it waits and blocks nobody
                cursor.execute(statement)
        else:
            alone = partial(in_one_transaction, connection, (statement,))
            retrying(connection, alone, plan, say, patience_seconds)
        if not statement.startswith("COMMENT"):
            say(f"{statement}: done")


def retrying(connection: Connection, step: Callable[[], None], plan: Plan, say: Say, patience_seconds: float) -> None:
    """Try until the lock is taken. Between two tries the application goes on."""
    began = time.monotonic()
    tries = 0
    while True:
        try:
            return step()
        except RETRIED:
            tries += 1
            name = f"{plan.table.schema}.{plan.table.relation}"
            waited = time.monotonic() - began
            held = holders(connection, name)
            if waited > patience_seconds:
                raise StoppedHalfway(f"no lock on {name} within {waited:.0f} s; in its way: {held}") from None
            say(f"try {tries}: {name} is in use by {held}; again in {PAUSE_SECONDS:g} s")
            time.sleep(PAUSE_SECONDS)


def holders(connection: Connection, table: str) -> str:
    """The sessions that have a lock on the table."""
    with connection.cursor() as cursor:
        cursor.execute(HOLDERS, [table])
        ((found,),) = cursor.fetchall()
    return found or "sessions that have ended since"


@contextmanager
def watched(connection: Connection, connect: Connect, say: Say) -> Iterator[None]:
    """Within this block, say now and then how far the index is that this connection builds."""
    over = threading.Event()
    pid = connection.info.backend_pid

    def watch() -> None:
        last = ""
        try:
            with closing(connect()) as looking, looking.cursor() as cursor:
                while not over.wait(PROGRESS_SECONDS):
                    cursor.execute(PROGRESS, [pid])
                    for phase, percent, locker in cursor.fetchall():
                        said = phase + (f", {percent} %" if percent is not None else "")
                        said += f", for process {locker}" if locker else ""
                        if said != last:
                            say(said)
                        last = said
                    looking.rollback()
        except psycopg2.Error as error:
            say(f"progress cannot be shown: {error}".strip())

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
