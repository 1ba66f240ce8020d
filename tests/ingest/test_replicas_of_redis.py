"""WAIT_REPLICAS: counted is true only when replicas of Redis have the members, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from redis import Redis

from compose.local.processes import Process
from compose.local.servers import Valkey
from ingest_service.writing import counting
from shared_models import declarations
from shared_models.protocol import elements, keys, steps, trips
from tests.ingest.producing import Producer, message
from tests.servers import free_port, servers_folder, start, started_cluster, wait_for

SHARDED = """
[tables.message]
name = "public.message"
fields = {username = "varchar"}
ingest = true
[counters.users]
table = "message"
member = ["username"]
shards = 16
"""


@pytest.fixture(autouse=True)
def wait_for_one(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django.conf.settings.WAIT_REPLICAS", 1)


@pytest.fixture
def pair(use_redis: Callable[[str], None]) -> Iterator[tuple[Valkey, Valkey]]:
    """A primary with the users of production, which ingest uses, and its replica."""
    folder, options = (
        servers_folder(),
        {"appendonly": "no", "save": "", "repl_diskless_sync_delay": "0", "dies_with_parent": True},
    )
    primary = Valkey(folder / "followed", free_port(), locked=True, **options)
    start(primary)
    login = {"masteruser": "admin", "masterauth": primary.password_of("admin")}
    of = {"replicaof": f"127.0.0.1 {primary.port}", **login}
    replica = Valkey(folder / "follower", free_port(), locked=True, **of, **options)
    start(replica)
    with primary.client() as admin:
        steps.load_scripts(admin)
        wait_for(lambda: admin.incr("written") and admin.execute_command("WAIT", 1, 50), "the replica")
    use_redis(primary.url_of("ingest"))
    yield primary, replica
    primary.stop()
    replica.stop()


@contextmanager
def stopped(server: Process) -> Iterator[None]:
    """While this lasts, it does nothing."""
    process = server.running()
    assert process is not None
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def has(client: Redis, name: str) -> bool:
    return bool(client.sismember(keys.of_counter("users").members, name))


def test_P2_counted_means_that_a_replica_has_it_too(
    producer: Producer,
    pair: tuple[Valkey, Valkey],
    use_redis: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django.conf.settings.REDIS_TIMEOUT_SECONDS", 2.0)
    primary, replica = pair
    with primary.client() as admin, replica.client() as copy:
        for number in range(20):
            assert producer.send(message(f"user{number}")).json()["counted"] is True
            assert has(copy, f"user{number}")
        with stopped(replica):
            answers = [producer.send(message("ann")), producer.send_batch(message("bob"), Idempotency_Key="17")]
            # Over a connection that has written nothing: the members were added over another one.
            use_redis(primary.url_of("ingest"))
            answers += [producer.send_batch(message("bob"), Idempotency_Key="17"), producer.send(message("ann"))]
            assert [answer.json()["counted"] for answer in answers] == [False] * 4
            assert answers[2]["Idempotent-Replay"] == "true"
            assert producer.usernames()[20:] == ["ann", "bob", "ann"]
            assert has(admin, "ann") and has(admin, "bob")
        use_redis(primary.url_of("ingest"))
        again = producer.send_batch(message("bob"), Idempotency_Key="17")
        assert again.json()["counted"] is True and has(copy, "bob")
        assert producer.send(message("cat")).json()["counted"] is True


def test_a_replica_that_hangs_delays_one_request_and_not_the_next(
    producer: Producer, pair: tuple[Valkey, Valkey], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    commands = steps.Copies.commands

    def noted(copies: steps.Copies, name: str) -> list[trips.Command]:
        asked.append(copies.milliseconds)
        return commands(copies, name)

    monkeypatch.setattr(steps.Copies, "commands", noted)
    monkeypatch.setattr(counting, "PAUSE_SECONDS", 60.0)
    with stopped(pair[1]):
        for name in ("ann", "bob", "cat"):
            assert producer.send(message(name)).json()["counted"] is False
    assert asked == [500, counting.SHORT_WAIT_MILLISECONDS, counting.SHORT_WAIT_MILLISECONDS]
    wait_for(lambda: producer.send(message("dan")).json()["counted"], "a short wait to succeed")
    assert producer.send(message("eve")).json()["counted"] is True
    assert asked[-1] == 500, "a wait that succeeds ends the pause"


@pytest.mark.long
def test_each_server_of_a_cluster_waits_for_its_own_replica(
    producer: Producer, use_redis: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.REDIS_TIMEOUT_SECONDS", 0.3)
    tables, counters = declarations.parse(SHARDED)
    monkeypatch.setattr(declarations, "TABLES", tables)
    monkeypatch.setattr(declarations, "COUNTERS", counters)
    cluster = started_cluster()
    use_redis(cluster.url)
    parts = counters[0].parts
    # Equal slices of the slots: parts 0 to 4 are on the first server, and parts 11 to 15 on the last one.
    users = {elements.shard_of(parts[0], b"user%d" % number): f"user{number}" for number in range(500)}
    assert [producer.send_batch(*map(message, users.values())).json()["counted"]] == [True]
    with stopped(next(node for node in cluster.nodes if replicates(node, cluster.nodes[0].port))):
        assert producer.send(message(users[0])).json()["counted"] is False
        assert producer.send(message(users[15])).json()["counted"] is True
        assert producer.send_batch(*map(message, users.values())).json()["counted"] is False


def replicates(node: Valkey, port: int) -> bool:
    """Whether this server is a replica of that one."""
    with node.client() as client:
        return bool(client.info("replication").get("master_port") == port)
