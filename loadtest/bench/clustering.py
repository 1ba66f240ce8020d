"""A cluster: recording in 16 parts on three servers of Redis, next to one part on one server."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files

from compose.local.ports import free_port
from compose.local.redis_cluster import Cluster
from compose.local.servers import HOST, Valkey
from compose.local.services import Web
from loadtest.bench import load
from loadtest.bench.ingesting import SECONDS, Batches
from loadtest.bench.processors import busy_seconds
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import ENDING, World, run_sql

PRIMARIES, SHARDS = 3, 16
CONNECTIONS = (32, 256)
GOAL = 0.9


def start_cluster(world: World) -> Cluster:
    """Three primaries with a replica each."""
    ports = [free_port() for _ in range(4 * PRIMARIES)]
    cluster = Cluster(world.folder / "cluster", ports[: 2 * PRIMARIES], ports[2 * PRIMARIES :], **ENDING)
    for node in cluster.nodes:
        world.start(node)
    cluster.form()
    return cluster


def start_replica(world: World) -> Valkey:
    """A replica of the one server, so that each write is copied once on both sides."""
    options = {"replicaof": f"{HOST} {world.valkey.port}", **ENDING}
    return world.start(Valkey(world.folder / "copy", free_port(), **options))


def sharded() -> str:
    """The declarations of the package, in 16 parts."""
    text = (files("shared_models") / "rollcall.toml").read_text()
    return re.sub(r"(?m)^(member = .*)$", rf"\1\nshards = {SHARDS}", text)


@dataclass(slots=True)
class Side:
    """Ingest, and its servers of Redis."""

    ingest: Web
    servers: list[Valkey]
    # Microseconds of the processors for a message, in each round.
    ingest_us: list[float] = field(default_factory=list)
    redis_us: list[float] = field(default_factory=list)

    def empty(self) -> None:
        for server in self.servers:
            with server.client() as client:
                if client.info("replication")["role"] == "master":
                    client.flushall()

    def singles(self, connections: int) -> float:
        """Messages a second, one in each request."""
        target = load.Target(f"{self.ingest.url}/v1/messages", self.ingest.authorization(), posting=True)
        before = busy_seconds([self.ingest]), busy_seconds(self.servers)
        rate = load.as_fast_as_possible(target, connections=connections, seconds=SECONDS).per_second
        after = busy_seconds([self.ingest]), busy_seconds(self.servers)
        for took, costs in zip(
            (after[0] - before[0], after[1] - before[1]), (self.ingest_us, self.redis_us), strict=True
        ):
            costs.append(took * 1e6 / (rate * SECONDS))
        return rate


def ingest(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """ingest.cluster: batches and single messages over HTTP, and what waiting for a replica costs."""
    cluster = start_cluster(world)
    sides = {"one": Side(world.ingest, [world.valkey, start_replica(world)])}
    world.declare(sharded())
    on_cluster = {"DATABASE_URL": world.primary.url, "REDIS_URL": cluster.url, **world.declarations}
    for name, more in (("cluster", {}), ("waiting", {"WAIT_REPLICAS": "1"})):
        service = world.service(name, "ingest_service.asgi", on_cluster | more, with_tokens=True)
        sides[name] = Side(service, list(cluster.nodes))
    what = f"{SHARDS} parts on {PRIMARIES} servers, each with a replica"

    def from_empty(side: Side, measure: Callable[[], float]) -> float:
        run_sql(world.primary.url, "TRUNCATE message, receipt")
        side.empty()
        return measure()

    def compare(name: str, unit: str, measure: Mapping[str, Callable[[], float]], note: str) -> None:
        for each, side in sides.items():  # connections, caches
            from_empty(side, measure[each])
            side.ingest_us, side.redis_us = [], []
        found = by_turns(rounds, {each: partial(from_empty, side, measure[each]) for each, side in sides.items()})
        report.add(
            Result(f"ingest.cluster.{name}", unit, f"one server, one part, {unit}", paired(found, "cluster", "one"),
                   goal=GOAL, note=f"{what}; {note}"),
            Result(f"ingest.cluster.{name}, WAIT_REPLICAS=1", unit, f"the same without waiting, {unit}",
                   paired(found, "waiting", "cluster"), note=note),
        )  # fmt: skip

    batches = {name: Batches(world, side.ingest).through_ingest for name, side in sides.items()}
    compare("batches", "rows/s", batches, "batches of 10,000 rows into an empty table, two producers")
    for connections in CONNECTIONS:
        singles = {name: partial(side.singles, connections) for name, side in sides.items()}
        compare(f"singles.{connections}", "requests/s", singles, f"{connections} connections")
        for who in ("ingest", "redis"):
            costs = paired({name: getattr(side, f"{who}_us") for name, side in sides.items()}, "cluster", "one")
            report.add(
                Result(f"ingest.cluster.singles.{connections}, processor time of {who}", "µs a message",
                       "one server, one part, µs a message", costs, note="all of its processes")
            )  # fmt: skip


CASES = {"ingest.cluster": ingest}
