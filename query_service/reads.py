"""Query's reads from Redis: the state of the counters, whether members are counted, and the counts of the last hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared_models.declarations import Storage
from shared_models.protocol import keys, samples, states, steps
from shared_models.protocol.samples import Sample
from shared_models.protocol.states import State

# What a read may raise: Redis is down, slow or loading; samples cannot be parsed.
Unreadable = (RedisError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of one read of Redis. `as_of` is the moment just before the read was sent, so that no count claims to be
    fresher than it is."""

    as_of: datetime
    states: dict[str, State]


@dataclass(frozen=True, slots=True)
class CounterIsCold:
    """The counter has never been completed, or was lost: its members are not known."""

    name: str
    state: State


async def read_counters(client: Redis, names: Sequence[str]) -> Reading:
    """The state of each counter, in one round trip and one moment. Raises one of Unreadable."""
    as_of = datetime.now(UTC)
    pipe = client.pipeline(transaction=True)
    for name in names:
        states.queue_state(pipe, name)
    return Reading(as_of, states.parse_states(names, await pipe.execute(raise_on_error=False)))


async def read_memberships(
    client: Redis, asked: Mapping[str, Sequence[bytes]]
) -> dict[str, list[bool] | CounterIsCold]:
    """For each counter, whether each member is counted; in one round trip. Raises one of Unreadable.

    The states are read in the same MULTI: the set of a cold counter holds only a part of its members,
    and "no" would be a guess.
    """
    pipe = client.pipeline(transaction=True)
    for name, members in asked.items():
        states.queue_state(pipe, name)
        at = keys.of_counter(name)
        for chunk in steps.chunks(members):
            if at.storage is Storage.LAST_SEEN:
                pipe.hmget(at.members, list(chunk))
            else:
                pipe.smismember(at.members, list(chunk))
    replies = iter(await pipe.execute(raise_on_error=False))
    found: dict[str, list[bool] | CounterIsCold] = {}
    for name, members in asked.items():
        state = states.parse_state(list(islice(replies, states.REPLIES)))
        chunks = list(islice(replies, sum(1 for _ in steps.chunks(members))))
        found[name] = (
            CounterIsCold(name, state)
            if state.cold
            else [
                # A day for each that was seen, or 1; None or 0 for the others.
                bool(each)
                for chunk in chunks
                for each in chunk
            ]
        )
    return found


async def read_samples(client: Redis, names: Sequence[str], until: datetime) -> dict[str, list[Sample]]:
    """The samples of each counter in the hour that ends at `until`, in one round trip. Raises one of Unreadable."""
    pipe = client.pipeline(transaction=True)
    for name in names:
        samples.queue_samples(pipe, name)
    return {name: samples.parse_samples(reply, until) for name, reply in zip(names, await pipe.execute(), strict=True)}
