"""System checks that read the database: `python -m manage_service check --database default`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg2
from django.core.checks import CheckMessage, Error, Tags, register

from manage_service import stores
from manage_service.replica.snapshots import Replica, is_away
from shared_models import declarations
from shared_models.declarations import Counter


@register(Tags.database)
def check_database(databases: Sequence[str] | None = None, **kwargs: object) -> list[CheckMessage]:
    """Check that each declaration fits its table, as the keeper does before it builds. Does nothing without --database."""
    if not databases:
        return []
    replica = stores.connect_replica()
    try:
        return [found for counter in declarations.derived() for found in check_table(counter, replica)]
    except psycopg2.Error as error:
        return [
            Error(f"the database cannot be read: {str(error).strip()}", hint="see DATABASE_URL", id="rollcall.E202")
        ]
    finally:
        replica.close()


def check_table(counter: Counter, replica: Replica) -> Iterator[CheckMessage]:
    """Check one counter. Raises psycopg2.Error if the database does not answer."""
    try:
        with replica.snapshot(counter) as snapshot:
            found = snapshot.misfits(counter)
    except psycopg2.Error as error:
        if is_away(error):
            raise
        found = [str(error).strip().partition("\n")[0]]
    for misfit in found:
        yield Error(
            f"counter {counter.name!r}: {misfit}",
            hint="the keeper does not build it, and a reconcile of it fails, until it fits",
            id="rollcall.E201",
        )
