"""The whole stack of one checkout: eight processes, in the order in which they need each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compose.local import ports as ports_of_stack
from compose.local.ordinary_user import CHECKOUT, own
from compose.local.processes import Process, StackError, make_folder
from compose.local.redis_cluster import Cluster
from compose.local.servers import Primary, Replica, Valkey
from compose.local.services import Ingest, Keeper, Manage, Rotator, Service, Web

# How many parts the counters have on a cluster.
SHARDS = 16


@dataclass(frozen=True)
class Standing:
    """The state of one process."""

    name: str
    pid: int | None
    port: int | None
    health: str

    @property
    def ok(self) -> bool:
        return self.health == "ok"


class Stack:
    """The stack with its state in `folder`."""

    def __init__(self, folder: Path, ports: Mapping[str, int]) -> None:
        self.folder = folder.resolve()

        def log(name: str) -> Path:
            return self.folder / "log" / f"{name}.log"

        self.primary = Primary(self.folder / "primary", ports["PRIMARY_PORT"], log=log("primary"))
        self.replica = Replica(self.folder / "replica", ports["REPLICA_PORT"], self.primary, log=log("replica"))
        self.redis = open_redis(self.folder, ports, log)

        # Each has a role of its own in each store, and only the secrets that it needs.
        def of_ingest() -> dict[str, str]:
            stores = {"DATABASE_URL": self.primary.url_of("ingest"), "REDIS_URL": self.redis.url_of("ingest")}
            return stores | self.admin_variables() | self.ingest.tokens_variable() | self.file_variable()

        def of_manage() -> dict[str, str]:
            return of_keeper() | self.manage.tokens_variable()

        def of_keeper() -> dict[str, str]:
            stores = {"DATABASE_URL": self.replica.url_of("manage"), "REDIS_URL": self.redis.url_of("manage")}
            return stores | self.file_variable()

        def of_query() -> dict[str, str]:
            return {"REDIS_URL": self.redis.url_of("query")} | self.file_variable()

        port = ports["INGEST_PORT"]
        self.ingest = Ingest(
            self.folder / "ingest", port, of_ingest, application="ingest_service.asgi", log=log("ingest")
        )
        self.manage = Manage(
            self.folder / "manage",
            ports["MANAGE_PORT"],
            of_manage,
            application="manage_service.asgi",
            log=log("manage"),
        )
        self.keeper = Keeper(self.folder / "keeper", of_keeper, valkey=self.redis, log=log("keeper"))
        self.query = Web(
            self.folder / "query", ports["QUERY_PORT"], of_query, application="query_service.asgi", log=log("query")
        )

        self.servers: list[Process] = [self.primary, self.replica, *self.redis.processes]
        self.services: list[Service] = [self.ingest, self.manage, self.keeper, self.query]
        self.rotator = Rotator(self.folder / "rotator", None, log=log("rotator"))
        self.processes: list[Process] = [*self.servers, *self.services, self.rotator]

    @property
    def valkey(self) -> Valkey:
        """The one server of Redis. Raises StackError if there is a cluster."""
        if isinstance(self.redis, Valkey):
            return self.redis
        raise StackError("Redis is a cluster in this stack; this is for a stack with one server.")

    def up(self) -> list[str]:
        """Start the processes that do not run, and wait until all are ready; returns the names of the started ones.

        If it is interrupted or fails, it ends the processes that it started, and leaves those that ran before.
        """
        before = {process.name: process.pid for process in self.processes}

        def was_started(process: Process) -> bool:
            return process.pid != before[process.name]

        try:
            for process in self.processes:
                if process.running() is None:
                    process.end_leftovers()
                    process.check_port()
            for process in self.servers:
                process.start()
            self.redis.form()
            for service in (self.ingest, self.manage):
                service.make_token()
            if self.ingest.health() != "ok":  # also if it runs, and is about to end
                self.ingest.run_command("migrate", "--no-input", "--verbosity=0", variables=self.owner_variables())
                self.ingest.make_first_user(self.owner_variables(), self.primary.identity() or "")
            for process in (*self.services, self.rotator):
                process.begin()
            # The servers again: one that was told to end works for a moment longer, and may have looked ready.
            for process in self.processes:
                process.wait_until_ready(self.servers)
        except BaseException:  # Ctrl-C too
            for process in reversed(self.processes):
                if process.pid is None or was_started(process):
                    process.stop()
            raise
        return [process.name for process in self.processes if was_started(process)]

    def restart(self, chosen: Sequence[Process]) -> None:
        """End these, last started first, and start them again, with all others that do not run."""
        for process in reversed(chosen):
            process.stop()
        self.up()

    def chosen(self, names: Collection[str] | None) -> list[Process]:
        """The processes of these names, or all of them. Raises StackError for an unknown name."""
        known = {process.name: process for process in self.processes}
        for name in names or ():
            if name not in known:
                raise StackError(f"There is no process {name!r} in the stack; there are: {', '.join(known)}.")
        return [process for process in self.processes if names is None or process.name in names]

    def down(self) -> list[str]:
        """End everything, last started first; returns the names of the processes that ran."""
        ran = [process.name for process in reversed(self.processes) if process.running() is not None]
        for process in reversed(self.processes):
            process.stop()
        return ran

    def reset(self) -> None:
        """End everything and remove the stack's own data, but not the remembered ports."""
        self.down()
        for process in self.processes:
            shutil.rmtree(process.folder, ignore_errors=True)
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        self.declarations_path.unlink(missing_ok=True)

    def standing(self) -> list[Standing]:
        """Each process, in the order of their start."""
        return [Standing(each.name, each.pid, each.port, each.health()) for each in self.processes]

    def findings(self) -> list[str]:
        """Manage's findings about counters, replica and keeper; none if it does not run."""
        return [] if self.manage.running() is None else self.manage.findings()

    def owner_variables(self) -> dict[str, str]:
        """For work that ingest itself may not do: migrate, and empty a table."""
        stores = {"DATABASE_URL": self.primary.url_of("owner"), "REDIS_URL": self.redis.url_of("ingest")}
        return stores | self.admin_variables() | self.file_variable()

    @property
    def declarations_path(self) -> Path:
        """The declarations of this stack, if they are not the packaged ones."""
        return self.folder / "rollcall.toml"

    def declare(self, lines: str) -> None:
        """Add these lines to the declarations; services see them at their next start."""
        packaged = CHECKOUT / "shared_models" / "rollcall.toml"
        before = self.declarations_path if self.declarations_path.exists() else packaged
        self.declarations_path.write_text(f"{before.read_text().rstrip()}\n\n{lines.strip()}\n")
        own(self.declarations_path)

    def declare_shards(self) -> None:
        """Declare what is packaged, with parts for the servers of a cluster."""
        packaged = (CHECKOUT / "shared_models" / "rollcall.toml").read_text()
        make_folder(self.folder)
        self.declarations_path.write_text(
            re.sub(r"^\[counters\..+\]$", rf"\g<0>\nshards = {SHARDS}", packaged, flags=re.M)
        )
        own(self.declarations_path)

    def file_variable(self) -> dict[str, str]:
        """The variable that names the declarations for the services."""
        return {"ROLLCALL_FILE": str(self.declarations_path)} if self.declarations_path.exists() else {}

    def admin_variables(self) -> dict[str, str]:
        """The variables that turn ingest's admin pages on."""
        return {
            "ADMIN_DATABASE_URL": self.primary.url_of("admin"),
            "ADMIN_ORIGIN": self.ingest.url,
            "SECRET_KEY_FILE": str(self.ingest.secret_key_path),
        }

    def exists(self) -> bool:
        """Whether it was started here, and not reset since."""
        return self.primary.folder.exists()


def open_redis(folder: Path, ports: Mapping[str, int], log: Callable[[str], Path]) -> Valkey | Cluster:
    """One server of Redis, or a cluster with as many primaries as CLUSTER says."""
    port, primaries = ports["REDIS_PORT"], ports.get(ports_of_stack.CLUSTER, 0)
    if not primaries:
        return Valkey(folder / "valkey", port, locked=True, log=log("valkey"))
    servers = range(2 * primaries)
    return Cluster(
        folder / "valkey",
        [port + number for number in servers],
        [port + len(servers) + number for number in servers],
        locked=True,
        log_of=log,
    )


def open_stack(folder: Path, *, to_start: bool = False) -> Stack:
    """The stack in this folder. `to_start`: variables may choose its ports, if it does not run."""
    remembered = ports_of_stack.remembered_in(folder)
    if not to_start:
        return Stack(folder, ports_of_stack.DEFAULTS | remembered)
    ports = ports_of_stack.choose(remembered)
    if remembered and remembered != ports and any(each.running() for each in Stack(folder, remembered).processes):
        moved = next(variable for variable in ports if ports[variable] != remembered.get(variable))
        raise StackError(
            f"The stack is running with {moved}={remembered.get(moved)}; `make down` first, to move it to {ports[moved]}."
        )
    ports_of_stack.remember(folder, ports)
    stack = Stack(folder, ports)
    if ports.get(ports_of_stack.CLUSTER) and not stack.declarations_path.exists():
        stack.declare_shards()
    return stack


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One command at a time changes the stack; another one waits. The lock ends with its holder, however that ends."""
    make_folder(folder)
    path = folder / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        own(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another command is changing the stack; waiting for it …", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
