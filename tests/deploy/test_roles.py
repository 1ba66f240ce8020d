"""compose/postgres/roles.sql: what it takes from nobody, what it lets nobody do to it, and what its roles can hold."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import psycopg2.errors
import pytest

from compose.servers import ROLES_SQL, Primary
from tests.servers import FAST, free_port, servers_folder, sql

# Every privilege in a database, as (what, owner, grantee, right, grantable); those that nobody has touched, too.
PRIVILEGES = """
    WITH things (what, owner, acl) AS (
        SELECT 'class ' || oid::regclass, relowner, coalesce(relacl, acldefault(
            CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) FROM pg_class WHERE relnamespace > 16383 OR
            relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'column ' || attrelid::regclass || '.' || attname, 0, attacl FROM pg_attribute WHERE attacl IS NOT NULL
        UNION ALL SELECT 'function ' || oid::regprocedure, proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
        UNION ALL SELECT 'schema ' || nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
        UNION ALL SELECT 'database ' || datname, datdba, coalesce(datacl, acldefault('d', datdba)) FROM pg_database
        UNION ALL SELECT 'type ' || oid::regtype, typowner, coalesce(typacl, acldefault('T', typowner)) FROM pg_type
            WHERE typnamespace = 'public'::regnamespace
        UNION ALL SELECT 'language ' || lanname, lanowner, coalesce(lanacl, acldefault('l', lanowner)) FROM pg_language
        UNION ALL SELECT 'large object ' || oid, lomowner, coalesce(lomacl, acldefault('L', lomowner))
            FROM pg_largeobject_metadata
        UNION ALL SELECT 'default ' || defaclrole::regrole, defaclrole, defaclacl FROM pg_default_acl
        UNION ALL SELECT 'statistics ' || stxname, stxowner, NULL FROM pg_statistic_ext
        UNION ALL SELECT 'tablespace ' || spcname, spcowner, coalesce(spcacl, acldefault('t', spcowner)) FROM pg_tablespace
    )
    SELECT what, owner::regrole::text, grantee::regrole::text, privilege_type, is_grantable
    FROM things LEFT JOIN LATERAL aclexplode(acl) ON true ORDER BY 1, 2, 3, 4
"""
ROLES = """
    SELECT r.rolname, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication, r.rolbypassrls,
           r.rolconnlimit, (SELECT array_agg(setconfig) FROM pg_db_role_setting WHERE setrole = r.oid),
           (SELECT array_agg(roleid::regrole::text) FROM pg_auth_members WHERE member = r.oid)
    FROM pg_roles AS r WHERE rolname !~ '^rollcall_' ORDER BY 1
"""
FOREIGN = """
    CREATE ROLE shop LOGIN PASSWORD 'shop';
    CREATE ROLE report LOGIN PASSWORD 'report';
    GRANT CREATE ON SCHEMA public TO shop;
    ALTER ROLE report SET statement_timeout = '7s';
    SET ROLE shop;
    CREATE TABLE orders (id serial PRIMARY KEY, email text, secret text);
    CREATE TABLE message (id int);
    CREATE TABLE receipt (number int);
    CREATE TABLE django_migrations (id int, app text, name text);
    INSERT INTO django_migrations VALUES (1, 'shop', '0001');
    CREATE TABLE auth_user (id int, password text);
    CREATE STATISTICS message_state_city_combinations ON email, secret FROM orders;
    GRANT SELECT (email) ON orders TO report;
    GRANT SELECT ON message TO PUBLIC;
    CREATE FUNCTION total() RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE TYPE mood AS ENUM ('good');
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO report;
    SELECT lo_from_bytea(0, 'x');
    RESET ROLE;
    CREATE SCHEMA sales AUTHORIZATION shop;
"""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Primary]:
    """A primary of its own, with Rollcall's roles in its own database."""
    made = Primary(servers_folder() / f"roles-{time.monotonic_ns()}", free_port(), settings=FAST, dies_with_parent=True)
    made.start()
    yield made
    made.stop()


def url_in(server: Primary, database: str, user: str = "", password: str = "") -> str:
    base = server.url.rsplit("/", 1)[0]
    if user:
        base = f"postgres://{user}:{password}@127.0.0.1:{server.port}"
    return f"{base}/{database}"


def run(url: str, statement: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def privileges(url: str) -> list[tuple[Any, ...]]:
    """All but those of Rollcall's roles, and of its schema."""
    own = re.compile(r"(schema rollcall_internal|function rollcall_internal\.\w+\(\))$")
    found = [
        row
        for row in run(url, PRIVILEGES)
        if not own.match(row[0]) and not any(str(role).startswith("rollcall_") for role in row[1:3])
    ]
    return [*found, *run(url, ROLES)]


def test_in_a_database_full_of_others_nobody_loses_or_gains_anything(server: Primary) -> None:
    run(server.url, "CREATE DATABASE shared")
    url = url_in(server, "shared")
    run(url, FOREIGN)
    before = privileges(url)
    assert len(before) > 3_000 and any("orders" in row[0] for row in before)
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(ROLES_SQL.read_text())
        (warning,) = [notice for notice in connection.notices if "WARNING" in notice]
    assert "is not Rollcall's alone" in warning and "left as they are" in warning
    assert privileges(url) == before
    assert run(url_in(server, "shared", "shop", "shop"), "SELECT count(*)::int FROM orders") == [(0,)]
    assert run(url_in(server, "shared", "report", "report"), "SELECT email FROM orders") == []
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(url_in(server, "shared", "rollcall_owner", server.password_of("owner")), "SELECT FROM orders")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(url_in(server, "shared", "rollcall_owner", server.password_of("owner")), "DROP TABLE message")


def test_a_schema_of_the_same_name_that_is_somebody_elses_is_refused(server: Primary) -> None:
    run(server.url, "CREATE DATABASE taken")
    url = url_in(server, "taken")
    run(url, "CREATE ROLE other; CREATE SCHEMA rollcall_internal AUTHORIZATION other")
    with pytest.raises(psycopg2.errors.RaiseException, match="belongs to somebody else"):
        run(url, ROLES_SQL.read_text())


@pytest.mark.parametrize(
    "made",
    [
        "CREATE FUNCTION public.trap(oid, regrole) RETURNS boolean LANGUAGE plpgsql AS $f${body} RETURN true; END$f$;"
        "CREATE OPERATOR public.<> (LEFTARG = oid, RIGHTARG = regrole, FUNCTION = public.trap)",
        "CREATE FUNCTION public.format(text, name) RETURNS text LANGUAGE plpgsql AS $f${body} RETURN 'SELECT 1'; END$f$",
    ],
    ids=["oid <> regrole", "format(text, name)"],
)
def test_run_again_it_executes_nothing_of_the_owners_making(server: Primary, made: str) -> None:
    body = "BEGIN IF current_user <> 'rollcall_owner' THEN CREATE TABLE IF NOT EXISTS public.trapped (n int); END IF;"
    run(server.url_of("owner"), made.replace("{body}", body))
    run(server.url, ROLES_SQL.read_text())
    assert run(server.url, "SELECT to_regclass('public.trapped') IS NULL") == [(True,)]


def test_run_again_it_takes_back_what_a_role_has_given_itself(server: Primary) -> None:
    run(server.url, "GRANT pg_read_all_stats TO rollcall_manage; ALTER ROLE rollcall_ingest CREATEDB")
    run(server.url_of("ingest"), "ALTER ROLE rollcall_ingest SET statement_timeout = 0")
    assert run(server.url_of("ingest"), "SHOW statement_timeout") == [("0",)]
    run(server.url, ROLES_SQL.read_text())
    assert run(server.url_of("ingest"), "SHOW statement_timeout") == [("30s",)]
    assert run(server.url, "SELECT rolcreatedb FROM pg_roles WHERE rolname = 'rollcall_ingest'") == [(False,)]
    assert run(server.url_of("manage"), "SELECT pg_has_role('pg_read_all_stats', 'MEMBER')") == [(False,)]


def test_nobody_sees_what_the_admin_asks_and_manage_sees_nobody(server: Primary) -> None:
    with closing(psycopg2.connect(server.url_of("admin"))) as admin, admin.cursor() as cursor:
        cursor.execute("SELECT 'the key of a session'")
        query = "SELECT query FROM pg_stat_activity WHERE usename = 'rollcall_admin'"
        assert run(server.url, query) == [("",)]
    with closing(psycopg2.connect(server.url_of("ingest"))) as ingest, ingest.cursor() as cursor:
        cursor.execute("SELECT 'the value of a row'")
        query = "SELECT query FROM pg_stat_activity WHERE usename = 'rollcall_ingest'"
        assert "the value of a row" not in str(run(server.url_of("manage"), query))
    assert run(server.url_of("manage"), "SELECT rollcall_internal.received_timeline()") == [(None,)], "on a primary"
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(server.url_of("ingest"), "SELECT rollcall_internal.received_timeline()")


def test_each_role_has_its_limits(server: Primary) -> None:
    limits = dict(sql(server, "SELECT rolname, rolconnlimit FROM pg_roles WHERE rolname LIKE 'rollcall_%'"))
    most = int(sql(server, "SHOW max_connections")[0][0])
    assert limits["rollcall_ingest"] == 0.8 * most and all(10 <= limit < most for limit in limits.values())
    for role in ("ingest", "admin", "manage"):
        held = run(
            server.url_of(role), "SELECT current_setting('statement_timeout'), current_setting('temp_file_limit')"
        )
        assert held[0][0] == "30s" and held[0][1] in ("64MB", "256MB")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(server.url_of(role), "SET temp_file_limit = -1")
        writing = server.url_of(role) + "?options=-c%20default_transaction_read_only%3Doff"
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(writing, "CREATE TEMPORARY TABLE x (n int)")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(writing, f"ALTER ROLE rollcall_{role} CONNECTION LIMIT -1")
    opened = []
    try:
        with pytest.raises(psycopg2.OperationalError, match="too many connections for role"):
            for _ in range(limits["rollcall_manage"] + 1):
                opened.append(psycopg2.connect(server.url_of("manage")))
        assert run(server.url_of("ingest"), "SELECT 1") == [(1,)]
    finally:
        for connection in opened:
            connection.close()
