"""The keeper and ingest's records over sentinels: the primary dies, and its replica takes over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import RedisError

from compose.local.sentinels import Watched
from shared_models import declarations
from shared_models.nodes import Nodes, ask_server
from shared_models.protocol import elements, keys, steps
from shared_models.protocol.timeline import SOURCE_SQL
from tests.manage.grouped import SMALL, is_exact, orders
from tests.manage.keepers import keeper_at_work, tick_until
from tests.manage.world import World
from tests.servers import free_port, servers_folder, start, wait_for


@pytest.fixture
def watched() -> Iterator[Watched]:
    servers = Watched(
        servers_folder() / "watched",
        [free_port() for _ in range(5)],
        start,
        dies_with_parent=True,
        appendonly="no",
        save="",
    )
    yield servers
    for each in (*servers.sentinels, servers.replica, servers.primary):
        each.stop()


@pytest.mark.long
def test_a_failover_under_load_gives_no_wrong_number(
    world: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.REDIS_URL", watched.url)
    world.nodes = Nodes(watched.url, ask_server)
    wait_for(watched.know_each_other, "the sentinels")
    with orders(world, SMALL), keeper_at_work() as keeper:
        tick_until(keeper, lambda: is_exact(world), "the builds")
        counted = 0

        def record(email: str) -> None:
            nonlocal counted
            ((xact, source, day),) = world.ask_primary(
                "INSERT INTO shop.orders (email, country, created_at) VALUES (%s, 'DE', '2024-05-05 12:00Z') "
                f"RETURNING xact, ({SOURCE_SQL}), '2024-05-05'",
                email,
            )
            row = {"email": email, "country": "DE", "created_at": day}
            for counter in declarations.derived():
                values = tuple(row[each.column] for each in counter.terms)
                try:
                    found = {counter.name: elements.encode_all(counter, [values])}
                    counted += steps.record(world.nodes.of(keys.home_of(counter)), found, xact, source)
                except RedisError:
                    world.nodes.look_again()

        for number in range(200):
            record(f"before {number}")
        watched.primary.kill()

        def is_promoted() -> bool:
            record("meanwhile")
            keeper.tick()
            try:
                return world.nodes.where("any").endswith(f":{watched.replica.port}/0")
            except RedisError:
                return False

        wait_for(is_promoted, "the replica to be promoted", 40)
        before = counted
        world.ask_primary("DELETE FROM shop.orders WHERE email LIKE 'before 1%%'")
        record("after")
        assert counted > before
        world.replay()

        def is_exact_again() -> bool:
            try:
                return is_exact(world)
            except RedisError:
                world.nodes.look_again()
                return False

        tick_until(keeper, is_exact_again, "all to be exact")
