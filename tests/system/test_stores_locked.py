"""Tries each credential of the stores: its own work is allowed, and that of the others is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import psycopg2
import psycopg2.errors
import pytest
import redis

from compose.local.servers import POSTGRES_ROLES, REDIS_USERS
from compose.local.stack import Stack
from manage_service.protocol import groups
from shared_models import declarations
from shared_models.declarations import Storage, Term
from shared_models.protocol import keys, states, steps, storages
from tests.servers import sql, wait_for
from tests.system.asking import ask, count, distinct_users

MESSAGE = "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Ithaca', 'door', '')"
USERS = keys.of_counter("users")


@contextmanager
def logged_in(url: str) -> Iterator[Any]:
    """A cursor, in a transaction that is rolled back."""
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def test_the_passwords_are_kept_as_scram_verifiers(live: Stack) -> None:
    kept = sql(live.primary, "SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'rollcall_%'")
    assert {name for name, _ in kept} == {f"rollcall_{role}" for role in POSTGRES_ROLES}
    assert all(password.startswith("SCRAM-SHA-256$") for _, password in kept)


@pytest.mark.parametrize("role", POSTGRES_ROLES)
def test_a_wrong_password_is_refused_and_no_role_is_more_than_it_should_be(live: Stack, role: str) -> None:
    password = live.primary.password_of(role)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(live.primary.url_of(role).replace(password, "0" * 32))
    ((superuser, database, roles, replication),) = sql(
        live.primary,
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication FROM pg_roles WHERE rolname = %s",
        f"rollcall_{role}",
    )
    assert (superuser, database, roles, replication) == (False, False, False, role == "replica")


def test_nobody_but_the_roles_may_connect_to_the_database(live: Stack) -> None:
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(live.primary.url_of("replica"))


@pytest.mark.parametrize(
    "statement",
    [
        MESSAGE + " RETURNING id, xact",
        "SELECT id, xact FROM message LIMIT 1",
        "INSERT INTO receipt (key, fingerprint, answer) VALUES ('k', '', '')",
        "UPDATE receipt SET answer = ''",
        "DELETE FROM receipt",
        "SELECT name FROM django_migrations",
        "SELECT pg_logical_emit_message(true, 'rollcall', 'pulse')",
    ],
)
def test_ingest_may_do_its_work(live: Stack, statement: str) -> None:
    with logged_in(live.primary.url_of("ingest")) as cursor:
        cursor.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT username FROM message",
        "SELECT * FROM message",
        "UPDATE message SET username = 'mallory'",
        "DELETE FROM message",
        "TRUNCATE message",
        MESSAGE.replace("message)", "message, xact)").replace("'')", "'', 1)"),
        MESSAGE.replace("message)", "message, id)").replace("'')", "'', 1)"),
        MESSAGE.replace("message)", "message, create_time)").replace("'')", "'', now())"),
        "DROP TABLE message",
        "ALTER TABLE message DISABLE TRIGGER ALL",
        "CREATE TABLE loot (id int)",
        "CREATE TEMPORARY TABLE loot (id int)",
        "DELETE FROM django_migrations",
        "SET ROLE rollcall_owner",
        "SELECT rolpassword FROM pg_authid",
        "COPY message TO PROGRAM 'cat'",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT pg_create_physical_replication_slot('loot')",
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'loot')",
    ],
)
def test_ingest_may_not_do_the_work_of_others(live: Stack, statement: str) -> None:
    with logged_in(live.primary.url_of("ingest")) as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cursor.execute(statement)


def test_manage_reads_and_is_read_only_on_the_primary_too(live: Stack) -> None:
    for server in (live.primary, live.replica):
        with logged_in(server.url_of("manage")) as cursor:
            cursor.execute("SELECT username, xact FROM message")
            cursor.execute("SHOW transaction_read_only")
            assert cursor.fetchall() == [("on",)]
    with logged_in(live.primary.url_of("manage")) as cursor, pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        cursor.execute(MESSAGE)


@pytest.mark.parametrize(
    "statement", [MESSAGE, "DELETE FROM message", "SELECT answer FROM receipt", "CREATE TABLE loot (id int)"]
)
def test_manage_may_not_write_where_it_overrules_its_own_setting(live: Stack, statement: str) -> None:
    with logged_in(live.primary.url_of("manage")) as cursor:
        cursor.execute("SET TRANSACTION READ WRITE")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(statement)


def test_the_owner_owns_the_tables_and_may_not_read_the_system(live: Stack) -> None:
    owners = sql(live.primary, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
    assert owners == [("rollcall_owner",)]
    with logged_in(live.primary.url_of("owner")) as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cursor.execute("SELECT rolpassword FROM pg_authid")


def test_redis_wants_a_user_and_the_right_password(live: Stack) -> None:
    for url in ("redis://{}", "redis://:x@{}", "redis://default:x@{}", "redis://query:x@{}", "redis://admin:@{}"):
        with (
            redis.Redis.from_url(url.format(f"127.0.0.1:{live.valkey.port}")) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()


def refused(live: Stack, user: str, *command: Any) -> bool:
    """Whether Redis refuses this user the command, or the key."""
    with redis.Redis.from_url(live.valkey.url_of(user)) as client:
        try:
            client.execute_command(*command)
        except redis.exceptions.NoPermissionError:
            return True
        except redis.ResponseError as error:
            # In a script it is the script that fails; the second of these sentences is Redis 7.0's.
            said = ("ACL failure in script", "The user executing the script can't", "permission")
            return any(words in str(error) for words in said)
        return False


# Each a command that fits the keys, so that only the user decides; what is allowed leaves the counters as they are.
RECORD, SWEEP, MARK_DEPARTING = (steps.SCRIPTS[name, Storage.SET] for name in ("record", "sweep", "mark_departing"))
RECORDED = (USERS.members, USERS.suspects, USERS.departing, USERS.intake, USERS.state)
Commands: TypeAlias = list[tuple[str | int, ...]]
READS: Commands = [
    ("SCARD", USERS.members),
    ("HMGET", USERS.state, "cursor"),
    ("SMISMEMBER", USERS.members, "x"),
    ("PING",),
]
ALLOWED: dict[str, Commands] = {
    "query": [*READS, ("INFO", "memory"), ("HMGET", USERS.fill, "token"), ("LRANGE", USERS.samples, 0, 9)],
    "ingest": [
        ("EVALSHA", RECORD.sha, 5, *RECORDED, "", "", "", "door"),
        ("SMISMEMBER", USERS.members, "x"),
        ("HMGET", USERS.state, "cursor"),
        ("INCRBY", keys.of_rate("ingest", "door", 0), 1),  # what redis-py sends for incr
        ("EXPIRE", keys.of_rate("ingest", "door", 0), 5),
    ],
    "manage": [
        *READS,
        ("HGET", keys.KEEPER, "job"),
        ("LRANGE", keys.RUNS_OPEN, 0, -1),
        ("LTRIM", USERS.samples, -1_000, -1),
        ("ZREVRANGE", keys.RUNS, 0, 1),
        ("SCAN", 0),
        ("SSCAN", USERS.members, 0),
        ("SET", keys.of_lock("door"), "x", "PX", 1),
        ("INCRBY", keys.of_rate("manage", "door", 0), 1),
    ],
}
# For all three: what takes long, what tells or changes how Redis runs, other databases' and other programs' keys.
FOR_NOBODY: Commands = [
    ("KEYS", "*"),
    ("SMEMBERS", USERS.members),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("ACL", "LIST"),
    ("SHUTDOWN",),
    ("SAVE",),
    ("REPLICAOF", "NO", "ONE"),
    ("MONITOR",),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('x', function() return 1 end)"),
    ("SUBSCRIBE", "x"),
    ("RENAME", USERS.members, USERS.suspects),
    ("SMISMEMBER", "somebody:elses", "x"),
    ("GET", "somebody:elses"),
    ("EVAL", "return redis.call('FLUSHALL')", 0),
]
REFUSED: dict[str, Commands] = {
    "query": [
        ("SCAN", 0),
        ("SADD", USERS.members, "mallory"),
        ("DEL", USERS.members),
        ("HSET", USERS.state, "cursor", 1),
        ("EVAL", "return 1", 0),
        ("EVALSHA", RECORD.sha, 5, *RECORDED, "", "", "", "mallory"),
        ("SCRIPT", "LOAD", "return 1"),
        ("HMGET", USERS.suspects, "x"),
        ("HMGET", keys.KEEPER, "job"),
        ("HMGET", keys.of_run("x"), "document"),
        ("SSCAN", USERS.members, 0),
        ("RPUSH", USERS.samples, "0 1"),
        ("LRANGE", keys.RUNS_OPEN, 0, -1),
    ],
    "ingest": [
        ("SCAN", 0),
        ("RPUSH", USERS.samples, "0 1"),
        ("SREM", USERS.members, "x"),
        ("DEL", USERS.members),
        ("UNLINK", USERS.state),
        ("SSCAN", USERS.members, 0),
        ("EVAL", RECORD.text, 5, *RECORDED, "", "", "", "door"),
        ("SCRIPT", "LOAD", "while true do end"),
        ("SCRIPT", "EXISTS", RECORD.sha),
        ("EVALSHA", SWEEP.sha, 4, USERS.members, USERS.suspects, USERS.intake, USERS.state, "token", "", "door"),
        ("EVALSHA", MARK_DEPARTING.sha, 2, USERS.state, USERS.departing, "token", "door"),
        ("HSET", USERS.fill, "token", "x"),
        ("HGET", USERS.fill, "token"),
        ("DEL", USERS.fill),
        ("DEL", USERS.state),
        ("HSET", USERS.state, "cursor", "x"),
        ("HINCRBY", USERS.state, "cursor", 1),
        ("HDEL", USERS.state, "cursor"),
        ("HDEL", USERS.intake, "size"),
        ("DEL", USERS.intake),
        ("HSET", keys.of_run("x"), "document", "{}"),
        ("RPUSH", keys.RUNS_OPEN, "x"),
        ("SET", keys.of_lock("keeper"), "x"),
        ("HSET", keys.KEEPER, "job", "x"),
        ("INCRBY", keys.of_rate("manage", "x", 0), 1),
        ("EXPIRE", USERS.members, 0),
        ("EXPIRE", USERS.state, 0),
        ("SADD", USERS.intake, "x"),
    ],
    "manage": [
        ("EVAL", "return 1", 0),
        ("INCRBY", keys.of_rate("ingest", "x", 0), 1),
        ("SET", USERS.members, "x"),
        ("RENAME", keys.KEEPER, keys.RUNS),
        ("SPOP", USERS.members),
    ],
}


@pytest.mark.parametrize("user", ALLOWED)
def test_a_user_of_redis_may_do_its_work_and_nothing_else(live: Stack, user: str) -> None:
    assert [command for command in ALLOWED[user] if refused(live, user, *command)] == []
    assert [command for command in (*REFUSED[user], *FOR_NOBODY) if not refused(live, user, *command)] == []
    with live.valkey.client() as client:
        client.srem(USERS.members, "door")


def test_ingest_counts_again_when_the_keeper_has_loaded_the_scripts(live: Stack) -> None:
    """Ingest may call the scripts, and load none. What it could not count meanwhile is caught up."""
    with live.valkey.client() as client:
        client.script_flush()
    posted: list[str] = []

    def counted() -> bool:
        row = {"state": "NY", "city": "Ithaca", "username": f"scripted {len(posted)}", "message": ""}
        status, answer = ask(live.ingest, "POST", "/v1/messages", row)
        assert status == 201
        posted.append(row["username"])
        return bool(answer["counted"])

    wait_for(counted, "a row that is counted at once")
    wait_for(lambda: count(live) == distinct_users(live), "all rows to be counted")


def test_services_do_not_send_what_only_a_newer_redis_knows(live: Stack) -> None:
    """CLIENT SETINFO is of Redis 7.2; where it was sent, a connection has the name of a library."""
    with live.valkey.client() as client:
        ours = [each for each in client.client_list() if each["name"].startswith("rollcall-")]
    assert len(ours) >= 3 and {each.get("lib-name", "") for each in ours} == {""}


def test_there_are_no_other_users(live: Stack) -> None:
    with live.valkey.client() as client:
        assert set(client.acl_users()) == {*REDIS_USERS, "default"}
        assert client.acl_getuser("default")["enabled"] is False


def test_the_secrets_of_a_stack_are_its_users_alone(live: Stack) -> None:
    secret = [path for path in live.folder.rglob("*") if path.name.startswith(("password", "token", "users.acl"))]
    assert len(secret) > 10
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}


@pytest.mark.parametrize("storage", [Storage.GROUPS, Storage.LAST_SEEN])
def test_what_holds_groups_and_days_may_be_written_by_the_protocol(live: Stack, storage: Storage) -> None:
    """Each step by the service that takes it, with that service's rights."""
    (users,) = (each for each in declarations.COUNTERS if each.name == "users")
    day = Term("create_time", "date", "day", "UTC")
    counter = users.grouped(day) if storage is Storage.GROUPS else replace(users, name="seen", last_seen=day)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(declarations, "COUNTERS", (*declarations.COUNTERS, counter))
        name, at, element, later = counter.name, keys.of_counter(counter.name), b"2026-11-27\0ann", b"2026-11-28\0ann"
        with (
            redis.Redis.from_url(live.valkey.url_of("manage")) as manage,
            redis.Redis.from_url(live.valkey.url_of("ingest")) as ingest,
        ):
            steps.load_scripts(manage)
            try:
                steps.begin(manage, name, "t", 1, "1/1/1", {"complete_through": 0}, claim=0)
                steps.record(ingest, {name: [element, b"2026-11-27\0bob"]}, 5, "1/1/1")
                assert steps.fill(manage, name, "t", b"", b"=ann", [element])
                assert steps.promote(manage, name, "t", b"=ann")
                assert steps.record(ingest, {name: [element]}, 0, "1/1/1") == 0  # late, and there
                steps.mark(manage, name, "sweep", [element, b"2026-11-27\0bob"])
                steps.record(ingest, {name: [later]}, 6, "1/1/1")
                gone, _ = steps.sweep(manage, name, "sweep", {b"2026-11-27\0bob": b""}, "")
                assert gone == [b"2026-11-27\0bob"]
                assert [each for some in storages.scan(manage, at, 10) for each in some]
                assert storages.find(manage, at, [later]) == [storages.Found.THERE]
                assert groups.is_whole(counter, manage)
                if storage is Storage.GROUPS:
                    groups.drop(counter, groups.find_changed(counter, [b"2026-11-28"], manage), manage)
                    manage.srem(at.group(manage.hget(at.intake, "generation"), b"2026-11-28"), "ann")
                    groups.drop(counter, groups.find_changed(counter, [b"2026-11-28"], manage), manage)
                    ((group, token),) = groups.broken_groups(counter, manage).items()
                    assert steps.mend_group(manage, name, group, token, states.read_state(manage, name))
                groups.forget_generations(counter, manage)
            finally:
                manage.unlink(*manage.scan_iter(f"{at.members.removesuffix('members')}*".replace("[", "[[]")))
