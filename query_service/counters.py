"""What query reads from Redis: the state of the counters, whether members are counted, and the counts of the last hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared_models.protocol import keys, samples, states, steps
from shared_models.protocol.samples import Sample
from shared_models.protocol.states import State

# What a read may raise: Redis gone, slow or loading; samples that are none.
Unreadable = (RedisError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one read of Redis said. `as_of` is the moment just before the read was sent: no count is claimed to be
    fresher than it is."""

    as_of: datetime
    states: dict[str, State]


class CounterIsCold(Exception):
    """The counter has never been completed, or was lost: nothing is known of its members."""

    def __init__(self, name: str, state: State) -> None:
        super().__init__(name)
        self.name, self.state = name, state


async def read_counters(client: Redis, names: Sequence[str]) -> Reading:
    """The state of each counter, in one round trip and one moment. Raises one of Unreadable."""
    as_of = datetime.now(UTC)
    pipe = client.pipeline(transaction=True)
    for name in names:
        states.queue_state(pipe, name)
    return Reading(as_of, states.parse_states(names, await pipe.execute(raise_on_error=False)))


async def read_memberships(client: Redis, name: str, members: Sequence[bytes]) -> list[bool]:
    """Of each member whether it is counted. Raises CounterIsCold, or one of Unreadable.

    The state is read in the same MULTI: the set of a counter that is cold at that moment holds a part of its members,
    and "no" would be a guess.
    """
    pipe = client.pipeline(transaction=True)
    states.queue_state(pipe, name)
    at = keys.of_counter(name).members
    for chunk in steps.chunks(members):
        pipe.smismember(at, list(chunk))
    replies = await pipe.execute(raise_on_error=False)
    counter_state = states.parse_state(replies[: states.REPLIES])
    if counter_state.cold:
        raise CounterIsCold(name, counter_state)
    found = replies[states.REPLIES :]
    return [bool(is_member) for chunk in found for is_member in chunk]


async def read_samples(client: Redis, names: Sequence[str], until: datetime) -> dict[str, list[Sample]]:
    """The samples of each counter in the hour that ends at `until`, in one round trip. Raises one of Unreadable."""
    pipe = client.pipeline(transaction=True)
    for name in names:
        samples.queue_samples(pipe, name)
    return {name: samples.parse_samples(reply, until) for name, reply in zip(names, await pipe.execute(), strict=True)}
