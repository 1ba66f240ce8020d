"""What `/readyz` looks at: can rows be stored, and will they be counted?"""

from __future__ import annotations

from dataclasses import dataclass

import django.db
import psycopg2
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from redis.exceptions import RedisError

from ingest_service import stores
from shared_models.deadlines import cut_after
from shared_models.stores import check_noeviction

# Whoever asks for readiness waits a second or a few. A primary that is stopped would let them wait for ever.
ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Health:
    """None where all is well, or a sentence."""

    primary: str | None
    redis: str | None

    @property
    def ready(self) -> bool:
        """Without Redis ingest still stores and acknowledges, so it is ready without."""
        return self.primary is None


def read_health() -> Health:
    """Ask both."""
    return Health(primary=check_primary(), redis=check_redis())


def check_primary() -> str | None:
    """It can be reached, it can be written to, and its tables are there."""
    try:
        with cut_after(stores.open_primary().raw, ANSWER_SECONDS):
            with connection.cursor() as cursor:
                cursor.execute("SHOW transaction_read_only")
                if cursor.fetchone() == ("on",):
                    return "the database is read-only: DATABASE_URL has to name the primary"
            executor = MigrationExecutor(connection)
            plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except (psycopg2.Error, django.db.Error) as error:
        stores.close_primary()
        return f"the primary cannot be reached: {str(error).strip().splitlines()[0]}"
    if plan:
        return f"{len(plan)} migrations are missing, {plan[0][0]} first: run python -m ingest_service migrate"
    return None


def check_redis() -> str | None:
    """It answers, and it does not drop members."""
    try:
        return check_noeviction(stores.open_redis())
    except RedisError as error:
        return f'Redis cannot be reached, rows are answered with "counted": false: {error}'
