"""A Redis Cluster on this machine: some primaries, each with a replica."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from compose.local.processes import POLL_SECONDS, DoesNotStart
from compose.local.servers import HOST, Valkey
from shared_models import nodes

SLOTS = 16_384
# A primary that does not answer for this long has failed, and a replica takes its place.
NODE_TIMEOUT_MILLISECONDS = 1_000
FORM_SECONDS = 30.0


class Node(Valkey):
    """One server of a cluster. All of them have the same users, with the same passwords, which are in `secrets`."""

    def __init__(self, folder: Path, port: int, bus_port: int, secrets: Path, **options: Any) -> None:
        self._secrets = secrets
        super().__init__(
            folder,
            port,
            **{
                "cluster-enabled": "yes",
                "cluster-port": str(bus_port),
                "cluster-config-file": "nodes.conf",
                "cluster-node-timeout": str(NODE_TIMEOUT_MILLISECONDS),
                # If one primary and its replica are gone, the others go on: that costs their shards.
                "cluster-require-full-coverage": "no",
                "repl-diskless-sync-delay": "0",
                **options,
            },
        )

    @property
    def secrets(self) -> Path:
        return self._secrets

    def command(self) -> list[str]:
        login = ["--masteruser", "admin", "--masterauth", self.password_of("admin")] if self.locked else []
        return [*super().command(), *login]

    def ask(self, *words: object) -> Any:
        """The answer to one command. Raises redis.RedisError."""
        with self.client() as client:
            return client.execute_command(*words)

    @property
    def is_primary(self) -> bool:
        """Whether it is a primary at the moment. Raises redis.RedisError."""
        return bool(self.ask("ROLE")[0] == b"master")


class Cluster:
    """The servers of a cluster: `ports` and `bus_ports` are those of the primaries at first, and then of the replicas."""

    def __init__(self, folder: Path, ports: list[int], bus_ports: list[int], **options: Any) -> None:
        self.folder = folder
        self.locked = bool(options.get("locked"))
        log: Callable[[str], Path] | None = options.pop("log_of", None)
        self.nodes = [
            Node(
                folder.with_name(f"{folder.name}-{number}"),
                port,
                bus_port,
                folder.with_name(f"{folder.name}-1"),
                **({"log": log(f"{folder.name}-{number}")} if log else {}),
                **options,
            )
            for number, (port, bus_port) in enumerate(zip(ports, bus_ports, strict=True), 1)
        ]

    @property
    def processes(self) -> list[Node]:
        """Its processes, in the order of their start."""
        return self.nodes

    @property
    def url(self) -> str:
        """The URL for people and tests: everything is allowed. No service gets it."""
        return self.url_of("admin")

    def url_of(self, user: str) -> str:
        """For the service that is this user of compose/redis/users.acl."""
        login = f"{user}:{self.nodes[0].password_of(user)}@" if self.locked else ""
        return f"redis+cluster://{login}{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"

    @contextmanager
    def client_of(self, key: str) -> Iterator[redis.Redis]:
        """A client of the server that has this key. Raises redis.RedisError."""
        servers = nodes.Nodes(self.url, nodes.ask_server)
        try:
            yield servers.of(key)
        finally:
            for client in servers.forget_all():
                client.close()

    def form(self) -> None:
        """Make one cluster of the servers, which have to run; does nothing if they are one."""
        first, many = self.nodes[0], len(self.nodes) // 2
        if int(first.ask("CLUSTER INFO")["cluster_known_nodes"]) == 1:
            for number, node in enumerate(self.nodes, 1):
                node.ask("CLUSTER", "SET-CONFIG-EPOCH", number)
            for number, node in enumerate(self.nodes[:many]):
                begin, end = number * SLOTS // many, (number + 1) * SLOTS // many - 1
                node.ask("CLUSTER", "ADDSLOTSRANGE", begin, end)
            for node in self.nodes[1:]:
                node.ask("CLUSTER", "MEET", HOST, first.port, first.config["cluster-port"])
            self.wait("the servers to know each other", self.know_each_other)
            for node, primary in zip(self.nodes[many:], self.nodes, strict=False):
                node.ask("CLUSTER", "REPLICATE", primary.ask("CLUSTER", "MYID"))
        self.wait("the cluster to serve", self.serves)

    def know_each_other(self) -> bool:
        """Whether each server knows all others, and has shaken hands with them."""
        return all(
            len(node.ask("CLUSTER NODES")) == len(self.nodes)
            and b"handshake" not in str(node.ask("CLUSTER NODES")).encode()
            for node in self.nodes
        )

    def serves(self) -> bool:
        """Whether every server says that the cluster serves, and every replica has the data of its primary."""
        return all(
            node.ask("CLUSTER INFO")["cluster_state"] == "ok"
            and (node.is_primary or node.ask("ROLE")[3] == b"connected")
            for node in self.nodes
        )

    @staticmethod
    def wait(what: str, condition: Callable[[], bool]) -> None:
        """Wait until it is true. Raises DoesNotStart."""
        deadline, reason = time.monotonic() + FORM_SECONDS, "it is not"
        while True:
            try:
                if condition():
                    return
            except redis.RedisError as error:
                reason = str(error)
            if time.monotonic() > deadline:
                raise DoesNotStart(f"Waited {FORM_SECONDS:g} s for {what}: {reason}.")
            time.sleep(POLL_SECONDS)
