"""Redis fails over twice under a job, and what it wrote in between is lost: with real servers, on one connection that stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from compose.local.servers import Valkey
from manage_service.protocol import catch_up, reconcile
from manage_service.protocol.departures import resolve_departures
from manage_service.protocol.groups import mend
from manage_service.runs.registry import Status
from manage_service.stores import connect_for_passes
from shared_models import declarations
from shared_models.declarations import get_counter
from shared_models.nodes import Nodes, only
from shared_models.protocol import keys, states, steps
from tests.manage.grouped import SMALL, in_redis, in_table, orders
from tests.manage.world import World, pass_over
from tests.servers import wait_for

USERS = get_counter("users")
AT = keys.of_counter("users")


class Failovers:
    """The world's Redis, and another server that is promoted in its place for a while."""

    def __init__(self, world: World, own: Valkey, other: Valkey) -> None:
        self.world, self.own, self.other = world, own, other
        world.valkey, world.redis = own, Redis.from_url(own.url)
        world.nodes = only(world.redis)

    def replace(self) -> None:
        """Another server has what there is now, and is promoted. The world's own does not notice it."""
        self._follow(self.other, self.own)

    def come_back(self) -> None:
        """The world's own follows it, loses what was written since, and is promoted. Its clients stay connected."""
        self._follow(self.own, self.other)

    def _follow(self, server: Valkey, primary: Valkey) -> None:
        with server.client() as client:
            client.replicaof("127.0.0.1", str(primary.port))
            wait_for(lambda: client.info("replication")["master_link_status"] == "up", "the replica")
            client.replicaof("NO", "ONE")

    def during(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        """At the first call of this function: what it writes is lost."""
        self._once(monkeypatch, module, name, before=self.replace, after=self.come_back)

    def before(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        """At the first call of this function: what was written before it, since `replace`, is lost."""
        self._once(monkeypatch, module, name, before=self.come_back, after=lambda: None)

    def _once(
        self,
        monkeypatch: pytest.MonkeyPatch,
        module: Any,
        name: str,
        before: Callable[[], None],
        after: Callable[[], None],
    ) -> None:
        whole = getattr(module, name)

        def first(*args: Any, **options: Any) -> Any:
            monkeypatch.setattr(module, name, whole)
            before()
            done = whole(*args, **options)
            after()
            return done

        monkeypatch.setattr(module, name, first)


@pytest.fixture
def failovers(world: World, second_valkey: Callable[..., Valkey]) -> Iterator[Failovers]:
    quick = {"appendonly": "no", "save": "", "repl-diskless-sync-delay": "0"}
    failovers = Failovers(world, second_valkey(**quick), second_valkey(**quick))
    yield failovers
    world.redis.close()


def test_a_pass_does_not_claim_what_was_lost_on_its_connection(failovers, monkeypatch):
    world = failovers.world
    world.build("users")
    world.store("ann")
    world.replay()
    before, redis = world.state(), world.passes()
    failovers.during(monkeypatch, steps, "record")
    did = pass_over(USERS, world.replica, redis)
    assert (did.added, did.behind) == (1, catch_up.CHANGED)
    assert world.set() == set() and world.state().cursor == before.cursor
    assert world.state().history != before.history
    pass_over(USERS, world.replica, redis)
    assert world.exact(["users"]) and world.state().cursor > before.cursor


def test_a_pass_reads_rows_again_that_an_earlier_one_has_added_if_they_were_lost(failovers):
    world = failovers.world
    world.build("users")
    redis, slow = world.passes(), world.begin().insert("slow")
    world.store("ann")
    world.replay()
    failovers.replace()
    memory = pass_over(USERS, world.replica, redis).memory
    assert memory is not None and world.set() == {b"ann"}
    failovers.come_back()
    behind = pass_over(USERS, world.replica, redis, memory).behind
    slow.commit()
    assert behind == "" and world.set() == {b"ann"}, "complete_through says that her row is counted"


def test_a_pass_stays_with_its_server_if_the_map_then_leads_to_another(failovers, monkeypatch):
    """Somebody who is cut off may still name the primary that was replaced."""
    world = failovers.world
    world.build("users")
    world.store("ann")
    world.replay()
    failovers.replace()
    urls = cycle((failovers.other.url, failovers.own.url))
    monkeypatch.setattr(Nodes, "where", lambda nodes, key: next(urls))
    nodes = Nodes("redis+sentinel://", connect_for_passes)
    assert catch_up.catch_up([USERS], world.replica, nodes)["users"].behind == ""
    with failovers.other.client() as client:
        assert client.smembers(AT.members) == {b"ann"}
    for client in nodes.forget_all():
        client.close()


def test_a_run_verifies_no_set_that_lost_what_the_run_had_added(failovers, monkeypatch):
    world = failovers.world
    world.post("ann", "bob")
    world.replay()
    world.reconcile("users")
    world.redis.srem(AT.members, "ann")
    failovers.during(monkeypatch, reconcile, "compare_chunk")
    run = world.reconcile("users")
    assert run.status is Status.DONE and not world.state().cold
    assert world.exact(["users"])


def test_a_run_that_continues_after_a_failover_looks_again(failovers, monkeypatch):
    """Its record is on another server, where nothing was lost."""
    world = failovers.world
    world.post("ann", "bob")
    world.replay()
    world.reconcile("users")
    world.redis.srem(AT.members, "ann")
    run = world.ask("users")
    failovers.during(monkeypatch, reconcile, "compare_chunk")
    died = world.steps(run)
    next(died)
    died.close()
    assert run.findings["users"].read == 2 and world.set() == {b"bob"}
    list(world.steps(run))
    assert run.status is Status.DONE and not world.state().cold
    assert world.exact(["users"])


def test_departures_are_not_resolved_if_their_members_came_back(failovers, monkeypatch):
    world = failovers.world
    world.post("ann", "bob")
    world.replay()
    world.reconcile("users")
    world.erase("ann")
    world.replay()
    world.catch_up()
    redis, before = world.passes(), world.state().left_through
    batch = resolve_departures(USERS, world.replica, redis)
    assert next(batch).phase == "mark"
    failovers.replace()
    failovers.before(monkeypatch, steps, "resolve")
    list(batch)
    assert world.set() == {b"ann", b"bob"} and world.state().left_through == before
    list(resolve_departures(USERS, world.replica, redis))
    assert world.exact(["users"]) and world.state().left_through > before


def test_a_group_whose_members_were_lost_again_is_not_live(failovers, monkeypatch):
    world = failovers.world
    with orders(world, SMALL):
        world.ask_primary("INSERT INTO shop.orders (email, country) VALUES ('ann', 'DE'), ('bob', 'DE'), ('bob', 'US')")
        world.replay()
        world.build(*(each.name for each in declarations.derived()))
        counter = get_counter("customers:country")
        at, redis = keys.of_counter(counter.name), world.passes()
        world.redis.delete(at.group(world.redis.hget(at.intake, "generation"), b"DE"))
        assert steps.drop_groups(redis, counter.name, [b"DE"], "token")
        failovers.during(monkeypatch, steps, "record")
        list(mend(counter, b"DE", "token", world.replica, redis))
        assert world.redis.hexists(at.broken, "DE")
        list(mend(counter, b"DE", "token", world.replica, redis))
        assert not world.redis.exists(at.broken) and in_redis(world, counter) == in_table(world, counter)


def test_nothing_is_claimed_where_redis_does_not_name_its_history(failovers):
    world = failovers.world
    world.build("users")
    with failovers.own.client() as client:
        client.replicaof("127.0.0.1", str(failovers.other.port))
        assert states.read_state(client, "users").history == "", "what a replica shows may be old"
        client.replicaof("NO", "ONE")
    with pytest.raises(RedisError, match="master_replid"):
        states.history_in({"role": "master"})
    with pytest.raises(RedisError, match="cluster_my_epoch"):
        states.history_in({"role": "master", "master_replid": "17"}, {"cluster_state": "ok"})
