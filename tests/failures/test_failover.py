"""Failover and restore, as in docs/runbook.md: only URLs change, and the counters follow without an operator.

Meanwhile somebody asks for the count all the time. What it is told never lacks a row that `complete_through` covers.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
import pytest

from compose.local.ordinary_user import own
from compose.local.ports import DEFAULTS
from compose.local.processes import Process
from compose.local.servers import Postgres, Replica, postgres_program
from compose.local.services import Service
from compose.local.stack import Stack
from shared_models.protocol import keys
from tests.servers import FAST, free_port, sql, wait_for, wait_until_replayed
from tests.system.asking import ask, count

MESSAGE = "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Rome', %s, '')"


class Site:
    """A stack whose services can be pointed elsewhere, and one who asks for the count while that is done."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.more: list[Process] = []
        self.answers: list[tuple[int, str]] = []  # what query said: a count, and how complete it is
        self._stopping = threading.Event()
        self._asker = threading.Thread(target=self._ask_all_the_time, daemon=True)

    def _ask_all_the_time(self) -> None:
        while not self._stopping.wait(0.02):
            with contextlib.suppress(OSError):
                status, answer = ask(self.stack.query, "GET", "/v1/counts/users", **{"Cache-Control": "no-cache"})
                if status == 200:
                    self.answers.append((answer["count"], answer["complete_through"]))

    def __enter__(self) -> Site:
        self.stack.up()
        wait_for(lambda: count(self.stack) is not None, "live counters", seconds=60)
        self._asker.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._asker.join()
        for process in reversed(self.more):
            process.stop()
        for service in self.stack.services:
            service.kill()
        self.stack.down()

    def post(self, *usernames: str) -> None:
        """Acknowledged and counted."""
        for username in usernames:
            row = {"state": "NY", "city": "Rome", "username": username, "message": ""}
            status, answer = ask(self.stack.ingest, "POST", "/v1/messages", row)
            assert (status, answer["counted"]) == (201, True)

    def point(self, service: Service, server: Postgres, role: str) -> None:
        """Another DATABASE_URL, and a new start: all that an operator does."""
        variables = service.variables
        service.variables = lambda: variables() | {"DATABASE_URL": server.url_of(role)}
        service.stop()
        service.begin()

    def point_manage(self, server: Postgres) -> None:
        for service in (self.stack.manage, self.stack.keeper):
            self.point(service, server, "manage")

    def promote(self, server: Postgres) -> datetime:
        """The moment before it was one: the counter may be verified on the new timeline before promoting has returned."""
        ((now, promoted),) = sql(server, "SELECT clock_timestamp(), pg_promote()")
        assert promoted
        return now

    def new_replica(self, primary: Replica) -> Replica:
        primary.make_roles = lambda: None  # type: ignore[attr-defined]  # they came with the data
        replica = Replica(
            self.stack.folder / "second",
            free_port(),
            primary,  # type: ignore[arg-type]  # by now it is one
            settings=FAST,
            dies_with_parent=True,
        )
        self.more.append(replica)
        replica.start()
        return replica

    def state(self) -> dict[str, str]:
        with self.stack.valkey.client() as client:
            return {k.decode(): v.decode() for k, v in client.hgetall(keys.of_counter("users").state).items()}

    def members(self) -> set[str]:
        with self.stack.valkey.client() as client:
            return {member.decode() for member in client.smembers(keys.of_counter("users").members)}

    def wait_until_exact(self, server: Postgres, verified_after: datetime) -> None:
        """Until the counter says that it is complete now, and was verified since that moment; then it has to be."""
        ((now,),) = sql(server, "SELECT clock_timestamp()")

        def is_verified() -> bool:
            status, counter = ask(self.stack.query, "GET", "/v1/counts/users", **{"Cache-Control": "no-cache"})
            through, verified = counter.get("complete_through"), counter.get("verified_at")
            return (
                status == 200
                and through is not None
                and datetime.fromisoformat(through) > now
                and verified is not None
                and datetime.fromisoformat(verified) > verified_after
            )

        wait_for(is_verified, "the counter to be complete and verified without help", seconds=60)
        table = {username for (username,) in sql(server, "SELECT DISTINCT username FROM message")}
        assert self.members() == table and count(self.stack) == len(table)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("WORKERS", "1")  # a second one takes another second to start
    folder = Path(tempfile.mkdtemp(prefix="rollcall-failover-")).resolve()
    own(folder)
    stack = Stack(folder, {variable: free_port() for variable in DEFAULTS})
    for process in stack.processes:
        process.dies_with_parent = True
    for server in (stack.primary, stack.replica):
        server.settings = FAST
    try:
        with Site(stack) as site:
            yield site
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cut_off(stack: Stack) -> None:
    """The replica receives nothing any more: the primary lets go of its slot."""

    def is_cut() -> bool:
        try:
            sql(stack.primary, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
            sql(stack.primary, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        except psycopg2.errors.ObjectInUse:
            return False
        return True

    wait_for(is_cut, "the replica to be cut off")


@pytest.mark.long
def test_a_failover_that_loses_nothing_is_followed_by_exact_counters_and_no_wrong_number(site: Site) -> None:
    stack = site.stack
    site.post("ann", "bob")
    wait_until_replayed(stack.primary, stack.replica)
    before = site.state()["source"]
    stack.primary.kill()
    began = len(site.answers)
    row = {"state": "NY", "city": "Rome", "username": "eve", "message": ""}
    status, _ = ask(stack.ingest, "POST", "/v1/messages", row)
    assert status == 503
    # Asked for while there is no primary: it needs none, or waits for one.
    _, run = ask(stack.manage, "POST", "/v1/runs", {"counters": ["users"], "mode": "check"})

    # The run that was asked for may be the one that verifies the counter on the new timeline, before promoting has returned.
    ((asked_at,),) = sql(stack.replica, "SELECT clock_timestamp()")
    site.promote(stack.replica)
    site.point(stack.ingest, stack.replica, "ingest")
    stack.ingest.wait_until_ready()
    assert {number for number, _ in site.answers[began:]} == {2}, "the count was served, and was right, all the time"
    site.post("cid")
    wait_for(lambda: site.state()["source"] != before, "the counter to belong to the new timeline")
    site.wait_until_exact(stack.replica, asked_at)
    ended = ask(stack.manage, "GET", f"/v1/runs/{run['id']}")[1]
    assert ended["status"] == "done" or (ended["status"] == "failed" and ended["detail"])

    # And then a replica of the new primary, as before.
    second = site.new_replica(stack.replica)
    site.point_manage(second)
    site.post("dan")
    sql(stack.replica, MESSAGE, "not counted by ingest")
    site.wait_until_exact(stack.replica, asked_at)
    assert {number for number, _ in site.answers[began:]} <= {2, 3, 4, 5}


def test_after_a_failover_that_loses_rows_their_members_leave_by_themselves(site: Site) -> None:
    stack = site.stack
    site.post("ann", "bob")
    wait_until_replayed(stack.primary, stack.replica)
    cut_off(stack)
    site.post("lost", "lost too")  # acknowledged, counted, and only on the old primary
    complete_through = ask(stack.query, "GET", "/v1/counts/users")[1]["complete_through"]
    ((lost_at,),) = sql(stack.primary, "SELECT min(create_time) FROM message WHERE username LIKE 'lost%%'")
    assert datetime.fromisoformat(complete_through) < lost_at, "nobody has claimed to have seen them on the replica"
    stack.primary.kill()

    promoted_at = site.promote(stack.replica)
    site.point(stack.ingest, stack.replica, "ingest")
    stack.ingest.wait_until_ready()
    # Their xacts are given out again, below the watermark that the lost ones have left.
    site.post("cid")
    sql(stack.replica, MESSAGE, "not counted by ingest")
    site.wait_until_exact(stack.replica, promoted_at)
    assert site.members() == {"ann", "bob", "cid", "not counted by ingest"}


@pytest.mark.long
def test_after_a_switchover_manage_reads_the_old_primary_as_a_replica(site: Site) -> None:
    """Both are stopped in order, the replica is promoted, and the old primary follows it."""
    stack = site.stack
    site.post("ann")
    stack.primary.stop()
    promoted_at = site.promote(stack.replica)
    site.point(stack.ingest, stack.replica, "ingest")
    stack.ingest.wait_until_ready()
    old = Replica(
        stack.primary.folder,
        stack.primary.port,
        stack.replica,  # type: ignore[arg-type]  # by now it is a primary
        settings=FAST,
        dies_with_parent=True,
    )
    (old.data / "standby.signal").touch()
    sql(stack.replica, "SELECT pg_create_physical_replication_slot(%s, true)", old.slot)
    site.more.append(old)
    old.start()
    site.point_manage(old)
    site.post("bob")
    sql(stack.replica, MESSAGE, "not counted by ingest")
    site.wait_until_exact(stack.replica, promoted_at)
    # It says so at once, not with its next restart point: until then no run could finish.
    source = site.state()["source"]
    assert source.endswith("/2") and sql(old, "SELECT timeline_id FROM pg_control_checkpoint()") == [(1,)]
    with stack.valkey.client() as client:
        client.sadd(keys.of_counter("users").members, "ghost")
    stack.manage.wait_until_ready()
    _, run = ask(stack.manage, "POST", "/v1/runs", {"counters": ["users"], "mode": "repair"})
    wait_for(lambda: ask(stack.manage, "GET", f"/v1/runs/{run['id']}")[1]["status"] == "done", "the run")
    assert site.members() == {"ann", "bob", "not counted by ingest"} and site.state()["source"] == source


@pytest.mark.long
def test_a_restored_backup_is_followed_by_exact_counters(site: Site) -> None:
    """A base backup, and rows after it that are gone: the restored server begins a timeline of its own."""
    stack = site.stack
    site.post("ann", "bob")
    backup = stack.folder / "backup"
    stack.primary.run(
        [
            postgres_program("pg_basebackup"),
            *("-D", str(backup), "-d", f"host=127.0.0.1 port={stack.primary.port} user=rollcall_replica"),
            *("-X", "stream", "--checkpoint=fast", "--no-sync"),
        ],
        {"PGPASSWORD": stack.primary.password_of("replica")},
    )
    site.post("after the backup", "after it too")
    stack.primary.stop()
    stack.replica.stop()
    shutil.rmtree(stack.primary.data)
    backup.rename(stack.primary.data)
    # All that the backup brings with it, and then a timeline of its own.
    (stack.primary.data / "recovery.signal").touch()
    stack.primary.settings = {**FAST, "restore_command": "false"}
    stack.primary.start()
    site.point_manage(stack.primary)
    wait_for(lambda: ask(stack.ingest, "GET", "/readyz")[0] == 200, "ingest")
    site.post("cid")
    site.wait_until_exact(stack.primary, datetime.min.replace(tzinfo=UTC))
    assert site.members() == {"ann", "bob", "cid"}


def test_redis_restored_from_an_older_copy_is_caught_up_without_an_operator(live: Stack) -> None:
    files = live.valkey.folder / "appendonlydir"
    copy = live.valkey.folder / "copy"
    with live.valkey.client() as client:
        client.bgrewriteaof()
        wait_for(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "the append-only file")
    live.valkey.stop()
    live.valkey.run(["cp", "-r", str(files), str(copy)])
    live.valkey.start()

    def post(username: str) -> bool:
        row = {"state": "NY", "city": "Rome", "username": username, "message": ""}
        status, answer = ask(live.ingest, "POST", "/v1/messages", row)
        assert status == 201
        return bool(answer["counted"])

    # The keeper loads the scripts that ingest calls with its next pass.
    wait_for(lambda: post("after the copy"), "a row that is counted at once")
    assert post("after it too")
    live.valkey.stop()
    shutil.rmtree(files)
    copy.rename(files)
    live.valkey.start()
    ((now,),) = sql(live.primary, "SELECT clock_timestamp()")

    def is_complete() -> bool:
        status, counter = ask(live.query, "GET", "/v1/counts/users", **{"Cache-Control": "no-cache"})
        return status == 200 and datetime.fromisoformat(counter["complete_through"]) > now

    wait_for(is_complete, "catch-up")
    with live.valkey.client() as client:
        members = keys.of_counter("users").members
        assert client.smismember(members, ["after the copy", "after it too"]) == [1, 1]
