"""compose/postgres/roles.sql: it changes nobody else's rights, nobody can abuse it, and its roles have limits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import psycopg2.errors
import pytest

from compose.local.servers import ROLES_SQL, Primary, Replica, postgres_program
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
PULSE = "from ingest_service.writing.pulse import Pulse; assert Pulse(pulse_seconds=1, keep_hours=48).one_tick() is not None"
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
# The effective rights of each of the others, including those of PUBLIC.
EFFECTIVE = """
    SELECT r.rolname, what, allowed FROM pg_roles AS r, LATERAL (
        SELECT 'database ' || may, has_database_privilege(r.oid, current_database(), may)
            FROM unnest(ARRAY['CONNECT', 'TEMP', 'CREATE']) AS may
        UNION ALL SELECT 'schema ' || nspname || may, has_schema_privilege(r.oid, n.oid, may)
            FROM pg_namespace AS n, unnest(ARRAY['USAGE', 'CREATE']) AS may
            WHERE nspname NOT IN ('rollcall_internal', 'rollcall_triggers')
        UNION ALL SELECT 'function ' || p.oid::regprocedure, has_function_privilege(r.oid, p.oid, 'EXECUTE')
            FROM pg_proc AS p WHERE pronamespace::regnamespace::text <> 'rollcall_internal'
        UNION ALL SELECT 'table ' || c.oid::regclass || may, has_table_privilege(r.oid, c.oid, may)
            FROM pg_class AS c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS may
            WHERE relkind IN ('r', 'v')
        UNION ALL SELECT 'columns ' || c.oid::regclass, has_any_column_privilege(r.oid, c.oid, 'SELECT')
            FROM pg_class AS c WHERE relkind IN ('r', 'v')
        UNION ALL SELECT 'type ' || t.oid::regtype, has_type_privilege(r.oid, t.oid, 'USAGE') FROM pg_type AS t
            WHERE typnamespace = 'public'::regnamespace
    ) AS rights (what, allowed)
    WHERE rolname IN ('shop', 'report') ORDER BY 1, 2
"""


@pytest.fixture(scope="module")
def untouched() -> Primary:
    """A primary with Rollcall's roles in its own database; it does not run."""
    made = Primary(servers_folder() / "untouched", free_port(), settings=FAST, dies_with_parent=True)
    made.start()
    made.stop()
    return made


@pytest.fixture
def server(untouched: Primary) -> Iterator[Primary]:
    """A primary of its own, to be spoilt: a copy of the untouched one, which takes a tenth of what initdb takes."""
    made = Primary(servers_folder() / f"roles-{time.monotonic_ns()}", free_port(), settings=FAST, dies_with_parent=True)
    subprocess.run(["cp", "-a", untouched.folder, made.folder], check=True)
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


def make_roles(url: str, *options: str) -> str:
    """As the runbook says; what psql says of it."""
    command = [postgres_program("psql"), "--no-psqlrc", "--quiet", *options, "-f", str(ROLES_SQL), url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr


def migrate(url: str, server: Primary, *command: str) -> subprocess.CompletedProcess[str]:
    """With the admin's tables."""
    return manage(url, server, "migrate", "--verbosity=0", "--skip-checks", *command)


def manage(url: str, server: Primary, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of ingest, in this database."""
    variables = {
        "DATABASE_URL": url,
        "ADMIN_DATABASE_URL": server.url_of("admin"),
        "SECRET_KEY": "only for these tests, and long enough for the checks",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "AUTH": "off",
        "DJANGO_SETTINGS_MODULE": "ingest_service.settings",
    }
    return subprocess.run(
        [sys.executable, "-m", "ingest_service", *command],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_in_a_database_full_of_others_nobody_loses_or_gains_anything(server: Primary) -> None:
    run(server.url, "CREATE DATABASE shared")
    url = url_in(server, "shared")
    run(url, FOREIGN)
    before, in_effect = privileges(url), run(url, EFFECTIVE)
    assert len(before) > 3_000 and len(in_effect) > 6_000 and any("orders" in row[0] for row in before)
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(ROLES_SQL.read_text())
        (warning,) = [notice for notice in connection.notices if "WARNING" in notice]
    assert "is not Rollcall's alone" in warning and "left as they are" in warning
    assert privileges(url) == before
    assert run(url, EFFECTIVE) == in_effect
    assert run(url_in(server, "shared", "shop", "shop"), "SELECT count(*)::int FROM orders") == [(0,)]
    assert run(url_in(server, "shared", "report", "report"), "SELECT email FROM orders") == []
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(url_in(server, "shared", "rollcall_owner", server.password_of("owner")), "SELECT FROM orders")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(url_in(server, "shared", "rollcall_owner", server.password_of("owner")), "DROP TABLE message")


def test_one_thing_of_somebody_else_is_enough_to_leave_the_rights_of_public_alone(server: Primary) -> None:
    run(server.url, "CREATE DATABASE one")
    run(server.url, "CREATE ROLE other; GRANT CREATE ON DATABASE one TO other")
    with closing(psycopg2.connect(url_in(server, "one"))) as connection, connection.cursor() as cursor:
        for thing, warned in {
            "CREATE TABLE orders (id int)": True,
            "CREATE VIEW orders AS SELECT 1 AS id": True,
            "CREATE SEQUENCE numbers": True,
            "CREATE TABLE django_session (session_key text)": True,
            "CREATE FUNCTION total() RETURNS int LANGUAGE sql AS 'SELECT 1'": True,
            "CREATE DOMAIN email AS text": True,
            "CREATE SCHEMA sales": True,
            "SELECT lo_create(0)": True,
            "SET ROLE other; CREATE PUBLICATION changes; RESET ROLE": True,
            # Neither an extension is an application, nor what was left by a session.
            "CREATE EXTENSION pg_stat_statements": False,
            "CREATE TEMPORARY TABLE mine (id int)": False,
            "SELECT 1": False,
        }.items():
            del connection.notices[:]
            cursor.execute(thing)
            cursor.execute(ROLES_SQL.read_text())
            cursor.execute("SELECT datacl::text FROM pg_database WHERE datname = 'one'")
            ((rights,),) = cursor.fetchall()
            assert any("is not Rollcall's alone" in notice for notice in connection.notices) is warned, thing
            assert ("=Tc/" in rights) is warned, thing
            connection.rollback()


def test_what_was_made_before_there_were_roles_is_given_to_the_owner(server: Primary) -> None:
    run(server.url, "CREATE DATABASE old")
    url, owner = url_in(server, "old"), url_in(server, "old", "rollcall_owner", server.password_of("owner"))
    done = migrate(url, server)
    assert done.returncode == 0, done.stdout
    holders = """
        SELECT DISTINCT holder::regrole::text FROM (
            SELECT relowner FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT stxowner FROM pg_statistic_ext
            UNION ALL SELECT relowner FROM pg_class WHERE relnamespace = 'rollcall_triggers'::regnamespace
            UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname = 'rollcall_triggers'
        ) AS things (holder)
    """
    run(url, "CREATE TABLE orders (id int)")
    assert "it holds table public.orders of rollcall (1 in all)" in make_roles(url, "-1")
    assert run(url, holders) == [("rollcall",)], "nothing is given where others live"
    run(url, "DROP TABLE orders")
    assert make_roles(url, "-1") == ""
    assert run(url, holders) == [("rollcall_owner",)]
    for command in (("shared_models", "zero"), ()):
        done = migrate(owner, server, *command)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("adopter", ["shop", "rollcall"])
def test_a_table_that_was_adopted_stays_whose_it_is(server: Primary, adopter: str) -> None:
    run(server.url, "CREATE DATABASE adopted")
    url = url_in(server, "adopted")
    run(url, FOREIGN)
    run(url, "GRANT CREATE ON DATABASE adopted TO shop")
    as_adopter = url_in(server, "adopted", "shop", "shop") if adopter == "shop" else url
    done = manage(as_adopter, server, "adopt", "public.orders", "--counter", "mails=email", "--apply")
    assert done.returncode == 0, done.stdout
    before, in_effect = privileges(url), run(url, EFFECTIVE)
    assert any("rollcall_triggers.departure" in row[0] for row in before)
    for _ in range(2):
        assert "is not Rollcall's alone" in make_roles(url, "-1")
        assert privileges(url) == before and run(url, EFFECTIVE) == in_effect
    done = manage(as_adopter, server, "adopt", "public.orders", "--counter", "mails=email", "--apply")
    assert done.returncode == 0, done.stdout
    reading = url_in(server, "adopted", "rollcall_manage", server.password_of("manage"))
    run(reading, "BEGIN; LOCK TABLE orders IN ACCESS SHARE MODE; COMMIT")
    assert run(reading, "SELECT count(*)::int FROM rollcall_triggers.departure") == [(0,)]
    run(url_in(server, "adopted", "shop", "shop"), "INSERT INTO orders (email) VALUES ('a'); DELETE FROM orders")
    assert run(reading, "SELECT element FROM rollcall_triggers.departure") == [([["a"]],)]
    # Ingest prunes with the rights that adopt has given it, in a database in which it has no table of its own.
    run(url, "UPDATE rollcall_triggers.departure SET create_time = now() - interval '2 days'")
    pruning = url_in(server, "adopted", "rollcall_ingest", server.password_of("ingest"))
    done = manage(pruning, server, "shell", "--no-imports", "-c", PULSE)
    assert done.returncode == 0, done.stdout
    assert run(reading, "SELECT element FROM rollcall_triggers.departure") == [(None,)]


def test_migrate_grants_nothing_on_tables_of_others(server: Primary) -> None:
    run(server.url, "CREATE DATABASE beside")
    run(server.url, "CREATE ROLE shop")
    url = url_in(server, "beside")
    run(url, "CREATE TABLE auth_user (id int, password text, last_login date); ALTER TABLE auth_user OWNER TO shop")
    make_roles(url, "-1")
    owner = url_in(server, "beside", "rollcall_owner", server.password_of("owner"))
    # Those of ingest only: the admin's own would be in each other's way.
    for app in ("shared_models", "ingest_service"):
        done = migrate(owner, server, app)
        assert done.returncode == 0, done.stdout
    assert run(url, "SELECT relacl FROM pg_class WHERE relname = 'auth_user'") == [(None,)]
    assert run(url, "SELECT has_table_privilege('rollcall_manage', 'message', 'SELECT')") == [(True,)]


def test_a_schema_of_the_same_name_that_is_somebody_elses_is_refused(server: Primary) -> None:
    """Also statement by statement, where what came before an error stays."""
    run(server.url, "CREATE DATABASE taken")
    url = url_in(server, "taken")
    run(url, "CREATE ROLE other; CREATE SCHEMA rollcall_internal AUTHORIZATION other")
    run(url, "GRANT USAGE ON SCHEMA rollcall_internal TO PUBLIC")
    held = "SELECT nspacl FROM pg_namespace WHERE nspname = 'rollcall_internal'"
    before = run(url, held)
    said = make_roles(url)
    assert 'the schema "rollcall_internal" belongs to "other"' in said and "is not Rollcall's alone" in said
    assert run(url, held) == before
    assert run(url, "SELECT proname FROM pg_proc WHERE pronamespace = 'rollcall_internal'::regnamespace") == []


@pytest.mark.parametrize(
    "made",
    [
        "CREATE FUNCTION public.trap(oid, regrole) RETURNS boolean LANGUAGE plpgsql AS $f${body} RETURN true; END$f$;"
        "CREATE OPERATOR public.<> (LEFTARG = oid, RIGHTARG = regrole, FUNCTION = public.trap)",
        "CREATE FUNCTION public.format(text, name) RETURNS text LANGUAGE plpgsql AS $f${body} RETURN 'SELECT 1'; END$f$",
        "CREATE FUNCTION public.trap() RETURNS text LANGUAGE plpgsql AS $f${body} RETURN 'auth'; END$f$;"
        "CREATE VIEW public.django_migrations AS SELECT public.trap() AS app;"
        "CREATE VIEW public.message AS SELECT public.trap() AS username",
    ],
    ids=["oid <> regrole", "format(text, name)", "a view in place of a table"],
)
def test_run_again_it_executes_nothing_of_the_owners_making(server: Primary, made: str) -> None:
    run(server.url_of("owner"), made.replace("{body}", TRAP))
    assert "ERROR" not in make_roles(server.url, "-1")
    assert run(server.url, SPRUNG) == [(False,)]


TRAP = "BEGIN IF current_user <> 'rollcall_owner' THEN CREATE TABLE IF NOT EXISTS public.trapped (n int); END IF;"
SPRUNG = "SELECT to_regclass('public.trapped') IS NOT NULL"


def test_nor_does_the_local_stack_when_it_makes_a_replica(server: Primary) -> None:
    function = "public.pg_create_physical_replication_slot(text, boolean) RETURNS text LANGUAGE plpgsql"
    run(server.url_of("owner"), f"CREATE FUNCTION {function} AS $f${TRAP} RETURN ''; END$f$")
    replica = Replica(servers_folder() / f"of-{server.name}", free_port(), server, settings=FAST, dies_with_parent=True)
    replica.create()
    assert run(server.url, SPRUNG) == [(False,)]
    assert run(server.url, "SELECT slot_name FROM pg_replication_slots") == [(replica.slot,)]


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
        # Nor does the log have it, where a statement fails or is ended, or its error quotes a value.
        for failing in ("SELECT 'the key of a session'::int", "SELECT 'the key of a session' FROM nowhere"):
            admin.rollback()
            with pytest.raises(psycopg2.Error):
                cursor.execute(failing)
    log = server.log.read_text()
    assert 'relation "nowhere" does not exist' in log and "FROM nowhere" not in log
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


MODES = (
    *("ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE"),
    *("SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"),
)


def test_who_may_lock_what_is_what_the_threat_model_says(server: Primary) -> None:
    done = migrate(server.url_of("owner"), server)
    assert done.returncode == 0, done.stdout
    allowed: dict[tuple[str, str], list[str]] = {}
    for role in ("ingest", "admin", "manage"):
        with closing(psycopg2.connect(server.url_of(role))) as connection, connection.cursor() as cursor:
            connection.set_session(readonly=False)
            for table in ("message", "receipt"):
                allowed[role, table] = []
                for mode in MODES:
                    try:
                        cursor.execute(f"LOCK TABLE {table} IN {mode} MODE")
                        allowed[role, table].append(mode)
                    except psycopg2.errors.InsufficientPrivilege:
                        pass
                    connection.rollback()
            for lock in ("pg_advisory_lock", "pg_try_advisory_lock_shared", "pg_advisory_xact_lock"):
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    cursor.execute(f"SELECT count({lock}(n)) FROM generate_series(1, 100000) AS n")
                connection.rollback()
    assert allowed == {
        ("ingest", "message"): [],
        ("ingest", "receipt"): list(MODES),
        ("admin", "message"): list(MODES),
        ("admin", "receipt"): [],
        ("manage", "message"): ["ACCESS SHARE"],
        ("manage", "receipt"): [],
    }
