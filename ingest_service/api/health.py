"""The checks of `/readyz`: can ingest store rows, and will it count them?"""

from __future__ import annotations

import django.db
import psycopg2
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from redis.exceptions import RedisError

from ingest_service import catalog, stores
from shared_models.deadlines import cut_after
from shared_models.stores import check_servers
from shared_models.web.health import Readiness

# A client that asks for readiness waits a few seconds at most. With a stopped primary it would wait for ever.
ANSWER_SECONDS = 2.0


def read_readiness() -> Readiness:
    """Check the primary and Redis. Without Redis ingest still stores and acknowledges, so it is ready without it."""
    return Readiness({"primary": check_primary(), "redis": check_redis()}, needed=frozenset({"primary"}))


def check_primary() -> str | None:
    """Check that the primary can be reached and written to, and has its tables. Uses a connection of its own.

    If no table takes rows through ingest, the database needs no tables of Rollcall's own.
    """
    plan = []
    try:
        with cut_after(stores.open_primary().raw, ANSWER_SECONDS):
            with connection.cursor() as cursor:
                cursor.execute("SHOW transaction_read_only")
                if cursor.fetchone() == ("on",):
                    return "the database is read-only: DATABASE_URL has to name the primary"
            if catalog.counted_models():
                executor = MigrationExecutor(connection)
                plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except (psycopg2.Error, django.db.Error) as error:
        return f"the primary cannot be reached: {str(error).strip().splitlines()[0]}"
    finally:
        stores.close_primary()
    if plan:
        return f"{len(plan)} migrations are missing, {plan[0][0]} first: run python -m ingest_service migrate"
    return None


def check_redis() -> str | None:
    """Check that every server of Redis answers, and does not drop members."""
    try:
        return check_servers(stores.redis_nodes())
    except RedisError as error:
        return f'Redis cannot be reached, rows are answered with "counted": false: {error}'
