"""Commands of docs/runbook.md, run unchanged; their output looks like the page's: see runbook.py.

Each drill goes through all commands of one section, those in its sentences, too. Those that take long run with `make test-long`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from compose.local.ordinary_user import own
from compose.local.ports import DEFAULTS
from compose.local.servers import POSTGRES_ROLES, ROLES_SQL, make_secret, write_private
from compose.local.stack import Stack
from shared_models.protocol import keys
from tests.contract.test_docs import section
from tests.servers import free_port, replay_paused, sql, wait_for
from tests.system.asking import count, distinct_users, mend
from tests.system.runbook import (
    BEGINNING,
    IN_BLOCKS,
    NOT_RUN,
    RUNBOOK,
    Shell,
    Walk,
    commands,
    commands_in_sentences,
    in_sentences,
    is_listed,
    looks_like,
    sections,
)
from tests.system.test_runbook import exact as exact
from tests.system.test_runbook import next_version as next_version

MESSAGE = "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Rome', %s, '')"

# The sections that a test below walks through: at its end, none of their commands is left.
WALKED = {
    *("## Cold start", "## Drift found", "## Replica lag", "## Redis lost", "## Failover of Redis"),
    *("## Failover of Postgres", "## Upgrade", "## Backup and restore", "## Adding a counter"),
}


def test_every_command_is_run_or_it_stands_why_not() -> None:
    unwalked = [title for title in sections() if title not in WALKED]
    found = [command for title in unwalked for command, _ in commands(title)]
    found += [command for title in unwalked for command in commands_in_sentences(title)]
    known = {command for title in WALKED for command, _ in commands(title)}
    known |= {command for title in WALKED for command in commands_in_sentences(title)}
    assert [each for each in found if each not in known and not is_listed(each)] == []
    # Nothing is listed that the page has no longer, and nothing stands in a kind of block that is not looked at.
    everything = {*IN_BLOCKS, *in_sentences(RUNBOOK)}
    assert [start for start in NOT_RUN if not any(each.startswith(start) for each in everything)] == []
    assert "```" not in RUNBOOK.replace("```sh\n", "").replace("\n```\n", "")
    walks = re.findall(r"Walk\(\w+, \"(## .+?)\"\)", Path(__file__).read_text())
    assert set(walks) == WALKED


@pytest.fixture
def shell(live: Stack) -> Iterator[Shell]:
    shell = Shell(live)
    yield shell
    shell.close()


@pytest.fixture
def wrecked(live: Stack) -> Iterator[None]:
    """Afterwards the stack is made anew: its servers are not those any longer that it knows."""
    yield
    live.reset()
    for name in ("second", "archive", "backups"):
        shutil.rmtree(live.folder / name, ignore_errors=True)


@pytest.fixture
def fresh() -> Iterator[Stack]:
    """A stack of which only a Postgres without roles and a Redis run. The passwords that the roles will have are chosen."""
    folder = Path(tempfile.mkdtemp(prefix="rollcall-cold-")).resolve()
    own(folder)
    stack = Stack(folder, {variable: free_port() for variable in DEFAULTS})
    try:
        stack.primary.begin()
        stack.valkey.start()
        stack.primary.wait_until_ready()
        for role in POSTGRES_ROLES:
            make_secret(stack.primary.folder / f"password-{role}")
        for service in (stack.ingest, stack.manage):
            service.make_token()
        yield stack
    finally:
        stack.down()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_exact(stack: Stack) -> None:
    wait_for(lambda: count(stack) == distinct_users(stack), "the count to be exact", seconds=60)


@pytest.mark.long
def test_a_cold_start_by_the_commands_of_the_runbook(fresh: Stack) -> None:
    shell = Shell(fresh)
    walk = Walk(shell, "## Cold start")
    walk.on(until="password")
    password = walk.skip()
    for role in POSTGRES_ROLES:
        shell.answers = f"{fresh.primary.password_of(role)}\n" * 2
        shell.run(password.replace("rollcall_ingest", f"rollcall_{role}"))
    # So that the stack, which copies the replica, does not make them again.
    write_private(fresh.primary.folder / "roles", hashlib.sha256(ROLES_SQL.read_bytes()).hexdigest())
    fresh.replica.start()
    walk.on()
    walk.end()
    wait_for(lambda: count(fresh) == 0, "a counter of an empty table")


def test_drift_is_found_and_repaired_by_the_commands_of_the_runbook(live: Stack, shell: Shell) -> None:
    mend(live)
    users = keys.of_counter("users")
    with live.valkey.client() as client:
        pipe = client.pipeline(transaction=True)
        pipe.sadd(users.members, "ghost")
        pipe.hincrby(users.intake, "size", 1)  # as if its row had been deleted since
        pipe.execute()
    walk = Walk(shell, "## Drift found")
    walk.on()
    walk.end()


def test_replica_lag_is_found_by_the_commands_of_the_runbook(live: Stack, shell: Shell) -> None:
    mend(live)
    walk = Walk(shell, "## Replica lag")
    with replay_paused(live.replica):
        sql(live.primary, MESSAGE, "lagging")
        walk.on(until="pg_stat_replication")
        streams, slots, _, replay = ("\n".join(shell.run(walk.skip())) for _ in range(4))
        assert "streaming" in streams and "(1 row)" in slots and "paused" in replay
        walk.aside("pg_wal_replay_resume")
        wait_until_exact(live)
    with contextlib.closing(psycopg2.connect(live.primary.url)) as held:
        walk.aside("pg_terminate_backend", before=f"PID={held.info.backend_pid}; ")
        with pytest.raises(psycopg2.OperationalError):
            held.cursor().execute("SELECT")
    walk.end()
    # Tables of other sections have the columns that `status` has today.
    printed = shell.run("python -m manage_service status")
    for row in re.findall(r"(?m)^ +(?:users|states) +live .*$", RUNBOOK):
        assert any(looks_like(row.replace("states", "users "), line) for line in printed), (row, printed)
    assert "│" not in RUNBOOK


@pytest.mark.long
def test_the_commands_that_the_runbook_begins_with_work(shell: Shell) -> None:
    for command in in_sentences(BEGINNING):
        if not is_listed(command):
            shell.run(command)


def test_a_lost_redis_looks_and_is_rebuilt_as_the_runbook_says(live: Stack, shell: Shell) -> None:
    mend(live)
    live.keeper.stop()
    assert shell.run('redis-cli -u "$REDIS" FLUSHDB') == ["OK"]
    assert 'redis-cli -u "$REDIS" FLUSHDB' in IN_BLOCKS
    walk = Walk(shell, "## Redis lost")
    cold = walk.left.pop(0)
    shell.check(*cold)
    live.keeper.begin()
    walk.on()
    walk.end()


@pytest.mark.long
def test_a_replica_of_redis_takes_over_by_the_commands_of_the_runbook(live: Stack, shell: Shell, wrecked: None) -> None:
    mend(live)
    walk = Walk(shell, "## Failover of Redis")
    walk.on(until="curl")
    live.valkey.kill()
    walk.on()
    wait_until_exact(live)
    walk.end()


@pytest.mark.long
def test_a_replica_of_postgres_takes_over_by_the_commands_of_the_runbook(
    live: Stack, shell: Shell, wrecked: None
) -> None:
    mend(live)
    walk = Walk(shell, "## Failover of Postgres")
    walk.aside("pg_last_wal_receive_lsn")
    walk.on(until="curl")
    wait_for(lambda: live.primary.running() is None, "the end of the primary")
    walk.on(until="pg_create_physical_replication_slot")
    ((exact,),) = sql(live.replica, "SELECT count(DISTINCT username) FROM message")
    assert count(live) == exact

    again = walk.left[2:6]  # the two lines, the start, and that the slot is active
    walk.on(until="pg_ctl -D .local/primary/data stop")
    # What it has and the new primary has not.
    sql(live.primary, "SELECT pg_promote()")
    sql(live.primary, MESSAGE, "only there")
    walk.on(until="ALTER SYSTEM SET synchronous")
    for command, shown in again:
        shell.check(command, shown)
    assert sql(live.primary, "SELECT count(*) FROM message WHERE username = 'only there'") == [(0,)]

    walk.aside("make reset")
    live.up()
    wait_until_exact(live)
    walk.on(until="kill")
    walk.on(until="RESET")
    wait_until_exact(live)
    walk.on()
    walk.end()


@pytest.mark.long
def test_an_upgrade_by_the_commands_of_the_runbook(
    live: Stack, wrecked: None, exact: Stack, next_version: Path, shell: Shell
) -> None:
    walk = Walk(shell, "## Upgrade")
    assert walk.aside("ACL LOAD") == ["OK"]
    walk.on(until="sed")
    # All of it by the new version, from when its users of Redis are there.
    walk.on(until="make up")
    shutil.copytree(shell.checkout / "compose", next_version / "compose", ignore=shutil.ignore_patterns("__pycache__"))
    shell.checkout = next_version
    walk.on(until="pg_dump")
    walk.aside("--scan")
    with live.valkey.client() as client:
        assert list(client.scan_iter("rollcall:2:*")) == [] and list(client.scan_iter("rollcall:3:*"))
    wait_until_exact(live)
    walk.on()
    wait_until_exact(live)
    walk.end()


def test_a_backup_is_made_and_verified_by_the_commands_of_the_runbook(shell: Shell) -> None:
    for command, shown in commands("## Backup and restore")[:2]:
        assert "/backup/monday" in command
        shell.check(command, shown)
    shutil.rmtree(shell.backup)


@pytest.mark.long
def test_a_backup_is_restored_by_the_commands_of_the_runbook(live: Stack, shell: Shell, wrecked: None) -> None:
    mend(live)
    walk = Walk(shell, "## Backup and restore")
    walk.on(until="make down")
    sql(live.primary, MESSAGE, "after the backup")
    wait_until_exact(live)
    walk.on(until="ALTER SYSTEM")
    assert distinct_users(live) == count(live)
    assert sql(live.primary, "SELECT count(*) FROM message WHERE username = 'after the backup'") == [(0,)]


@pytest.mark.long
def test_a_moment_is_restored_by_the_commands_of_the_runbook(live: Stack, shell: Shell, wrecked: None) -> None:
    mend(live)
    archive = live.folder / "archive"
    shell.run(f"mkdir {archive}")
    live.primary.settings |= {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"}
    live.primary.stop()
    live.up()
    walk = Walk(shell, "## Backup and restore")
    walk.on(until="make down")
    sql(live.primary, MESSAGE, "before the moment")
    ((moment,),) = sql(live.primary, "SELECT now()::text")
    sql(live.primary, MESSAGE, "after the moment")
    ((segment,),) = sql(live.primary, "SELECT pg_walfile_name(pg_switch_wal())")
    wait_for((archive / segment).exists, "the archive")
    walk.on(until="restore_command")
    walk.skip()
    (lines,) = re.findall(r"(?m)^    restore_command = .*\n(?:    .*\n)*", section("runbook", "## Backup and restore"))
    lines = re.sub(r"'\d{4}-.*'", f"'{moment}'", lines.replace("/archive", str(archive)))
    with (live.folder / "lines").open("w") as file:
        file.write(lines)
    shell.check(f"cat {live.folder}/lines >> .local/primary/data/postgresql.auto.conf", [])
    walk.on(until="make up")
    walk.pass_over(until="pg_ctl")
    walk.on(until="FLUSHDB")
    wait_until_exact(live)
    found = sql(live.primary, "SELECT username FROM message WHERE username LIKE '%%the moment'")
    assert found == [("before the moment",)]
    walk.on()
    wait_until_exact(live)
    walk.end()


@pytest.mark.long
def test_a_counter_is_added_and_removed_by_the_commands_of_the_runbook(live: Stack, shell: Shell) -> None:
    mend(live)
    sql(live.primary, MESSAGE, "somebody")
    walk = Walk(shell, "## Adding a counter")
    walk.on(until="rm .local/rollcall.toml")
    assert count(live, "states") == sql(live.primary, "SELECT count(DISTINCT state) FROM message")[0][0]
    walk.on(until="orphans")
    walk.on()
    with live.valkey.client() as client:
        assert list(client.scan_iter("*states*")) == [] != list(client.scan_iter("*users*"))
    walk.end()
