"""The Redis of a stack, and the wires that lead to it: one server, or a cluster of three primaries with a replica each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import key_slot

from compose.local.redis_cluster import SLOTS, Cluster, Node
from compose.local.servers import HOST, Valkey
from loadtest.chaos.schedule import SERVICES_AT_REDIS, SHARDS
from loadtest.chaos.wires import Wire
from shared_models import declarations
from shared_models.nodes import Nodes, ask_server
from shared_models.protocol import keys

# How many parts each counter has on a cluster. Part 3 of one counter is near part 3 of another: in the same slice of the slots.
PARTS = 9


class OneServer:
    """One server. Each service has a wire of its own to it."""

    parts = 1

    def __init__(self, folder: Path, ports: Iterator[int], options_of: Callable[[str], dict[str, Any]]) -> None:
        self.servers = Valkey(folder / "valkey", next(ports), save="", **options_of("valkey"))
        names = [f"{service}-valkey" for service in SERVICES_AT_REDIS]
        self.wires = {name: Wire(name, self.servers.port, next(ports)) for name in names}

    def url_of(self, service: str) -> str:
        """The URL that this service gets."""
        return re.sub(r":\d+/", f":{self.wires[f'{service}-valkey'].port}/", self.servers.url)

    def nodes(self) -> AbstractContextManager[Nodes[Redis]]:
        """Its servers, for a short while."""
        return open_nodes(self.servers.url)

    def named(self, target: str) -> list[Valkey]:
        """The servers that a fault's target means."""
        return [self.servers]

    def why_not_whole(self) -> str | None:
        """What is missing, after all faults were undone."""
        return self.servers.why_not_ready()


class SeveralServers:
    """A cluster. Each server has two wires: clients, its replica and slots that move come over `valkey-1`, the messages of the
    other servers over `bus-1`. Each connects from an address of its own, so a wire knows which server comes.
    """

    parts = PARTS

    def __init__(self, folder: Path, ports: Iterator[int], options_of: Callable[[str], dict[str, Any]]) -> None:
        count = 2 * len(SHARDS)
        options = options_of("valkey")
        log: Path = options.pop("log")
        self.servers = Cluster(
            folder / "valkey",
            [next(ports) for _ in range(count)],
            [next(ports) for _ in range(count)],
            save="",
            log_of=lambda name: log.with_stem(name),
            # A primary that has given its last slots away would become a replica of another one.
            **{"cluster-allow-replica-migration": "no"},
            **options,
        )
        self.wires: dict[str, Wire] = {}
        for number, node in enumerate(self.servers.nodes, 1):
            bus = f"bus-{number}"
            self.wires[node.name] = Wire(node.name, node.port, next(ports))
            self.wires[bus] = Wire(bus, int(node.config["cluster-port"]), next(ports))
            node.config |= {
                "bind-source-addr": f"127.0.0.{10 + number}",
                "cluster-announce-ip": HOST,
                "cluster-announce-port": str(self.wires[node.name].port),
                "cluster-announce-bus-port": str(self.wires[bus].port),
            }
        half = len(SHARDS)
        self.shards = {
            name: Shard(name, first, second)
            for name, first, second in zip(SHARDS, self.servers.nodes[:half], self.servers.nodes[half:], strict=True)
        }

    def url_of(self, service: str) -> str:
        """The same for all services."""
        return f"redis+cluster://{','.join(f'{HOST}:{self.wires[node.name].port}' for node in self.servers.nodes)}"

    def nodes(self) -> AbstractContextManager[Nodes[Redis]]:
        """Its servers, for a short while."""
        return open_nodes(self.servers.url)

    def named(self, target: str) -> list[Valkey]:
        """The servers that a fault's target means."""
        return list(self.shards[target].nodes)

    def why_not_whole(self) -> str | None:
        """What is missing, after all faults were undone. Raises redis.RedisError."""
        return None if self.servers.serves() else "the cluster is not whole"

    def bus_of(self, node: Node) -> Wire:
        """The wire to the bus of a server."""
        return self.wires[node.name.replace("valkey", "bus")]


class Shard:
    """A primary and its replica, as they were at first: they change their roles."""

    def __init__(self, name: str, first: Node, second: Node) -> None:
        self.name, self.nodes = name, (first, second)
        # `promotions` keeps these up to date: the primary, and the epoch of its slots, which a promotion raises.
        self.primary, self.epoch = first, -1
        # A server whose next promotion loses nothing: its primary hands over in order.
        self.handed_over_to: Node | None = None

    @property
    def replica(self) -> Node:
        """The one that is not the primary."""
        return self.other(self.primary)

    def other(self, node: Node) -> Node:
        """The other one of the two."""
        first, second = self.nodes
        return second if node is first else first


def slots_at(node: Node, part: int | None = None) -> list[tuple[int, int]]:
    """The slots that a server holds, as it knows, or those of them in the slice of these parts: from the first to the last one.

    Raises redis.RedisError.
    """
    own = node.ask("CLUSTER", "MYID")
    begin, end = (0, SLOTS) if part is None else (-(-part * SLOTS // PARTS), -(-(part + 1) * SLOTS // PARTS))
    held = [
        (max(first, begin), min(last, end - 1))
        for first, last, primary, *_ in node.ask("CLUSTER", "SLOTS")
        if primary[2] == own
    ]
    return [(first, last) for first, last in held if first <= last]


def parts_at(node: Node) -> set[int]:
    """The numbers of the parts of which a server holds some, as it knows. Raises redis.RedisError."""
    held = slots_at(node)
    slots = [(part.shard, key_slot(keys.home_of(part).encode())) for part in declarations.parts()]
    return {number for number, slot in slots if any(first <= slot <= last for first, last in held)}


def source_of(node: Node) -> str:
    """The address that a server of the cluster connects from."""
    return node.config["bind-source-addr"]


@contextmanager
def open_nodes(url: str) -> Iterator[Nodes[Redis]]:
    """The servers, past the wires as far as there is one server. Raises redis.RedisError."""
    nodes = Nodes(url, ask_server)
    try:
        yield nodes
    finally:
        for client in nodes.forget_all():
            client.close()
