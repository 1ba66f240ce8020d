"""A cluster: recording in 16 parts on three servers of Redis, next to one part on one server."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib.resources import files

from compose.local.processes import Process
from compose.local.redis_cluster import Cluster
from compose.local.servers import HOST, Valkey
from compose.local.services import Web
from loadtest.bench import load
from loadtest.bench.ingesting import SECONDS, Batches
from loadtest.bench.results import Report, Result, by_turns, paired
from loadtest.bench.world import ENDING, World, free_port, run_sql

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


def start_replica(world: World) -> Process:
    """A replica of the one server, so that each write is copied once on both sides."""
    options = {"replicaof": f"{HOST} {world.valkey.port}", **ENDING}
    return world.start(Valkey(world.folder / "copy", free_port(), **options))


def sharded() -> str:
    """The declarations of the package, in 16 parts."""
    text = (files("shared_models") / "rollcall.toml").read_text()
    return re.sub(r"(?m)^(member = .*)$", rf"\1\nshards = {SHARDS}", text)


def ingest(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """ingest.cluster: batches and single messages over HTTP, and what waiting for a replica costs."""
    cluster = start_cluster(world)
    services = {"one": world.ingest}
    start_replica(world)
    world.declare(sharded())
    on_cluster = {"DATABASE_URL": world.primary.url, "REDIS_URL": cluster.url, **world.declarations}
    services["cluster"] = world.service("many", "ingest_service.asgi", on_cluster, with_tokens=True)
    waiting = on_cluster | {"WAIT_REPLICAS": "1"}
    services["waiting"] = world.service("waiting", "ingest_service.asgi", waiting, with_tokens=True)

    def empty() -> None:
        run_sql(world.primary.url, "TRUNCATE message, receipt")
        for server in (world.valkey, *cluster.nodes):
            with server.client() as client:
                if client.info("replication")["role"] == "master":
                    client.flushall()

    def compare(name: str, unit: str, measure: dict[str, Callable[[], float]], note: str) -> None:
        """Of each side: some rate, beginning with nothing."""

        def begin_empty(side: str) -> float:
            empty()
            return measure[side]()

        for side in measure:  # connections, caches
            begin_empty(side)
        found = by_turns(rounds, {side: partial(begin_empty, side) for side in measure})
        report.add(
            Result(f"ingest.cluster.{name}", unit, f"one server, one part, {unit}", paired(found, "cluster", "one"),
                   goal=GOAL, note=f"{SHARDS} parts on {PRIMARIES} servers, each with a replica; {note}"),
            Result(f"ingest.cluster.{name}, WAIT_REPLICAS=1", unit, f"the same without waiting, {unit}",
                   paired(found, "waiting", "cluster"), note=note),
        )  # fmt: skip

    compare(
        "batches",
        "rows/s",
        {name: Batches(world, service).through_ingest for name, service in services.items()},
        "batches of 10,000 rows into an empty table, two producers",
    )
    for connections in CONNECTIONS:
        compare(
            f"singles.{connections}",
            "requests/s",
            {name: partial(singles, service, connections) for name, service in services.items()},
            f"{connections} connections",
        )


def singles(service: Web, connections: int) -> float:
    """Messages a second, one in each request."""
    target = load.Target(f"{service.url}/v1/messages", service.authorization(), posting=True)
    return load.as_fast_as_possible(target, connections=connections, seconds=SECONDS).per_second


CASES = {"ingest.cluster": ingest}
