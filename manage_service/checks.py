"""System checks that read the database: `python -m manage_service check --database default`."""

from __future__ import annotations

from collections.abc import Sequence

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
        wrong: dict[str, list[str]] = {}
        for counter in declarations.derived():
            for misfit in misfits(counter, replica):
                wrong.setdefault(misfit, []).append(repr(counter.name))
        return [complaint(misfit, names) for misfit, names in wrong.items()]
    except psycopg2.Error as error:
        return [
            Error(f"the database cannot be read: {str(error).strip()}", hint="see DATABASE_URL", id="rollcall.E202")
        ]
    finally:
        replica.close()


def misfits(counter: Counter, replica: Replica) -> list[str]:
    """What does not fit about one counter. Raises psycopg2.Error if the database does not answer."""
    try:
        with replica.snapshot(counter) as snapshot:
            return snapshot.misfits(counter)
    except psycopg2.Error as error:
        if is_away(error):
            raise
        return [str(error).strip().partition("\n")[0]]


def complaint(misfit: str, names: Sequence[str]) -> CheckMessage:
    """What does not fit, once for all counters that it concerns."""
    counters, them = ("counter", "it") if len(names) == 1 else ("counters", "them")
    return Error(
        f"{counters} {', '.join(names)}: {misfit}",
        hint=f"the keeper does not build {them}, and a reconcile of {them} fails, until this fits",
        id="rollcall.E201",
    )
