"""The servers of one benchmark: on free ports, in a folder of their own, with real fsync; gone when it ends, however it does."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
from redis import Redis

from compose.local.ordinary_user import own
from compose.local.processes import Process
from compose.local.servers import Primary, Replica, Valkey
from compose.local.services import Keeper, Web

P = TypeVar("P", bound=Process)

# Of ingest, and of whatever it is compared with: each worker stays on one processor, as where it has a machine of its own.
PINNED = {"PIN_WORKERS": "1"}


class Peer(Web):
    """An application of `peers`, under the gunicorn settings of the service that it is compared with."""

    def __init__(self, *args: Any, like: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.like = like

    def environment(self) -> dict[str, str]:
        return super().environment() | {"BENCH_LIKE": f"{self.like}/gunicorn.conf.py"}

    def command(self) -> list[str]:
        return [sys.executable, "-m", "gunicorn", "-c", "loadtest/bench/peers/gunicorn.conf.py", self.application]

    def why_not_ready(self) -> str | None:
        with socket.socket() as probe:
            return None if probe.connect_ex(("127.0.0.1", self.port)) == 0 else "does not listen yet"


class World:
    """Servers, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Process] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self._started):
            process.stop()

    def start(self, process: P) -> P:
        """Start it, and see to its end."""
        self._started.append(process)
        process.start()
        return process

    def stop(self, process: Process) -> None:
        """End it before the others."""
        self._started.remove(process)
        process.stop()

    @cached_property
    def primary(self) -> Primary:
        """An ordinary primary with the table, empty."""
        server = self.start(Primary(self.folder / "primary", free_port(), dies_with_parent=True))
        stores = {"DATABASE_URL": server.url, "REDIS_URL": self.valkey.url, "AUTH": "off"}
        migrate = Web(self.folder / "migrate", free_port(), lambda: stores, application="ingest_service.asgi")
        migrate.create()
        migrate.run([sys.executable, "-m", "ingest_service", "migrate", "--no-input", "--verbosity=0"])
        return server

    @cached_property
    def replica(self) -> Replica:
        """A streaming replica of it."""
        return self.start(Replica(self.folder / "replica", free_port(), self.primary, dies_with_parent=True))

    @cached_property
    def valkey(self) -> Valkey:
        """As the stack has it, with its append-only file."""
        return self.start(Valkey(self.folder / "valkey", free_port(), dies_with_parent=True))

    @cached_property
    def bystander(self) -> Valkey:
        """Another one, that nobody works on."""
        return self.start(Valkey(self.folder / "bystander", free_port(), dies_with_parent=True))

    def stores_of_ingest(self) -> dict[str, str]:
        """The variables that say where they are, and that whoever asks is let in."""
        return {"DATABASE_URL": self.primary.url, "REDIS_URL": self.valkey.url, "AUTH": "off"}

    def stores_of_manage(self) -> dict[str, str]:
        """The same for manage."""
        return {"DATABASE_URL": self.replica.url, "REDIS_URL": self.valkey.url, "AUTH": "off"}

    @cached_property
    def ingest(self) -> Web:
        """The service, as it is run."""
        return self._service("ingest", "ingest_service.asgi", lambda: self.stores_of_ingest() | PINNED)

    @cached_property
    def query(self) -> Web:
        """The service, as it is run."""
        return self._service("query", "query_service.asgi", lambda: {"REDIS_URL": self.valkey.url})

    def _service(self, name: str, application: str, variables: Callable[[], dict[str, str]]) -> Web:
        # Its stores first: a server may only be stopped after those that use it.
        variables()
        return self.start(
            Web(self.folder / name, free_port(), variables, application=application, dies_with_parent=True)
        )

    def peer(self, name: str, application: str, *, like: str) -> Peer:
        """An application of `peers`, started."""
        self.stores_of_ingest()
        return self.start(
            Peer(
                self.folder / name,
                free_port(),
                lambda: self.stores_of_ingest() | PINNED,
                application=f"loadtest.bench.peers.{application}",
                like=like,
                dies_with_parent=True,
            )
        )

    def keeper(self) -> Keeper:
        """A keeper, started. It works whenever something is due, so that only cases that are about it want one."""
        return self.start(
            Keeper(self.folder / "keeper", self.stores_of_manage, valkey=self.valkey, dies_with_parent=True)
        )

    @contextlib.contextmanager
    def redis(self) -> Iterator[Redis]:
        """A client without the short limits of a probe."""
        with Redis.from_url(self.valkey.url) as client:
            yield client


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that the servers' user may write in; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rollcall-bench-")).resolve()
    own(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def connected(url: str) -> Iterator[Any]:
    """A connection to Postgres in autocommit mode, closed at the end."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


def run_sql(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """One statement; its rows."""
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def wait_until_replayed(world: World) -> None:
    """Wait until the replica shows all that the primary has committed."""
    ((position,),) = run_sql(world.primary.url, "SELECT pg_current_wal_lsn()::text")
    while not run_sql(world.replica.url, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", position)[0][0]:
        time.sleep(0.02)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
