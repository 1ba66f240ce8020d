"""The rights of each role of compose/postgres/roles.sql on the tables. `migrate` grants them after it has made the tables.

They are derived from the models, so another table needs no line here. If the database does not have a
role (one user for all, on a small site), this grants nothing to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings
from django.db import connections, transaction
from django.db.backends.utils import CursorWrapper
from django.db.migrations.recorder import MigrationRecorder

from ingest_service import catalog
from ingest_service.models import Receipt
from shared_models import partitions, triggers
from shared_models.declarations import Table
from shared_models.models import table_of

OWNER, INGEST, MANAGE, ADMIN = "rollcall_owner", "rollcall_ingest", "rollcall_manage", "rollcall_admin"

# The rights of Django's admin on its own tables, which exist if they were migrated. Only the owner makes users and
# changes their rights; nobody removes anything from the log.
ADMIN_RIGHTS = {
    "auth_user": "SELECT, UPDATE (password, last_login)",
    "django_admin_log": "SELECT, INSERT",
    "django_content_type": "SELECT",
    "django_session": "SELECT, INSERT, UPDATE, DELETE",
}

# Manage reads departures. Ingest prunes them, and adds one that means "all" for each counter.
DEPARTURE_RIGHTS = {MANAGE: "SELECT", INGEST: "SELECT, INSERT, DELETE"}
OWN_DEPARTURES = """
    SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = 'departure' AND pg_has_role(c.relowner, 'USAGE') AND pg_has_role(n.nspowner, 'USAGE')
"""

# Another application in the same database may have tables of these names: every Django project has them.
OWN_TABLES = """
    SELECT relname FROM pg_class
    WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid) AND pg_has_role(relowner, 'USAGE')
"""


def grant(using: str = "default", **kwargs: object) -> None:
    """Grant to the roles that exist. Connected to `post_migrate`; the migrations' owner runs it."""
    connection = connections[using]
    with transaction.atomic(using), connection.cursor() as cursor:
        cursor.execute("SELECT rolname FROM pg_roles WHERE rolname IN (%s, %s, %s)", [INGEST, MANAGE, ADMIN])
        roles = {name for (name,) in cursor.fetchall()}
        cursor.execute(OWN_TABLES)
        tables = {name for (name,) in cursor.fetchall()}
        for role, table, rights in wanted():
            if role in roles and table in tables:
                quoted = connection.ops.quote_name(table)
                cursor.execute(f"REVOKE ALL ON {quoted} FROM {role}")
                cursor.execute(f"GRANT {rights} ON {quoted} TO {role}")
        for model in catalog.counted_models():
            if model._meta.db_table in tables:
                grant_on_partitions(cursor, table_of(model), roles)
        cursor.execute(OWN_DEPARTURES, [triggers.SCHEMA])
        if cursor.fetchall():
            for role, rights in DEPARTURE_RIGHTS.items():
                if role in roles:
                    cursor.execute(f"GRANT USAGE ON SCHEMA {triggers.SCHEMA} TO {role}")
                    cursor.execute(f"GRANT {rights} ON {triggers.DEPARTURE} TO {role}")


def grant_on_partitions(cursor: CursorWrapper, table: Table, roles: set[str]) -> None:
    """Who may read the table may read each partition: manage reads them one by one, and retired ones. Ingest may call the function
    that makes them."""
    cursor.execute(partitions.bounds(triggers.literal(triggers.relation(table))))
    for _, schema, name, *_ in cursor.fetchall():
        for role in sorted(roles & {MANAGE, ADMIN}):
            cursor.execute(f"GRANT SELECT ON {triggers.quote(schema)}.{triggers.quote(name)} TO {role}")
    function = partitions.function_name(table)
    cursor.execute("SELECT to_regprocedure(%s) IS NOT NULL", [function])
    if INGEST in roles and cursor.fetchall() == [(True,)]:
        cursor.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {INGEST}")


def wanted() -> Iterator[tuple[str, str, str]]:
    """Role, table, rights. Ingest writes the sent fields, and neither ids nor xacts; it cannot read them afterwards."""
    for model in catalog.counted_models():
        sent = ", ".join(f'"{field.column}"' for field in model.sent_fields())
        yield INGEST, model._meta.db_table, f"INSERT ({sent}), SELECT (id, xact)"
        yield MANAGE, model._meta.db_table, "SELECT"
        yield ADMIN, model._meta.db_table, "SELECT, DELETE"
    if settings.ADMIN_DATABASE_URL:
        yield from ((ADMIN, table, rights) for table, rights in ADMIN_RIGHTS.items())
    yield INGEST, Receipt._meta.db_table, "SELECT, INSERT, UPDATE, DELETE"
    # For /readyz: whether all migrations have run.
    yield INGEST, MigrationRecorder.Migration._meta.db_table, "SELECT"
