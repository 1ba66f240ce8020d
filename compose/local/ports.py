"""The ports of the stack: chosen at its first start, and remembered, so that later commands need no variables."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

from compose.local.ordinary_user import own
from compose.local.processes import StackError, make_folder

DEFAULTS = {
    "PRIMARY_PORT": 15432,
    "REPLICA_PORT": 15433,
    "REDIS_PORT": 16379,
    "INGEST_PORT": 8001,
    "MANAGE_PORT": 8002,
    "QUERY_PORT": 8003,
}
# How many primaries the cluster of Redis has; 0 is one server and no cluster. The servers listen on REDIS_PORT and those after it.
CLUSTER = "CLUSTER"
MOST_PRIMARIES = 8
# Below the ports that the system gives to clients: one of those would be taken before a server listens on it.
FREE = range(10_000, 32_000)
_named: set[int] = set()
OFFSET = "PORT_OFFSET"  # added to every default, for a second checkout at the same time


def choose(remembered: Mapping[str, int], environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The port of a variable, or the remembered one, or the default."""
    offset = read_number(environ, OFFSET)
    ports = {}
    for variable, default in DEFAULTS.items():
        said = read_number(environ, variable)
        if said is None and offset is not None:
            said = default + offset
        ports[variable] = said if said is not None else remembered.get(variable, default)
        if not 0 < ports[variable] < 65536:
            raise StackError(f"{variable}: {ports[variable]} is not a port; use 1 to 65535.")
    for variable, port in ports.items():
        if list(ports.values()).count(port) > 1:
            raise StackError(f"{variable}: port {port} is used twice; give each process its own.")
    primaries = read_number(environ, CLUSTER)
    if primaries is None:
        primaries = remembered.get(CLUSTER, 0)
    if primaries and not 3 <= primaries <= MOST_PRIMARIES:
        raise StackError(
            f"{CLUSTER}: {primaries} primaries; a cluster has 3 to {MOST_PRIMARIES} here, and 0 means none."
        )
    return ports | ({CLUSTER: primaries} if primaries else {})


def remembered_in(folder: Path) -> dict[str, int]:
    """The ports of the stack in this folder; empty if there was none."""
    try:
        return dict(json.loads((folder / "ports.json").read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def remember(folder: Path, ports: Mapping[str, int]) -> None:
    """Remember them for later commands."""
    make_folder(folder)
    path = folder / "ports.json"
    path.write_text(json.dumps(ports, indent=2) + "\n")
    own(path)


def read_number(environ: Mapping[str, str], variable: str) -> int | None:
    """A variable that holds a whole number; None if it is not set."""
    text = environ.get(variable, "").strip()
    try:
        return int(text) if text else None
    except ValueError:
        raise StackError(f"{variable}: {text!r} is not a number.") from None


def free_port() -> int:
    """A port that nobody listens on at the moment, and that this process has not named before."""
    while True:
        port = secrets.choice(FREE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _named:
            _named.add(port)
            return port
