"""Samples of the counts: only of complete counters."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime

from redis import Redis

from manage_service.keeper.sampling import take_samples
from shared_models.nodes import only
from shared_models.protocol import keys, samples
from tests.manage.keepers import keeper_at_work, tick_until


def taken(world, name="users"):
    pipe = world.redis.pipeline()
    samples.queue_samples(pipe, name)
    return [sample.count for sample in samples.parse_samples(pipe.execute()[0], datetime.now(UTC))]


@contextmanager
def without(world, command):
    """A connection of a user who may do everything else."""
    world.redis.acl_setuser("lesser", enabled=True, nopass=True, keys=["*"], commands=["+@all", f"-{command}"])
    client = Redis.from_url(world.valkey.url, username="lesser", password="any")
    try:
        yield client
    finally:
        client.close()
        world.redis.acl_deluser("lesser")


def test_only_a_complete_counter_is_sampled(world):
    world.post("ann", "bob")
    world.replay()
    take_samples(only(world.redis))
    assert taken(world) == []
    world.build()
    take_samples(only(world.redis))
    world.post("cid")
    take_samples(only(world.redis))
    assert taken(world) == [2, 3]
    # Lost, with a set that ingest keeps filling: its size is not a count.
    world.redis.delete(keys.of_counter("users").state)
    take_samples(only(world.redis))
    assert taken(world) == [2, 3]


def test_the_keeper_takes_a_sample_when_one_is_due(world):
    world.post("ann")
    world.replay()
    with keeper_at_work() as keeper:
        tick_until(keeper, lambda: not world.state().cold)
        assert taken(world) == []
        keeper.sample_at = 0.0
        keeper.tick()
        keeper.tick()
        assert taken(world) == [1]


def test_a_redis_that_refuses_samples_costs_the_charts_and_nothing_else(world):
    world.post("ann")
    world.replay()
    with keeper_at_work() as keeper, without(world, "ltrim") as refusing:
        keeper.control = only(refusing)
        tick_until(keeper, lambda: world.state().verified_at)
        keeper.sample_at = 0.0
        world.store("bob")
        world.replay()
        keeper.catch_up_at = 0.0
        keeper.tick()
        assert "ltrim" in keeper.unsampled
        assert keeper.failure == ""
    assert world.set() == {b"ann", b"bob"}
    assert world.redis.exists(keys.of_counter("users").samples) == 0
