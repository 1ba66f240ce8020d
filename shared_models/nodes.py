"""Which Redis server holds a key: one server, the primary that sentinels name, or the primaries of a cluster.

    redis://…  rediss://…  unix://…                              one server
    redis+sentinel://user:password@host:26379,host:26379/SERVICE/DB  the primary that a majority of the sentinels has chosen
    redis+cluster://user:password@host:6379,host:6379            the primaries of a cluster; some of its servers are enough

("rediss+…" uses TLS.) A client of `Nodes` is a plain one of its server: it never follows a redirect. If it is asked for a key that
has moved, or its server no longer is a primary, that attempt fails, and the map is read again (`look_again`). So all commands of
a pass have gone to the server that the pass began with.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, TypeVar
from urllib.parse import SplitResult, urlsplit

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError, RedisError
from redis.retry import Retry

Client = TypeVar("Client")
Item = TypeVar("Item")

SCHEMES = ("redis", "rediss", "unix")
# How long a server may take to say where the keys are. The next one is asked after that.
ANSWER_SECONDS = 0.5
# The map is read again at most this often: while a cluster fails over, every request fails.
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Place:
    """The slots from `first` to the next place's first, and the URL of the server that holds them."""

    first: int
    url: str


@dataclass(slots=True)
class Nodes(Generic[Client]):
    """The servers of a URL, and a client of each. `connect` makes one from a plain URL. For several threads.

    Clients are kept. `forget` the one whose connections may not be used again.
    """

    url: str
    connect: Callable[[str], Client]
    _places: list[Place] = field(default_factory=list)
    _clients: dict[str, Client] = field(default_factory=dict)
    _looked_at: float = 0.0
    # Until when nobody looks again, after a look in vain, and why it was in vain.
    _no_look_until: float = 0.0
    _in_vain: str = ""

    def of(self, key: str) -> Client:
        """The client of the server that holds this key. Raises redis.ConnectionError if nobody says which one it is."""
        return self.at(self.where(key))

    def where(self, key: str) -> str:
        """The URL of the server that holds this key. Raises redis.ConnectionError."""
        places = self.look()
        if len(places) == 1:
            return places[0].url
        return places[bisect_right(places, key_slot(key.encode()), key=attrgetter("first")) - 1].url

    def at(self, url: str) -> Client:
        """The client of this server."""
        client = self._clients.get(url)
        # Two threads may make one each; they keep the same.
        return self._clients.setdefault(url, self.connect(url)) if client is None else client

    def by_client(self, items: Iterable[Item], key_of: Callable[[Item], str]) -> list[tuple[Client, list[Item]]]:
        """The items, by the client of each one's key. Raises redis.ConnectionError."""
        return [(self.at(url), some) for url, some in self.by_server(items, key_of).items()]

    def by_server(self, items: Iterable[Item], key_of: Callable[[Item], str]) -> dict[str, list[Item]]:
        """The items, by the URL of the server of each one's key. Raises redis.ConnectionError."""
        found: dict[str, list[Item]] = {}
        for item in items:
            found.setdefault(self.where(key_of(item)), []).append(item)
        return found

    def each(self) -> list[Client]:
        """A client of each server that holds keys. Raises redis.ConnectionError."""
        return [self.at(url) for url in dict.fromkeys(place.url for place in self.look())]

    @property
    def is_one(self) -> bool:
        """Whether it is one server, whose address is in the URL."""
        return urlsplit(self.url).scheme in SCHEMES

    @property
    def is_cluster(self) -> bool:
        """Whether it is a cluster: there no MULTI may touch keys of two slots, also if one server holds both."""
        return urlsplit(self.url).scheme.endswith("+cluster")

    @property
    def is_stale(self) -> bool:
        """Whether the next `of` reads the map first, which takes a round trip."""
        return not self._places

    def look_again(self) -> None:
        """Read the map before the next command: a server has failed, or said that it does not hold a key."""
        if not self.is_one and time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._places = []

    def forget(self, url: str) -> Client | None:
        """Forget the client of this server: the next one is new. The caller closes it."""
        return self._clients.pop(url, None)

    def forget_all(self) -> list[Client]:
        """Forget all clients, and the map; the caller closes them."""
        clients, self._clients, self._places = list(self._clients.values()), {}, []
        return clients

    def look(self) -> list[Place]:
        """The map; it is read if it is not known. Raises redis.ConnectionError.

        After a look in vain the next one waits as long as that look took: if all servers hang, it takes seconds, and every request
        of ingest would wait for that.
        """
        places = self._places
        if not places:
            begun = time.monotonic()
            if begun < self._no_look_until:
                raise ConnectionError(self._in_vain)
            try:
                places = sorted(read_places(self.url, list(self._clients)), key=attrgetter("first"))
            except ConnectionError as error:
                ended = time.monotonic()
                self._no_look_until, self._in_vain = 2 * ended - begun, str(error)
                raise
            self._looked_at, self._places = time.monotonic(), places
        return places


@dataclass(slots=True)
class AsyncNodes(Nodes[AsyncRedis]):
    """The same for one event loop: it goes on while the map is read."""

    _look: asyncio.Task[list[Place]] | None = None

    async def ready(self) -> None:
        """Return when the map is known: until the next `await`, `of` and `where` take no time. Raises redis.ConnectionError.

        All who wait share one look, which goes on if some of them no longer wait.
        """
        while self.is_stale:
            if self._look is None or self._look.done():
                self._look = asyncio.create_task(asyncio.to_thread(self.look))
                self._look.add_done_callback(
                    lambda look: look.cancelled() or look.exception()
                )  # nobody may wait for it
            await asyncio.shield(self._look)

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self.forget_all():
            await client.aclose()


def only(client: Client) -> Nodes[Client]:
    """One server, by its client."""
    return Nodes("redis://", lambda url: client)


def read_places(url: str, known: Sequence[str] = ()) -> Iterable[Place]:
    """Where the keys are now. `known`: URLs of servers that were there before; they are asked, too.

    Raises redis.ConnectionError if no server says so.
    """
    parts = urlsplit(url)
    if parts.scheme in SCHEMES:
        return [Place(0, url)]
    kind, asked, read = parts.scheme.partition("+")[2], list(addresses(parts)), read_sentinel
    if kind == "cluster":
        asked += [(urlsplit(each).hostname or "", urlsplit(each).port or 6379) for each in known]
        read = read_cluster
    asked = list(dict.fromkeys(asked))
    random.shuffle(asked)  # so that not all clients ask the same one
    reason: Exception | None = None
    for host, port in asked:
        try:
            return read(parts, host, port)
        except (RedisError, OSError) as error:
            reason = error
    servers = ", ".join(f"{host}:{port}" for host, port in asked)
    raise ConnectionError(f"no server of the {kind} ({servers}) says where the keys are: {reason}")


def addresses(parts: SplitResult) -> Iterator[tuple[str, int]]:
    """The hosts and ports of a URL that names several."""
    default = 26379 if parts.scheme.endswith("sentinel") else 6379
    for each in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{each}")
        yield one.hostname or "localhost", one.port or default


def plain_url(parts: SplitResult, host: str, port: int, database: str = "0") -> str:
    """The URL of one server, with the same credentials."""
    credentials, at, _ = parts.netloc.rpartition("@")
    host = f"[{host}]" if ":" in host else host
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme.partition('+')[0]}://{credentials}{at}{host}:{port}/{database}{query}"


def ask_server(url: str) -> Redis:
    """A client for one question."""
    return Redis.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        client_name="rollcall-nodes",
    )


def read_cluster(parts: SplitResult, host: str, port: int) -> list[Place]:
    """The map, as this server of a cluster knows it. Raises redis.RedisError, also if it does not serve at present."""
    with ask_server(plain_url(parts, host, port)) as client:
        info = client.execute_command("CLUSTER INFO")
        if info.get("cluster_state") != "ok":
            # It is cut off from the others, or has not all slots: what it knows may be old.
            raise ConnectionError(f"the cluster is {info.get('cluster_state')} at {host}:{port}")
        found = client.execute_command("CLUSTER SLOTS")
    # [first slot, last slot, [host, port, …] of the primary, those of its replicas …]. A server may not know its own host.
    return [Place(first, plain_url(parts, primary[0].decode() or host, primary[1])) for first, _, primary, *_ in found]


def read_sentinel(parts: SplitResult, host: str, port: int) -> list[Place]:
    """The primary that this sentinel knows. Raises redis.RedisError."""
    service, _, database = parts.path.strip("/").partition("/")
    scheme = parts.scheme.partition("+")[0]
    with ask_server(f"{scheme}://{host}:{port}") as sentinel:
        found = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", service)
    if not found:
        raise ConnectionError(f"the sentinel at {host}:{port} does not know {service!r}")
    name, number = found
    url = plain_url(parts, name.decode(), number, database or "0")
    with ask_server(url) as primary:
        # A sentinel that is behind names the one of before, which may be a replica by now: reads there give no error.
        if primary.info("replication").get("role") != "master":
            raise ConnectionError(f"the sentinel at {host}:{port} names a replica")
    return [Place(0, url)]
