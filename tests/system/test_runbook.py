"""The procedures of docs/runbook.md, automated, while a client asks for the count all the time."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from compose.local.ordinary_user import CHECKOUT, own
from compose.local.processes import make_folder
from compose.local.servers import REDIS_USERS, Valkey, postgres_program
from compose.local.services import Service
from compose.local.stack import Stack
from shared_models.protocol import keys
from tests.servers import free_port, sql, wait_for
from tests.system.asking import Witness, ask, count, distinct_users, mend

NEXT_PREFIX = keys.PREFIX.replace(str(keys.LAYOUT), str(keys.LAYOUT + 1))
BOTH_PREFIXES = keys.PREFIX.replace(str(keys.LAYOUT), f"[{keys.LAYOUT}{keys.LAYOUT + 1}]")


@pytest.fixture
def exact(live: Stack) -> Iterator[Stack]:
    """The stack with exact counters; what a test has led elsewhere is as before afterwards."""
    mend(live)
    variables = {service: service.variables for service in live.services}
    users = live.valkey.folder / "users.acl"
    allowed = users.read_text()
    yield live
    for service in live.services:
        if "working_folder" in vars(service) or service.variables is not variables[service]:
            service.stop()
            service.variables = variables[service]
            vars(service).pop("working_folder", None)
    live.keeper.valkey = live.valkey
    live.valkey.start()
    users.write_text(allowed)
    with live.valkey.client() as client:
        client.acl_load()
        remove(live, NEXT_PREFIX)


def restart(*services: Service, wait: bool = True) -> None:
    for service in services:
        service.stop()
    for service in services:
        service.begin()
    for service in services if wait else ():
        service.wait_until_ready()


def remove(stack: Stack, prefix: str) -> int:
    """Remove the keys of a layout; how many there were."""
    with stack.valkey.client() as client:
        found = list(client.scan_iter(f"{prefix}*"))
        for key in found:
            client.unlink(key)
    return len(found)


def counted_by_manage(stack: Stack) -> int | None:
    """What manage says of the users, where it does."""
    try:
        status, answer = ask(stack.manage, "GET", "/v1/status")
    except OSError:
        return None
    return answer["counters"]["users"]["count"] if status == 200 else None


def wait_until_exact(stack: Stack, number: Callable[[Stack], int | None] = count) -> None:
    wait_for(lambda: number(stack) == distinct_users(stack), "the count to be exact", seconds=30)


def is_member(stack: Stack, username: str) -> bool:
    status, answer = ask(stack.query, "GET", f"/v1/counts/users/member?username={username}")
    return status == 200 and bool(answer["member"])


@pytest.fixture
def next_version(exact: Stack) -> Iterator[Path]:
    """This version with another LAYOUT, which is what the next one may be."""
    folder = exact.folder / "next"
    make_folder(folder)
    for package in ("shared_models", "ingest_service", "manage_service", "query_service"):
        shutil.copytree(CHECKOUT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "shared_models" / "protocol" / "keys.py"
    text = re.sub(r"^LAYOUT = \d+$", f"LAYOUT = {keys.LAYOUT + 1}", module.read_text(), flags=re.M)
    assert text != module.read_text()
    module.write_text(text)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.long
def test_another_layout_is_built_beside_the_old_one_and_the_old_one_can_be_gone_back_to(
    exact: Stack, next_version: Path
) -> None:
    stack = exact

    def upgrade(*services: Service) -> None:
        for service in services:
            service.working_folder = lambda: next_version  # type: ignore[method-assign]
        # Whether the keeper is ready is asked in this version's layout.
        restart(*services, wait=stack.keeper not in services)

    with Witness(stack) as witness:
        assert witness.post("before the upgrade")
        users = stack.valkey.folder / "users.acl"
        users.write_text(users.read_text().replace(keys.PREFIX, BOTH_PREFIXES))
        with stack.valkey.client() as client:
            client.acl_load()
        upgrade(stack.manage, stack.keeper)
        wait_until_exact(stack, counted_by_manage)
        # The old ones go on; what they record is caught up in the new layout.
        assert witness.post("recorded under the old layout") and count(stack) == distinct_users(stack)
        wait_until_exact(stack, counted_by_manage)
        upgrade(stack.query)
        assert witness.post("recorded under the old layout, asked for in the new one")
        wait_until_exact(stack)
        upgrade(stack.ingest)
        assert witness.post("recorded under the new layout") and count(stack) == distinct_users(stack)

        # And back: the old keys are as they were left.
        for service in stack.services:
            del service.working_folder
        restart(*stack.services)
        wait_until_exact(stack)
        assert remove(stack, NEXT_PREFIX) > 0
        assert witness.post("after the other keys were removed") and count(stack) == distinct_users(stack)
    assert witness.answers and witness.wrong == []


@pytest.fixture
def redis_replica(exact: Stack) -> Iterator[Valkey]:
    """A replica of the stack's Redis, abreast of it, with the same users: an ACL file is not replicated."""
    folder = exact.folder / "second"
    make_folder(folder)
    for user in REDIS_USERS:
        shutil.copy(exact.valkey.folder / f"password-{user}", folder)
        own(folder / f"password-{user}")
    with exact.valkey.client() as client:
        client.config_set("repl-diskless-sync-delay", 0)  # its first copy begins at once
        client.execute_command("ACL SETUSER replica on >secret resetchannels -@all +psync +replconf +ping")
    second = Valkey(folder, free_port(), locked=True, masteruser="replica", masterauth="secret")
    try:
        second.start()
        with second.client() as client:
            client.replicaof("127.0.0.1", exact.valkey.port)
            wait_for(lambda: client.info("replication")["master_link_status"] == "up", "the replica's first copy")
        yield second
    finally:
        second.stop()
        shutil.rmtree(folder)


@pytest.mark.long
def test_a_replica_of_redis_is_promoted_and_what_it_lacks_is_caught_up(exact: Stack, redis_replica: Valkey) -> None:
    stack = exact
    with Witness(stack) as witness, redis_replica.client() as second, stack.valkey.client() as first:
        assert witness.post("replicated")
        wait_for(lambda: second.sismember(keys.of_counter("users").members, "replicated"), "the replica to have it")
        # What the old one acknowledges from now on is lost with it.
        first.execute_command("ACL DELUSER replica")
        wait_for(lambda: second.info("replication")["master_link_status"] == "down", "the replica to be cut off")
        assert witness.post("not replicated") and count(stack) == distinct_users(stack)
        stack.valkey.kill()
        assert not witness.post("while there is none")

        # All of them led there before it is promoted: it takes nothing yet.
        stack.keeper.valkey = redis_replica
        for service in stack.services:
            user = "manage" if service is stack.keeper else service.name
            variables = service.variables() | {"REDIS_URL": redis_replica.url_of(user)}
            service.variables = lambda variables=variables: variables  # type: ignore[misc]
        restart(*stack.services, wait=False)
        stack.ingest.wait_until_ready()
        assert not witness.post("while it is a replica")
        began = len(witness.answers)
        second.replicaof("NO", "ONE")
        # It has the members, not the scripts: the keeper loads them with its next pass.
        posts = (f"after the promotion {n}" for n in itertools.count())
        wait_for(lambda: witness.post(next(posts)), "a row that is counted at once")
        wait_until_exact(stack)
        assert witness.post("after all") and count(stack) == distinct_users(stack)
    assert len(witness.answers) > began and witness.wrong == []


def test_a_copy_that_goes_on_with_its_timeline_is_noticed_and_an_emptied_redis_is_exact(exact: Stack) -> None:
    """A base backup that is started without recovery.signal, which is a mistake."""
    stack = exact
    backup = stack.folder / "backup"
    stack.primary.run(
        [
            postgres_program("pg_basebackup"),
            *("-D", str(backup), "-d", f"host=127.0.0.1 port={stack.primary.port} user=rollcall_replica"),
            *("-X", "stream", "--checkpoint=fast", "--no-sync"),
        ],
        {"PGPASSWORD": stack.primary.password_of("replica")},
    )
    with Witness(stack) as witness:
        assert witness.post("lost")
    connection = psycopg2.connect(stack.primary.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        # More of them than a pulse a second makes until the end of this test.
        for _ in range(200):
            cursor.execute("SELECT pg_current_xact_id()::text::bigint")
        ((last,),) = cursor.fetchall()
    connection.close()

    def users() -> dict[str, str]:
        with stack.valkey.client() as client:
            return {k.decode(): v.decode() for k, v in client.hgetall(keys.of_counter("users").state).items()}

    wait_for(lambda: int(users()["cursor"]) > last, "the keeper to come so far")
    logged = stack.keeper.log.stat().st_size
    for server in (stack.primary, stack.replica):
        server.stop()
    shutil.rmtree(stack.primary.data)
    backup.rename(stack.primary.data)
    shutil.rmtree(stack.replica.folder)
    for server in (stack.primary, stack.replica):
        server.start()

    def behind() -> list[str]:
        with stack.keeper.log.open() as log:
            log.seek(logged)
            lines = [json.loads(line) for line in log if line.startswith("{")]
        return [line["reason"] for line in lines if line["event"] == "keeper.behind" and line["counter"] == "users"]

    (reason,) = wait_for(behind, "the keeper to say so")
    found = re.fullmatch(r"the replica shows xact (\d+) at most, the cursor is at (\d+)", reason)
    assert found and int(found[1]) < last < int(found[2])
    stands = users()["complete_through"]
    with stack.valkey.client() as client:
        for _ in range(2):
            ticked = client.hget(keys.KEEPER, "ticked_at")
            wait_for(lambda ticked=ticked: client.hget(keys.KEEPER, "ticked_at") != ticked, "the keeper's next pass")  # type: ignore[misc]
        assert users()["complete_through"] == stands
        # What ingest does not count, nobody does.
        sql(stack.primary, "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Rome', 'unseen', '')")
        client.flushdb()
    with Witness(stack) as witness:
        wait_until_exact(stack)
        assert is_member(stack, "unseen") and not is_member(stack, "lost")
        wait_for(lambda: ask(stack.ingest, "GET", "/readyz")[0] == 200, "ingest")
        assert witness.post("restored") and count(stack) == distinct_users(stack)
    assert witness.wrong == []
