"""A whole stack for one run: in a folder of its own, on ports of its own, with a wire between any two processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import psycopg2

from compose.local.ordinary_user import CHECKOUT, own
from compose.local.ports import free_port
from compose.local.processes import Process, has_ended
from compose.local.servers import HOST, Postgres, Primary, Replica, postgres_program
from compose.local.services import Keeper, Service, Web
from loadtest.chaos.redis_servers import OneServer, SeveralServers
from loadtest.chaos.wires import Wire, serve
from shared_models import declarations
from shared_models.deadlines import cut_after

# patched/sitecustomize.py reads this in the children; the product does not.
CLOCK, DOUBT, WITHOUT = "CHAOS_CLOCK_SECONDS", "CHAOS_DOUBT_SECONDS", "CHAOS_WITHOUT_RULE"
# How long the keeper accepts a watermark above everything that the replica knows, and waits after a refused build: the
# product's minutes are longer than a round.
DOUBT_SECONDS = 3

# An application's table: `orders.Application` writes it.
MAKE_ORDERS = """
    CREATE ROLE shop;
    CREATE SCHEMA shop AUTHORIZATION shop;
    SET ROLE shop;
    CREATE TABLE shop.orders (
        token text PRIMARY KEY,
        email text,
        branch uuid NOT NULL,
        deleted_at timestamptz,
        placed_at timestamptz
    );
"""
# The zones of messages: of the first one in which no day ends during the run. So all rows that producers send are of one day.
ZONES = ("America/St_Johns", "Pacific/Kiritimati")
ORDERS_ZONE = "Asia/Kathmandu"
DECLARE = """
[tables.message]
name = "public.message"
fields = {{state = "varchar", city = "varchar", username = "varchar", create_time = "timestamptz"}}
ingest = true

[counters.cities]
table = "message"
member = ["state", "city"]

[counters.users]
table = "message"
member = ["username"]
by = ["state", "day(create_time)"]
last_seen = "create_time"
time_zone = "{zone}"

[tables.orders]
name = "shop.orders"
fields = {{email = "text", branch = "uuid", placed_at = "timestamptz"}}

[counters.customers]
table = "orders"
member = ["email"]
where = "deleted_at IS NULL"
by = ["branch", "day(placed_at)", ["branch", "week(placed_at)"]]
last_seen = "placed_at"
time_zone = "{orders_zone}"

[counters.branches]
table = "orders"
member = ["branch"]
"""
# How long ago rows of the past are, and those of the future, in days.
AGES = (0, 1, 2, 6, 7, 8, 29, 30, 35, 100, 398, -1, -2)

# fsync stays on, which is the default: a killed server has to come back with everything that it acknowledged.
POSTGRES = {
    "shared_buffers": "64MB",
    "max_connections": "60",
    # Commits that nobody waits for are not on the disk when the primary crashes.
    "wal_writer_delay": "10s",
    # The other end notices a crash within this time.
    "wal_receiver_timeout": "2s",
    "wal_sender_timeout": "2s",
}
# Shorter than a service's own defaults, so that a pause of a few seconds is longer than each.
INGEST = {
    "WORKERS": "2",
    "BATCH_THREADS": "3",
    "DATABASE_CONNECT_SECONDS": "2",
    "DATABASE_STATEMENT_SECONDS": "2",
    "DATABASE_LOCK_SECONDS": "1",
    "DATABASE_ANSWER_SECONDS": "3",
    "PULSE_SECONDS": "0.5",
}
# No scheduled reconcile before the end, only those that a counter needs: departures have to remove members without one.
MANAGE = {"WORKERS": "1", "CATCH_UP_SECONDS": "0.5", "RECONCILE_SECONDS": "3600", "FENCE_SECONDS": "5"}

# Redis' own are in redis_servers.py.
POSTGRES_WIRES = ("ingest-primary", "manage-replica", "replica-primary")

# The longest allowed wait while only the stores fail: the sum of the limits in the longest request, and some more
# for a busy machine. Ingest: two connections and two transactions on the primary, then Redis, 14 s. Query: two reads
# of Redis, each with a connection, its greeting of four commands, and the answer, 0.5 s apiece, 6 s.
LONGEST_SECONDS = {"ingest": 20.0, "query": 8.0}

STATEMENT_SECONDS = 3.0  # for the statements of the run itself
# A session that waits for an exclusive lock blocks all others meanwhile.
LOCK_MILLISECONDS = 400


SLOT = "replica"  # of whichever of the two is the replica


class FarReplica(Replica):
    """A replica that reaches the primary over a wire."""

    slot = SLOT  # its name changes with its role
    wire_port = 0

    def _primary_conninfo(self) -> str:
        conninfo = f"host={HOST} port={self.wire_port} user=rollcall_replica application_name={self.slot}"
        return f"{conninfo} password={self.password_of('replica')}"


class FirstPrimary(Primary):
    """The primary until the first switchover. Later it may follow the other server."""

    follower: FarReplica | None = None

    def own_settings(self) -> dict[str, str]:
        follows = self.follower is not None and (self.data / "standby.signal").exists()
        return self.follower.own_settings() if follows and self.follower else super().own_settings()


class ChaosStack:
    """Seven processes, and wires between them. With `single`, without the replica: manage reads the primary. With `cluster`, Redis
    is a cluster, and not one server.

    All of it ends with this process, in any case.
    """

    def __init__(self, folder: Path, without: str = "", *, single: bool = False, cluster: bool = False) -> None:
        self.folder, self.without, self.single = folder, without, single
        here = (datetime.now(ZoneInfo(zone)) for zone in ZONES)
        now, self.zone = next((now, zone) for now, zone in zip(here, ZONES, strict=True) if 1 <= now.hour < 20)
        self.today = now.date()
        self.days: list[date] = [self.today - timedelta(days=age) for age in AGES]
        self.clock_seconds = 0  # how wrong the clock of ingest is
        self.adopted = False  # whether the application's table is
        ports = iter(free_port, 0)
        primary = FirstPrimary(folder / "primary", next(ports), settings=POSTGRES, **self._options("primary"))
        self.primary: Postgres = primary
        self.replica: Postgres = primary
        if not single:
            replica = FarReplica(
                folder / "replica", next(ports), primary, settings=POSTGRES, **self._options("replica")
            )
            primary.follower = self.replica = replica
        self.redis = (SeveralServers if cluster else OneServer)(folder, ports, self._options)
        servers = {"primary": self.primary, "replica": self.replica}
        self.wires = self.redis.wires | {
            name: Wire(name, servers[name.partition("-")[2]].port, next(ports)) for name in POSTGRES_WIRES
        }
        if not single:
            replica.wire_port = self.wires["replica-primary"].port
        self.ingest = self._web("ingest", "ingest_service.asgi", next(ports))
        self.manage = self._web("manage", "manage_service.asgi", next(ports))
        self.query = self._web("query", "query_service.asgi", next(ports))
        self.keeper = Keeper(
            folder / "keeper", lambda: self._variables("manage"), valkey=self.redis.servers, **self._options("keeper")
        )
        self.services: list[Service] = [self.ingest, self.manage, self.keeper, self.query]
        self.servers: list[Process] = [
            self.primary,
            *(() if single else (self.replica,)),
            *self.redis.servers.processes,
        ]
        self.processes: list[Process] = [*self.servers, *self.services]

    def _options(self, name: str) -> dict[str, Any]:
        return {"log": self.folder / "log" / f"{name}.log", "dies_with_parent": True}

    def _web(self, name: str, application: str, port: int) -> Web:
        return Web(
            self.folder / name,
            port,
            lambda: self._variables(name),
            application=application,
            **self._options(name),
        )

    def _variables(self, name: str) -> dict[str, str]:
        """The environment of a service: its servers through its wires."""

        def over(url: str, wire: str) -> str:
            return re.sub(r":\d+/", f":{self.wires[wire].port}/", url)

        variables = {
            "AUTH": "off",
            "REDIS_URL": self.redis.url_of(name),
            "PYTHONPATH": f"{CHECKOUT / 'loadtest' / 'chaos' / 'patched'}{os.pathsep}{CHECKOUT}",
            "ROLLCALL_FILE": str(self.declarations_path),
            WITHOUT: self.without,
            CLOCK: str(self.clock_seconds if name == "ingest" else 0),
        }
        if name == "ingest":
            variables |= INGEST | {"DATABASE_URL": over(self.primary.url, "ingest-primary")}
        elif name == "manage":
            variables |= MANAGE | {
                "DATABASE_URL": over(self.replica.url_of("manage"), "manage-replica"),
                DOUBT: str(DOUBT_SECONDS),
            }
        return variables

    def up(self) -> None:
        """Start everything, and wait until it is ready."""
        self.declare()
        serve(self.wires.values())
        for server in self.servers:
            server.start()
        self.redis.servers.form()
        self.ingest.create()
        self.ingest.run([sys.executable, "-m", "ingest_service", "migrate", "--no-input", "--verbosity=0"])
        self.ingest.run([sys.executable, "-m", "ingest_service", "adopt", "message", "--apply"])
        run_sql(self.primary, MAKE_ORDERS)
        for service in self.services:
            service.begin()
        for service in self.services:
            service.wait_until_ready()

    @property
    def declarations_path(self) -> Path:
        return self.folder / "rollcall.toml"

    def declare(self) -> None:
        """Declare both tables, for the services and for this process."""
        declared = DECLARE.format(zone=self.zone, orders_zone=ORDERS_ZONE)
        parts = rf"\g<0>\nshards = {self.redis.parts}"
        self.declarations_path.write_text(re.sub(r"^\[counters\..+\]$", parts, declared, flags=re.M))
        own(self.declarations_path)
        declarations.TABLES, declarations.COUNTERS = declarations.read_file(self.declarations_path)

    def adopt(self) -> None:
        """Adopt the application's table, as in docs/adopt.md, while the application works."""
        self.ingest.run([sys.executable, "-m", "ingest_service", "adopt", "orders", "--apply"])
        self.adopted = True

    def down(self) -> None:
        """End everything, also stopped processes. Postgres ends in order, so that it releases its shared memory."""
        for process in reversed(self.processes):
            resume(process)
            running = process.running()
            if running is not None and isinstance(process, Postgres):
                with contextlib.suppress(psutil.NoSuchProcess):
                    running.send_signal(signal.SIGQUIT)  # "immediate"
                has_ended(running, 5)
            process.kill()

    def switch(self) -> None:
        """Swap the names of the primary and the replica."""
        self.primary, self.replica = self.replica, self.primary
        self.primary.name, self.replica.name = "primary", "replica"

    def by_name(self, name: str) -> Process:
        """The process of this name."""
        return next(process for process in self.processes if process.name == name)


def family(process: Process) -> list[psutil.Process]:
    """A process and its children; empty if it does not run."""
    running = process.running()
    if running is None:
        return []
    try:
        return [running, *running.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resume(process: Process) -> None:
    """Continue all of its processes."""
    for each in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.resume()


def checkpoint_at_shutdown(server: Postgres) -> str:
    """The end of the log of a server that was shut down in order, as an lsn; empty if it was not."""
    command = [postgres_program("pg_controldata"), str(server.data)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
    facts = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    in_order = facts["Database cluster state"].strip() == "shut down"
    return facts["Latest checkpoint location"].strip() if in_order else ""


@contextlib.contextmanager
def connected(server: Postgres, seconds: float = STATEMENT_SECONDS) -> Iterator[Any]:
    """A cursor of the run's own, without wires, that no fault of the settings affects; at most for so long.

    Raises psycopg2.Error.
    """
    connection = psycopg2.connect(
        server.url,
        connect_timeout=2,
        options="-c default_transaction_read_only=off -c transaction_timeout=0 -c statement_timeout=2500",
    )
    try:
        connection.autocommit = True
        with cut_after(connection, seconds), connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def run_sql(server: Postgres, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """One statement, in a transaction of its own; its rows. Raises psycopg2.Error."""
    with connected(server) as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []
