"""Prunes departures (`shared_models.triggers`), long after the keeper has read them.

The same transaction adds, for each counter, one departure that means "all" and has the highest xact of the removed
ones. A keeper that had read them ignores it. A keeper that had not (it was stopped for a day, or Redis went back
to an older save) reconciles the counter.
"""

from __future__ import annotations

from ingest_service.writing.transactions import Transaction

KEEP_HOURS = 24.0
# The most that is kept: about two million departures of one member. (In addition to its members a row takes about 100 bytes,
# with its entries in the indexes.)
KEEP_BYTES = 300_000_000
# The most that one transaction removes: about 50 ms.
PRUNE_ROWS = 10_000

# Whether there are departures, and this role may prune them.
MAY_PRUNE = """
    SELECT true FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'rollcall_triggers' AND c.relname = 'departure' AND has_schema_privilege(n.oid, 'USAGE')
        AND has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
        AND has_table_privilege(c.oid, 'DELETE')
"""
# Two queries use the index on create_time: one finds the limit of how much is kept, the other the oldest to remove.
# If two workers do this at once, the second waits for the first one's rows, finds them removed, and removes none.
# (FOR UPDATE would need one more right.)
PRUNE = """
    WITH gone AS (
        DELETE FROM rollcall_triggers.departure WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM rollcall_triggers.departure
            WHERE create_time <= greatest(now() - %s * interval '1 hour', (
                SELECT create_time FROM (
                    SELECT create_time, sum(100 + pg_column_size(element)) OVER (ORDER BY create_time DESC) AS bytes
                    FROM rollcall_triggers.departure) AS newest
                WHERE bytes > %s ORDER BY create_time DESC LIMIT 1))
            ORDER BY create_time LIMIT %s))
        RETURNING counter, element, xact),
    noted AS (
        INSERT INTO rollcall_triggers.departure (counter, element, xact, create_time)
        SELECT counter, NULL, max(xact), clock_timestamp() FROM gone GROUP BY counter)
    SELECT true FROM gone WHERE element IS NOT NULL
"""


def prune(transaction: Transaction) -> int:
    """Remove some departures that are old, or too much, the oldest first; returns how many."""
    if not transaction.execute(MAY_PRUNE):
        return 0
    return len(transaction.execute(PRUNE, KEEP_HOURS, KEEP_BYTES, PRUNE_ROWS))
