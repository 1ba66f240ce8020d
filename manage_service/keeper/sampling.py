"""Samples of the totals, for the charts of their last hour. Groups have no charts: they would need 10 kB of Redis each."""

from __future__ import annotations

from datetime import UTC, datetime

from redis import Redis

from shared_models import declarations
from shared_models.nodes import Nodes
from shared_models.protocol import keys, samples, states
from shared_models.protocol.samples import Sample


def take_samples(nodes: Nodes[Redis]) -> None:
    """Add a sample of the count of each complete counter. Raises redis.RedisError.

    Only a count that query would show: a cold counter gets no sample. One with the next number of shards has them before query
    reads it. `at` is the moment before the read,
    as in query. It is one transaction for each counter: if the list cannot be trimmed, nothing is added either.
    """
    at = datetime.now(UTC)
    for name, state in states.read_wholes(nodes, declarations.totals()).items():
        if not state.cold:
            pipe = nodes.of(keys.of_samples(name)).pipeline(transaction=True)
            samples.queue_sample(pipe, name, Sample(at, state.count))
            pipe.execute()
