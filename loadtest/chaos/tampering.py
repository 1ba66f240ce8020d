"""Faults of data: changes by somebody with a console to a counter's keys in Valkey, or to the table."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import psycopg2.errors
import redis

from loadtest.chaos import looking
from loadtest.chaos.clients import NOBODIES
from loadtest.chaos.harm import Harm, Impossible, Undo, nothing
from loadtest.chaos.schedule import Fault
from loadtest.chaos.stack import LOCK_MILLISECONDS, connected, run_sql
from shared_models.declarations import Counter, Storage, get_counter
from shared_models.protocol import keys
from shared_models.protocol.members import encode

# KEYS: members, intake, state, names, days, broken. ARGV: a number that chooses; then members that nobody has.
OF_ALL = {
    "delete the set": "redis.call('DEL', KEYS[1])",
    "delete the intake": "redis.call('DEL', KEYS[2])",
    "delete set and intake": "redis.call('DEL', KEYS[1], KEYS[2])",
    "delete the state": "redis.call('DEL', KEYS[3])",
    "a text for the set": "redis.call('SET', KEYS[1], '?')",
    "a text for the intake": "redis.call('SET', KEYS[2], '?')",
    "a text for the state": "redis.call('SET', KEYS[3], '?')",
}
# Nothing can recognise a set of the correct size with wrong members: scheduled reconciles are for that. So this adds
# members only if none is missing, and removes members only if none is extra. The same goes for a group, and for the days.
OF_SETS = {
    **OF_ALL,
    "remove members": """
        if not fewer('SCARD') then return 0 end
        redis.call('SREM', KEYS[1], unpack(redis.call('SRANDMEMBER', KEYS[1], 3)))""",
    "add members": "if not more('SCARD') then return 0 end redis.call('SADD', KEYS[1], unpack(ARGV, 2))",
}
A_DAY = "local days = redis.call('HKEYS', KEYS[5]) local day = days[1 + ARGV[1] % #days]"
OF_LAST_SEEN = {
    **OF_ALL,
    "remove members": """
        if not fewer('HLEN') then return 0 end
        redis.call('HDEL', KEYS[1], unpack(redis.call('HRANDFIELD', KEYS[1], 3)))""",
    "add members": """
        if not more('HLEN') then return 0 end
        for i = 2, #ARGV do redis.call('HSET', KEYS[1], ARGV[i], '2026-01-01') end""",
    "delete the days": "redis.call('DEL', KEYS[5])",
    "raise a day": f"{A_DAY} if extra_days() < 0 then return 0 end redis.call('HINCRBY', KEYS[5], day, 1)",
    "lower a day": f"{A_DAY} if extra_days() > 0 then return 0 end redis.call('HINCRBY', KEYS[5], day, -1)",
    "a word for a day": f"{A_DAY} redis.call('HSET', KEYS[5], day, 'many')",
    "a text for the days": "redis.call('SET', KEYS[5], '?')",
}
A_GROUP = """
    local groups = redis.call('ZREVRANGE', KEYS[1], 0, -1)  -- the largest first
    local group = groups[1 + ARGV[1] % #groups]
    local set = KEYS[1] .. ':' .. (redis.call('HGET', KEYS[2], 'generation') or '') .. ':' .. group
    local extra = redis.call('SCARD', set) - redis.call('ZSCORE', KEYS[1], group)
"""
OF_GROUPS = {
    "delete the intake": OF_ALL["delete the intake"],
    "delete the state": OF_ALL["delete the state"],
    "a text for the intake": OF_ALL["a text for the intake"],
    "a text for the state": OF_ALL["a text for the state"],
    "delete a group": f"{A_GROUP} redis.call('DEL', set)",
    "remove members of a group": f"{A_GROUP} if extra > 0 then return 0 end redis.call('SPOP', set)",
    "add a member to a group": f"{A_GROUP} if extra < 0 then return 0 end redis.call('SADD', set, ARGV[2])",
    "a text for a group": f"{A_GROUP} redis.call('SET', set, '?')",
    "raise a group's size": f"{A_GROUP} if extra > 0 then return 0 end redis.call('ZINCRBY', KEYS[1], 1, group)",
    "lower a group's size": f"{A_GROUP} if extra < 0 then return 0 end redis.call('ZINCRBY', KEYS[1], -1, group)",
    "take a group out": f"{A_GROUP} if not fewer('ZCARD') then return 0 end redis.call('ZREM', KEYS[1], group)",
    "put a group in": "if not more('ZCARD') then return 0 end redis.call('ZADD', KEYS[1], 3, 'nowhere')",
    "delete the directory": "redis.call('DEL', KEYS[1])",
    "delete the names": "redis.call('DEL', KEYS[4])",
    "a text for the directory": "redis.call('SET', KEYS[1], '?')",
    "a text for the names": "redis.call('SET', KEYS[4], '?')",
    "a text for the broken groups": "redis.call('SET', KEYS[6], '?')",
    "delete the generation": "redis.call('HDEL', KEYS[2], 'generation')",
}
CHANGES = {Storage.SET: OF_SETS, Storage.LAST_SEEN: OF_LAST_SEEN, Storage.GROUPS: OF_GROUPS}
GAPS = """
local function gap(count) return redis.call(count, KEYS[1]) - tonumber(redis.call('HGET', KEYS[2], 'size') or 'none') end
local function is_sized() return tonumber(redis.call('HGET', KEYS[2], 'size') or 'none') end
local function fewer(count) return is_sized() and gap(count) <= 0 end
local function more(count) return is_sized() and gap(count) >= 0 end
local function extra_days()
  local sum = 0
  for _, number in ipairs(redis.call('HVALS', KEYS[5])) do sum = sum + number end
  return sum - redis.call('HLEN', KEYS[1])
end
"""
# Changes that remove a whole set. The keeper then builds it from the replica: a member that ingest has counted, and that
# the replica does not show yet, is missing until it does, as after a kill of Valkey. Other changes lose nothing: a run that
# repairs the set, and the reading of one group, wait for everything acknowledged.
LOSSES = {"delete the set", "delete set and intake", "a text for the set"}
# … and what groups and days have beside their elements: where that does not fit, the keeper begins with nothing.
LOSSES_BESIDE = {
    *LOSSES, *OF_LAST_SEEN, "take a group out", "put a group in", "delete the directory", "delete the names",
    "a text for the directory", "a text for the names", "a text for the broken groups", "delete the intake",
    "a text for the intake",
} - {"delete the state", "a text for the state"}  # fmt: skip
POISONED_LOSSES = ("intake.size",)

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
# How often it looks whether a counter is complete again; and how many groups are deleted.
SOUND_SECONDS, MANY_GROUPS = 0.05, 12


class Tampering(Harm):
    """None of these loses a row, and query must not serve the counter until it is repaired. The checker judges the answers
    as always, except for `LOSSES`."""

    def changed_by_hand(self, fault: Fault) -> Undo:
        counter, began = part_of(fault.target, fault.number), time.monotonic()
        ghosts = [encode(values) for values in NOBODIES[counter.of or counter.whole]]
        self.change(counter, fault.how, fault.number, ghosts)
        if counter.storage is not Storage.SET and fault.how in LOSSES_BESIDE:
            self.lose_until_sound(counter, began)
        elif fault.how in LOSSES:
            self.lose_part(counter, began)
        return nothing

    def change(self, counter: Counter, how: str, which: int, ghosts: list[bytes]) -> None:
        """Change the keys of a part. Raises Impossible, redis.RedisError."""
        at = keys.of_counter(counter.name)
        on = (at.members, at.intake, at.state, at.names, at.days, at.broken)
        with self.stack.redis.nodes() as nodes:
            client = nodes.of(at.members)
            script = f"{GAPS}{CHANGES[counter.storage][how]}\nreturn 1"
            if not client.eval(script, len(on), *on, which, *ghosts):
                raise Impossible("it would make up for an earlier change")

    def lose_until_sound(self, counter: Counter, began: float) -> None:
        """Note a loss that lasts until the keeper has built the part: it begins with nothing, and drops what was recorded
        since."""

        def wait() -> None:
            while True:
                time.sleep(SOUND_SECONDS)
                with suppress(redis.RedisError, OSError), self.stack.redis.nodes() as nodes:
                    if looking.is_sound(nodes.of(keys.home_of(counter)), counter):
                        break
            self.lose_part(counter, began)

        threading.Thread(target=wait, name="loss", daemon=True).start()

    def scripts_forgotten(self, fault: Fault) -> Undo:
        with self.stack.redis.nodes() as nodes:
            for client in nodes.each():
                client.script_flush()
        return nothing

    def killed_while_mending(self, fault: Fault) -> Undo:
        """Delete some groups, and kill the keeper when it has dropped one of them and has not read it again."""
        keeper, counter = self.stack.by_name("keeper"), part_of(fault.how, fault.number)
        for which in range(MANY_GROUPS):
            self.change(counter, "delete a group", which, [])

        def kill(over: threading.Event) -> None:
            with suppress(redis.RedisError, OSError), self.stack.redis.nodes() as nodes:
                client = nodes.of(keys.home_of(counter))
                while not over.wait(0.002):
                    if client.hlen(keys.of_counter(counter.name).broken):
                        keeper.kill()
                        return

        finish = self.in_the_background(fault, kill)

        def go_on() -> None:
            finish()
            keeper.begin()

        return go_on

    def poison(self, fault: Fault) -> Undo:
        where, _, value = fault.how.partition(" = ")
        key, _, field = where.partition(".")
        counter, began = part_of(fault.target, fault.number), time.monotonic()
        at: str = getattr(keys.of_counter(counter.name), key)
        with self.stack.redis.nodes() as nodes:
            nodes.of(at).hset(at, field, value)
        if counter.storage is not Storage.SET and where in POISONED_LOSSES:
            self.lose_until_sound(counter, began)
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


def part_of(derived: str, which: int) -> Counter:
    """One of the parts of a derived counter."""
    parts = get_counter(derived).parts
    return parts[which % len(parts)]
