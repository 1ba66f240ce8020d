"""The source of a transaction id: which history of which database it belongs to.

A promoted standby gives out transaction ids again from the fork. In a restored cluster they start again,
too. So Redis stores every xact with its source: "system identifier/database/timeline". The databases of one server
share its transaction ids, but not their rows. The number of the database tells a copy from the database that was read
before.
"""

# On a primary the timeline is that of the log being written, at once after a promotion. A standby that follows
# another primary learns of a switch from the log that it receives. It says so only to roles that may read all
# statistics, or by the function of compose/postgres/roles.sql. It notes the switch in its control file with the next
# restart point, minutes later. Learning of it early is harmless: what a standby has shown so far is a part of every
# history that it can still follow. Learning of it late is not harmless if the counters come from a standby that was
# ahead of this one: the primary gives out the xacts of lost rows again.
RECEIVED_SQL = "(SELECT received_tli FROM pg_stat_wal_receiver)"
SOURCE_SQL = f"""
    (SELECT system_identifier FROM pg_control_system())::text || '/' ||
    (SELECT oid FROM pg_database WHERE datname = current_database())::text || '/' ||
    CASE WHEN pg_is_in_recovery() THEN greatest(
        (SELECT timeline_id FROM pg_control_checkpoint()),
        (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
        {RECEIVED_SQL})
    ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END
"""  # noqa: S608  (one constant in another)


def split(source: str) -> tuple[str, int]:
    """The database ("system identifier/database") and the timeline; the empty source comes before every other."""
    database, _, timeline = source.rpartition("/")
    return database, int(timeline or 0)
