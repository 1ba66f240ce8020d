"""Samples of the totals, for the charts of their last hour. Groups have no charts: they would need 10 kB of Redis each."""

from __future__ import annotations

from datetime import UTC, datetime

from redis import Redis

from shared_models import declarations
from shared_models.protocol import samples, states
from shared_models.protocol.samples import Sample


def take_samples(redis: Redis) -> None:
    """Add a sample of the count of each complete counter. Raises redis.RedisError.

    Only a count that query would show: a cold counter gets no sample. `at` is the moment before the read,
    as in query. It is one transaction: if the list cannot be trimmed, nothing is added either.
    """
    at = datetime.now(UTC)
    pipe = redis.pipeline(transaction=True)
    for name, state in states.read_states(redis, [counter.name for counter in declarations.COUNTERS]).items():
        if not state.cold:
            samples.queue_sample(pipe, name, Sample(at, state.count))
    pipe.execute()
