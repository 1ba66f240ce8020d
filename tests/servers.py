"""The real servers, started once for each test process, and functions for tests to change them.

Settings of a service are read when its modules are imported, before any fixture runs; so the servers are functions
first (`started_primary()` in a conftest, at import time), and the session fixtures return the same objects. They end
with the process that started them, also when that is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from compose.local.ordinary_user import own
from compose.local.ports import free_port as free_port  # the tests take it from here
from compose.local.processes import Process
from compose.local.redis_cluster import Cluster
from compose.local.servers import POSTGRES_ROLES, USER, Postgres, Primary, Replica, Valkey

# Nothing of a test run has to outlive the machine. synchronous_commit stays on: it decides when a commit is visible
# to others, not only when it is on the disk.
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    # What applications may need of a server.
    "wal_level": "logical",
    "max_prepared_transactions": "4",
}

# The longest that a test waits for something that takes well under a second.
DEADLINE_SECONDS = 20.0


@functools.cache
def servers_folder() -> Path:
    """Where this process's servers keep their data; removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="rollcall-tests-")).resolve()
    own(folder)
    # Registered before the first server's `stop`, hence run after the last: atexit works backwards.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def start(server: Process) -> None:
    """Start a server and see to its end."""
    atexit.register(server.stop)
    server.start()


@functools.cache
def started_primary() -> Primary:
    """The primary of this process, with an empty database."""
    server = Primary(servers_folder() / "primary", free_port(), settings=FAST, dies_with_parent=True)
    start(server)
    make_logins_quick(server)
    return server


def make_logins_quick(primary: Primary) -> None:
    """Have each password hashed once, not 4,096 times, which takes the processors 7 ms a connection; tests make thousands.

    The passwords stay as they are. Postgres 15 has no such setting, and stays slow.
    """
    roles = {USER: primary.password} | {f"rollcall_{role}": primary.password_of(role) for role in POSTGRES_ROLES}
    with contextlib.closing(psycopg2.connect(primary.url)) as connection, connection, connection.cursor() as cursor:
        if connection.server_version >= 160_000:
            cursor.execute("SET scram_iterations = 1")
            for name, password in roles.items():
                cursor.execute(f'ALTER ROLE "{name}" PASSWORD %s', [password])


@functools.cache
def started_replica() -> Replica:
    """A streaming replica of this process's primary."""
    server = Replica(servers_folder() / "replica", free_port(), started_primary(), settings=FAST, dies_with_parent=True)
    start(server)
    return server


@functools.cache
def started_valkey() -> Valkey:
    """The Valkey of this process. It writes nothing to the disk."""
    return another_valkey("valkey", appendonly="no", save="")


def another_valkey(name: str, **config: str) -> Valkey:
    """One more Valkey, under a name that no other server of this process has, started."""
    options: dict[str, Any] = {"enable-debug-command": "local", **config}
    server = Valkey(servers_folder() / name, free_port(), dies_with_parent=True, **options)
    start(server)
    return server


@functools.cache
def started_cluster() -> Cluster:
    """A cluster of three primaries with a replica each. It writes nothing to the disk, except its map."""
    return another_cluster("cluster")


def another_cluster(name: str, **config: str) -> Cluster:
    """One more cluster, under a name that no other server of this process has, started."""
    options: dict[str, Any] = {"enable-debug-command": "local", "appendonly": "no", "save": "", **config}
    ports = [free_port() for _ in range(12)]
    cluster = Cluster(servers_folder() / name, ports[:6], ports[6:], dies_with_parent=True, **options)
    for node in cluster.nodes:
        atexit.register(node.stop)
        node.begin()
    for node in cluster.nodes:
        node.wait_until_ready()
    cluster.form()
    return cluster


@pytest.fixture(scope="session")
def primary() -> Primary:
    return started_primary()


@pytest.fixture(scope="session")
def replica() -> Replica:
    return started_replica()


@pytest.fixture(scope="session")
def valkey() -> Valkey:
    return started_valkey()


@pytest.fixture
def second_valkey(request: pytest.FixtureRequest) -> Iterator[Callable[..., Valkey]]:
    """A factory of servers that a test may stop, kill, fill or misconfigure: `second_valkey(maxmemory="2mb")`."""
    made: list[Valkey] = []

    def make(**config: str) -> Valkey:
        made.append(another_valkey(f"valkey-{time.monotonic_ns()}", **config))
        return made[-1]

    yield make
    for server in made:
        server.stop()


def wait_for(condition: Callable[[], Any], what: str = "the condition", seconds: float = DEADLINE_SECONDS) -> Any:
    """The first true answer of `condition`; the test fails where there is none within the deadline."""
    deadline = time.monotonic() + seconds
    pause_seconds = 0.005
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for {what}")
        time.sleep(pause_seconds)
        # What takes seconds is not asked for a hundred times a second: to ask takes the processors what is waited for.
        pause_seconds = min(1.5 * pause_seconds, 0.05)
    return answer


def sql(server: Postgres, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run one statement in a transaction of its own; the rows that it returns."""
    connection = psycopg2.connect(server.url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@contextlib.contextmanager
def database_of_its_own(name: str, template: str = "template1") -> Iterator[str]:
    """The URL of another database of this process's primary, empty or a copy, for as long as the block runs."""
    primary = started_primary()
    sql(primary, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield f"{primary.url.rpartition('/')[0]}/{name}"
    finally:
        sql(primary, f"DROP DATABASE {name} WITH (FORCE)")


def wait_until_replayed(primary: Primary, replica: Replica) -> None:
    """Wait until all that is committed on the primary now is visible on the replica."""
    ((position,),) = sql(primary, "SELECT pg_current_wal_lsn()::text")
    wait_for(
        lambda: sql(replica, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", position)[0][0],
        f"the replica to replay up to {position}",
    )


@contextlib.contextmanager
def replay_paused(replica: Replica) -> Iterator[None]:
    """Within this block the replica stands still: lag is made, not slept for."""
    sql(replica, "SELECT pg_wal_replay_pause()")
    wait_for(lambda: sql(replica, "SELECT pg_get_wal_replay_pause_state()") == [("paused",)], "replay to pause")
    try:
        yield
    finally:
        sql(replica, "SELECT pg_wal_replay_resume()")
