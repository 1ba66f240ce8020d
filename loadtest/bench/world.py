"""The servers of one benchmark: on free ports, in a folder of their own, with real fsync. They end with it, in any case."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
from redis import Redis

from compose.local.ordinary_user import own
from compose.local.ports import free_port
from compose.local.processes import Process
from compose.local.servers import Primary, Replica, Valkey
from compose.local.services import Keeper, Web
from shared_models import declarations

P = TypeVar("P", bound=Process)

# A process ends with the benchmark, in any case.
ENDING: dict[str, Any] = {"dies_with_parent": True}
# The origin in query's CORS_ORIGINS.
ORIGIN = "https://dashboard.example.org"


class Peer(Web):
    """An application of `peers`, under the gunicorn settings of the service that it is compared with.

    `words` are gunicorn's options for the differences.
    """

    def __init__(self, *args: Any, like: str, words: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.like, self.words = like, words

    def environment(self) -> dict[str, str]:
        return super().environment() | {"BENCH_LIKE": f"{self.like}/gunicorn.conf.py"}

    def command(self) -> list[str]:
        settings = "loadtest/bench/peers/gunicorn.conf.py"
        return [sys.executable, "-m", "gunicorn", "-c", settings, *self.words, self.application]

    def why_not_ready(self) -> str | None:
        with socket.socket() as probe:
            return None if probe.connect_ex(("127.0.0.1", self.port)) == 0 else "does not listen yet"


class World:
    """Servers, made at their first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.primary_settings: dict[str, str] = {}  # more settings for postgresql.conf; set before the first use
        self.declarations: dict[str, str] = {}  # the variable that names another file of counters, for the services
        self._declared = declarations.TABLES, declarations.COUNTERS
        self._started: list[Process] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exception: object) -> None:
        declarations.TABLES, declarations.COUNTERS = self._declared
        for process in reversed(self._started):
            process.stop()

    def start(self, process: P) -> P:
        """Start it, and register its end."""
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
        server = self.start(Primary(self.folder / "primary", free_port(), settings=self.primary_settings, **ENDING))
        stores = {"DATABASE_URL": server.url, "REDIS_URL": self.valkey.url, "AUTH": "off"}
        migrate = Web(self.folder / "migrate", free_port(), lambda: stores, application="ingest_service.asgi")
        migrate.create()
        migrate.run([sys.executable, "-m", "ingest_service", "migrate", "--no-input", "--verbosity=0"])
        return server

    @cached_property
    def replica(self) -> Replica:
        """A streaming replica of it."""
        return self.start(Replica(self.folder / "replica", free_port(), self.primary, **ENDING))

    @cached_property
    def valkey(self) -> Valkey:
        """As the stack has it, with its append-only file."""
        return self.start(Valkey(self.folder / "valkey", free_port(), **ENDING))

    @cached_property
    def bystander(self) -> Valkey:
        """A second, idle Redis."""
        return self.start(Valkey(self.folder / "bystander", free_port(), **ENDING))

    def stores_of_ingest(self) -> dict[str, str]:
        """The variables with their URLs."""
        return {"DATABASE_URL": self.primary.url, "REDIS_URL": self.valkey.url, **self.declarations}

    def stores_of_manage(self) -> dict[str, str]:
        """The same for manage, without tokens."""
        return {
            "DATABASE_URL": self.replica.url,
            "REDIS_URL": self.valkey.url,
            "AUTH": "off",
            **self.declarations,
        }

    @cached_property
    def ingest(self) -> Web:
        """The service with tokens: requests need its `authorization`."""
        return self.ingest_for("ingest")

    def ingest_for(self, name: str) -> Web:
        """Another one, for the counters that are declared now."""
        return self.service(name, "ingest_service.asgi", self.stores_of_ingest(), with_tokens=True)

    @cached_property
    def query(self) -> Web:
        """The service without tokens, by its defaults."""
        return self.service("query", "query_service.asgi", {"REDIS_URL": self.valkey.url})

    @cached_property
    def guarded_query(self) -> Web:
        """The service with every option: tokens, CORS, and a log line for each request."""
        variables = {"REDIS_URL": self.valkey.url, "CORS_ORIGINS": ORIGIN, "ACCESS_LOG": "1"}
        return self.service("guarded", "query_service.asgi", variables, with_tokens=True)

    def service(self, name: str, application: str, variables: dict[str, str], *, with_tokens: bool = False) -> Web:
        """A service, started."""
        service = Web(self.folder / name, free_port(), lambda: variables, application=application, **ENDING)
        if with_tokens:
            service.make_token()
            variables = variables | service.tokens_variable()
        return self.start(service)

    def peer(self, name: str, application: str, *, like: str, words: Sequence[str] = ()) -> Peer:
        """An application of `peers`, started."""
        variables = self.stores_of_ingest() | {"AUTH": "off"}
        application = f"loadtest.bench.peers.{application}"
        peer = Peer(
            self.folder / name,
            free_port(),
            lambda: variables,
            application=application,
            like=like,
            words=words,
            **ENDING,
        )
        return self.start(peer)

    def keeper(self) -> Keeper:
        """Start a keeper. It works whenever something is due, so only cases about it need one."""
        return self.start(Keeper(self.folder / "keeper", self.stores_of_manage, valkey=self.valkey, **ENDING))

    def declare(self, text: str) -> None:
        """Use the declarations of this file, here and in services that start later."""
        path = self.folder / f"rollcall-{hash(text):x}.toml"  # earlier services go on with theirs
        path.write_text(text)
        own(path)
        self.declarations = {"ROLLCALL_FILE": str(path)}
        declarations.TABLES, declarations.COUNTERS = declarations.parse(text)

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
