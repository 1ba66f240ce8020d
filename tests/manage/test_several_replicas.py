"""Two replicas in one URL: one that is behind, or has ended, is passed over, and said."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import psycopg2
import pytest

from compose.local.servers import Replica
from manage_service import stores
from manage_service.keeper.loop import Keeper
from manage_service.replica import hosts, snapshots
from shared_models.protocol import keys
from tests.manage.keepers import tick_until
from tests.manage.test_judging import findings, status_of
from tests.manage.world import World
from tests.servers import FAST, free_port, replay_paused, servers_folder, sql, wait_for, wait_until_replayed


@pytest.fixture(scope="module")
def second(primary) -> Iterator[Replica]:
    server = Replica(servers_folder() / "second", free_port(), primary, settings=FAST, dies_with_parent=True)
    server.start()
    yield server
    server.stop()
    sql(
        primary,
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
        server.slot,
    )


@pytest.fixture
def both(world: World, second: Replica, monkeypatch) -> Iterator[World]:
    """The second replica comes first in the URL, and the one of all tests second."""
    monkeypatch.setattr(hosts, "BEHIND", timedelta(seconds=0.5))
    monkeypatch.setattr(snapshots, "COMPARE_SECONDS", 0.2)
    if not second.running():
        second.start()
    wait_until_replayed(world.primary, second)
    place = f"127.0.0.1:{second.port},127.0.0.1:{world.replica_server.port}"
    url = world.replica_server.url.replace(f"127.0.0.1:{world.replica_server.port}", place)
    world.replica.close()
    world.replica = stores.connect_replica(url)
    yield world


@pytest.fixture
def keeper_of_both(both: World, keeper: Keeper) -> Keeper:
    keeper.replica.close()
    keeper.replica = stores.connect_replica(both.replica.dsn)
    both.store("ann")
    both.replay()
    tick_until(
        keeper, lambda: all(both.state(name).verified_at for name in ("users", "cities")), "the counters to be verified"
    )
    return keeper


def host(server: Replica) -> str:
    return f"127.0.0.1:{server.port}"


def test_one_that_stands_still_is_passed_over_and_read_again_later(both, second, keeper_of_both, caplog):
    keeper = keeper_of_both
    assert keeper.replica.host == host(second) and keeper.replica.passed_over == {}
    with replay_paused(second):

        def is_counted() -> bool:
            both.store("bob")  # so that the other one shows newer commits
            return both.exact(["users"]) and b"bob" in both.set()

        tick_until(
            keeper,
            lambda: is_counted() and keeper.replica.host == host(both.replica_server),
            "the other one to be read",
        )
        assert "it shows commits up to" in keeper.replica.passed_over[host(second)]
        tick_until(keeper, lambda: both.redis.hget(keys.KEEPER, "passed_over") == b"1", "the keeper to say so")
        wait_for(lambda: ("replica", "passed-over") in findings(both), "the status to say so")
        assert status_of(both)["replica"]["host"] == host(both.replica_server)
    tick_until(keeper, lambda: keeper.replica.host == host(second), "the first one to be read again")
    assert keeper.replica.passed_over == {} and both.exact(["users"])
    tick_until(keeper, lambda: both.redis.hget(keys.KEEPER, "passed_over") == b"0", "the keeper to say so")


def test_one_that_ends_is_passed_over(both, second, keeper_of_both):
    keeper = keeper_of_both
    assert keeper.replica.host == host(second)
    second.stop()
    both.store("bob")
    both.replay()
    tick_until(keeper, lambda: both.exact(["users"]) and b"bob" in both.set(), "the row")
    assert keeper.replica.host == host(both.replica_server)
    assert "refused" in keeper.replica.passed_over[host(second)]


def test_each_host_has_its_port():
    assert list(hosts.split("postgres://u:p@a:5433,b,c:5435/name")) == ["a:5433", "b:5432", "c:5435"]
    assert "host=b" in hosts.split("host=a,b port=6000 dbname=x")["b:6000"]
    assert hosts.split("postgres://u@a/name") == {"": "postgres://u@a/name"}
    with pytest.raises(psycopg2.ProgrammingError, match="3 hosts and 2 ports"):
        hosts.split("host=a,b,c port=1,2 dbname=x")
