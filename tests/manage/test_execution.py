"""The execution of a run over a table that answers slowly, or not at all."""

from __future__ import annotations

from psycopg2.errors import QueryCanceled

from manage_service.replica import snapshots, sql
from manage_service.runs import execution
from manage_service.runs.registry import Status


def test_a_run_over_a_table_whose_index_is_gone_fails_with_the_reason(world, monkeypatch):
    world.post("ann")
    world.replay()
    world.build()
    monkeypatch.setattr(sql, "SCAN", sql.SCAN.replace("FROM {table}", "FROM {table}, pg_sleep(9)"))
    monkeypatch.setattr(sql, "JUMP", sql.SCAN)
    monkeypatch.setattr(
        snapshots, "OPTIONS", snapshots.OPTIONS.replace("statement_timeout=6s", "statement_timeout=50ms")
    )
    world.replica.close()
    run = world.reconcile("users")
    assert run.status is Status.FAILED
    assert "check whether its index on (username) exists" in run.detail and "statement timeout" in run.detail


def test_a_cold_cache_is_given_another_chance(world, monkeypatch):
    """A chunk that is cut off once is read again."""
    world.post("ann")
    world.replay()
    world.build()
    read, failures = (
        snapshots.Snapshot.read_members,
        [QueryCanceled("statement timeout")] * (execution.MOST_TIMEOUTS - 1),
    )

    def sometimes(self, *args, **options):
        if failures:
            raise failures.pop()
        return read(self, *args, **options)

    monkeypatch.setattr(snapshots.Snapshot, "read_members", sometimes)
    assert world.reconcile("users").status is Status.DONE
