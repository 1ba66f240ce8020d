"""Round trips to several servers that hang."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from socket import create_server, socket
from threading import Event, Thread

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, TimeoutError
from redis.retry import Retry

from shared_models import nodes
from shared_models.protocol import trips

SECONDS = 0.2


class Server:
    """Answers PING, until it hangs. It accepts connections also then."""

    def __init__(self) -> None:
        self.hangs = Event()
        self.socket = create_server(("127.0.0.1", 0))
        self.client = Redis(
            port=self.socket.getsockname()[1],
            socket_timeout=SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
            client_name="told at once",  # so connecting takes an answer
        )
        Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket) -> None:
        with connection:
            while said := connection.recv(65536):
                if not self.hangs.is_set():
                    connection.sendall(b"+OK\r\n" * said.count(b"*"))


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        found = [Server() for _ in range(4)]
        for each in found:
            stack.enter_context(closing(each.socket))
            stack.enter_context(closing(each.client))
        yield found


def ask(servers: list[Server]) -> tuple[list[object], float]:
    """The results, and in how many times the timeout."""
    begun = time.monotonic()
    asked = (trips.send(each.client, [("PING",), ("PING",)]) for each in servers)
    results = trips.finish_all(asked, (RedisError,), 1.5 * SECONDS)
    return list(results), (time.monotonic() - begun) / SECONDS


def test_servers_that_hang_take_no_longer_than_one(servers: list[Server]) -> None:
    """And what another one has answered meanwhile is read."""
    assert ask(servers)[0] == [[b"OK", b"OK"]] * 4
    for each in servers[:3]:
        each.hangs.set()
    results, took = ask(servers)
    assert [type(each) for each in results] == [TimeoutError] * 3 + [list]
    assert took < 2


def test_connecting_to_servers_that_hang_takes_no_longer_than_two(servers: list[Server]) -> None:
    for each in servers:
        each.hangs.set()
    results, took = ask(servers)
    assert [type(each) for each in results] == [TimeoutError] * 4
    assert took < 3


def test_a_look_in_vain_is_not_repeated_at_once(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each request of ingest would take as long as a look at all servers of a cluster that hangs."""
    monkeypatch.setattr(nodes, "ANSWER_SECONDS", SECONDS)
    for each in servers:
        each.hangs.set()
    addresses = ",".join(f"127.0.0.1:{each.socket.getsockname()[1]}" for each in servers)
    cluster = nodes.Nodes(f"redis+cluster://{addresses}", Redis.from_url)
    for most in (5 * SECONDS, SECONDS / 2):
        begun = time.monotonic()
        with pytest.raises(RedisError, match="no server of the cluster"):
            cluster.of("a key")
        assert time.monotonic() - begun < most
