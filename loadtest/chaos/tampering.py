"""Faults of data: changes by somebody with a console to a counter's keys in Valkey, or to the table."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg2.errors

from loadtest.chaos.clients import NOBODIES
from loadtest.chaos.harm import Harm, Impossible, Undo, nothing
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import LOCK_MILLISECONDS, connected, run_sql
from shared_models.protocol import keys
from shared_models.protocol.members import encode

# KEYS: members, intake, state. ARGV: members to add; as many are removed.
CHANGES = {
    "remove members": "redis.call('SREM', KEYS[1], unpack(redis.call('SRANDMEMBER', KEYS[1], #ARGV)))",
    "add members": "redis.call('SADD', KEYS[1], unpack(ARGV))",
    "delete the set": "redis.call('DEL', KEYS[1])",
    "delete the intake": "redis.call('DEL', KEYS[2])",
    "delete set and intake": "redis.call('DEL', KEYS[1], KEYS[2])",
    "delete the state": "redis.call('DEL', KEYS[3])",
    "a text for the set": "redis.call('SET', KEYS[1], '?')",
    "a text for the intake": "redis.call('SET', KEYS[2], '?')",
    "a text for the state": "redis.call('SET', KEYS[3], '?')",
}
# Changes that remove the whole set. The keeper then builds it from the replica: a member that ingest has counted, and that
# the replica does not show yet, is missing until it does, as after a kill of Valkey. Other changes lose nothing: a run that
# repairs the set waits for everything acknowledged.
LOSSES = {"delete the set", "delete set and intake", "a text for the set"}
# Nothing can recognise a set of the correct size with wrong members: scheduled reconciles are for that. So this adds
# members only if none is missing, and removes members only if none is extra.
GAP = """
local typed = redis.call('TYPE', KEYS[1]).ok == 'set' and redis.call('TYPE', KEYS[2]).ok == 'hash'
local size = typed and tonumber(redis.call('HGET', KEYS[2], 'size') or 'none')
local gap = size and redis.call('SCARD', KEYS[1]) - size
"""
ALLOWED = {
    "remove members": "if not gap or gap > 0 then return 0 end",
    "add members": "if not gap or gap < 0 then return 0 end",
}

REWRITE = "LOCK TABLE message IN ACCESS EXCLUSIVE MODE; ALTER TABLE message ALTER COLUMN message TYPE text USING message || ''"
# The lock comes first: otherwise the fault itself would lose rows that are committed between the copy and the TRUNCATE.
RELOAD = """
    LOCK TABLE message IN ACCESS EXCLUSIVE MODE;
    CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM message;
    TRUNCATE message;
    INSERT INTO message ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM kept
"""
COLUMNS = "id, create_time, state, city, username, message"
REWRITES = {
    "another type": REWRITE,
    "loaded again with the old xacts": RELOAD.format(columns=f"{COLUMNS}, xact"),
    "loaded again with new xacts": RELOAD.format(columns=COLUMNS),
}
# Between two rewrites of one fault: one alone rarely falls between a snapshot and its first read.
PAUSE_SECONDS = 0.05
SLOW_SECONDS = 0.02


class Tampering(Harm):
    """None of these loses a row, and query must not serve the counter until it is repaired. The checker judges the answers
    as always, except for `LOSSES`."""

    def changed_by_hand(self, fault: Fault) -> Undo:
        at = keys.of_counter(fault.target)
        on = (at.members, at.intake, at.state)
        ghosts = [encode(values) for values in NOBODIES[fault.target]]
        script = f"{GAP}{ALLOWED.get(fault.how, '')}\n{CHANGES[fault.how]}\nreturn 1"
        began = time.monotonic()
        with self.stack.valkey.client() as client:
            if not client.eval(script, len(on), *on, *ghosts):
                raise Impossible("it would make up for an earlier change")
        if fault.how in LOSSES:
            self.journal.write("loss", counter=fault.target, **{"from": began})
        return nothing

    def poison(self, fault: Fault) -> Undo:
        where, _, value = fault.how.partition(" = ")
        key, _, field = where.partition(".")
        with self.stack.valkey.client() as client:
            client.hset(getattr(keys.of_counter(fault.target), key), field, value)
        return nothing

    def table_rewritten(self, fault: Fault) -> Undo:
        """In Postgres a snapshot from before a rewrite that reads after it sees an empty table.

        Manage's way to the replica is slow meanwhile, so that there is time between the two.
        """
        wire = self.stack.wires["manage-replica"]
        wire.delay_seconds = SLOW_SECONDS

        def rewrite(over: threading.Event) -> None:
            while not over.wait(PAUSE_SECONDS):
                with connected(self.stack.primary) as cursor:
                    cursor.execute(f"SET lock_timeout = {LOCK_MILLISECONDS}")
                    try:
                        cursor.execute(f"BEGIN; {REWRITES[fault.how]}; COMMIT")
                    except psycopg2.errors.LockNotAvailable:
                        continue  # the connection is closed, and the transaction is gone with it

        finish = self.in_the_background(fault, rewrite)

        def end() -> None:
            finish()
            wire.mend()

        return end

    def row_level_security(self, fault: Fault) -> Undo:
        """Hide rows from every role but the owner. Manage's is another one."""
        policy = "CREATE POLICY chaos ON message USING (username LIKE 'again%')" if fault.how == "some rows" else ""
        self.alter_table(f"ALTER TABLE message ENABLE ROW LEVEL SECURITY; {policy}")

        def show() -> None:
            self.alter_table("DROP POLICY IF EXISTS chaos ON message; ALTER TABLE message DISABLE ROW LEVEL SECURITY")

        return show

    def alter_table(self, statements: str) -> list[tuple[Any, ...]]:
        return run_sql(self.stack.primary, f"BEGIN; SET LOCAL lock_timeout = {LOCK_MILLISECONDS}; {statements}; COMMIT")
