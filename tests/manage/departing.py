"""Triggers on `message` that note departures, for tests: plain SQL, of the shape that adopted tables have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared_models import declarations
from tests.manage.world import World

OWN = "pg_current_xact_id()::text::bigint"
# Of this history only: what a row from elsewhere says would never come.
LATER = (
    f"greatest({OWN}, max(gone.xact) FILTER (WHERE gone.xact < pg_snapshot_xmax(pg_current_snapshot())::text::bigint))"
)


@contextmanager
def departures_noted(world: World) -> Iterator[None]:
    """The schema with its triggers, for as long as the block runs."""
    if world.ask_primary("SELECT to_regnamespace('rollcall_triggers')") != [(None,)]:
        yield  # the migrations have made them
        return
    noted, emptied = [], []
    for counter in declarations.COUNTERS:
        key = f"{counter.name}:{counter.definition}"
        texts = ", ".join(f"gone.{field}::text" for field in counter.fields)
        noted.append(
            f"INSERT INTO rollcall_triggers.departure SELECT '{key}', ARRAY[{texts}], {LATER} FROM gone GROUP BY {texts};"
        )
        emptied.append(f"INSERT INTO rollcall_triggers.departure VALUES ('{key}', NULL, {OWN});")
    world.ask_primary(f"""
        CREATE SCHEMA rollcall_triggers;
        CREATE TABLE rollcall_triggers.departure (
            counter text NOT NULL, element text[], xact bigint NOT NULL, create_time timestamptz NOT NULL DEFAULT now());
        CREATE INDEX ON rollcall_triggers.departure (counter, xact);
        CREATE FUNCTION rollcall_triggers.deleted() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN {" ".join(noted)} RETURN NULL; END $$;
        CREATE FUNCTION rollcall_triggers.emptied() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN {" ".join(emptied)} RETURN NULL; END $$;
        CREATE FUNCTION rollcall_triggers.stamp() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN NEW.xact := {OWN}; RETURN NEW; END $$;
        CREATE TRIGGER zzz_stamp BEFORE UPDATE ON message FOR EACH ROW
            WHEN ((OLD.state, OLD.city, OLD.username) IS DISTINCT FROM (NEW.state, NEW.city, NEW.username))
            EXECUTE FUNCTION rollcall_triggers.stamp();
        CREATE TRIGGER zzz_delete AFTER DELETE ON message REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION rollcall_triggers.deleted();
        CREATE TRIGGER zzz_update AFTER UPDATE ON message REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION rollcall_triggers.deleted();
        CREATE TRIGGER zzz_truncate AFTER TRUNCATE ON message
            FOR EACH STATEMENT EXECUTE FUNCTION rollcall_triggers.emptied();
    """)
    world.replay()
    try:
        yield
    finally:
        world.ask_primary("DROP SCHEMA rollcall_triggers CASCADE")
        world.replay()
