"""Which history of which database a transaction id belongs to.

Transaction ids are counted anew from the fork whenever a standby is promoted, and start over in a restored cluster.
Every xact that is kept in Redis stands beside its source: "system identifier/timeline".
"""

# On a primary the timeline is that of the write-ahead log being written, at once after a promotion. A standby knows
# it from three places, each of which may lag; none of them runs ahead of a history that it will replay.
# received_tli is NULL for a role without pg_monitor, and is done without then.
SOURCE_SQL = """
    (SELECT system_identifier FROM pg_control_system())::text || '/' ||
    CASE WHEN pg_is_in_recovery() THEN greatest(
        (SELECT timeline_id FROM pg_control_checkpoint()),
        (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
        (SELECT received_tli FROM pg_stat_wal_receiver))
    ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END
"""
