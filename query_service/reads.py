"""Query's reads from Redis: the state of the counters, whether members are counted, and the counts of the last hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from query_service.trips import Replies, Trip, Trips, Unreadable
from shared_models.declarations import Counter, Storage
from shared_models.protocol import keys, samples, states, steps
from shared_models.protocol.samples import Sample
from shared_models.protocol.states import State


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of one read of Redis. `as_of` is the moment just before the read was sent, so that no count claims to be
    fresher than it is. `failure`: why some parts could not be read; their counters are away."""

    as_of: datetime
    states: dict[str, State]
    failure: Exception | None = None


async def read_counters(trips: Trips, counters: Sequence[Counter]) -> Reading:
    """The state of each counter, in one round trip to each server. Raises one of Unreadable if no server answers."""
    as_of = datetime.now(UTC)
    parts = [part for counter in counters for part in counter.parts]
    replies = await trips.ask_each(parts, lambda pipe, part: states.queue_state(pipe, part.name))
    failures = [each for each in replies if isinstance(each, Exception)]
    for failure in failures:
        if len(failures) == len(replies) or not isinstance(failure, Unreadable):
            raise failure
    found = iter(replies)
    return Reading(
        as_of,
        {each.name: states.combine([state_of(next(found)) for _ in each.parts]) for each in counters},
        next(iter(failures), None),
    )


def state_of(replies: Replies) -> State:
    """The state of a part; it is away if its server has not answered. Raises redis.RedisError."""
    if isinstance(replies, Exception):
        # Clients get this text, and the error has the address of a server. The log has the error.
        return State(count=0, away=type(replies).__name__)
    return states.parse_state(replies)


async def read_memberships(
    trip: Trip, asked: Sequence[tuple[Counter, Sequence[bytes]]]
) -> list[list[bool] | State | Exception]:
    """For each part, whether each member is counted; the state if it is cold; or one of Unreadable: why its server gives no answer.

    The states are read in the same MULTI: the set of a cold counter holds only a part of its members,
    and "no" would be a guess.
    """
    for part, members in asked:
        trip.add(partial(queue_memberships, members), part)
    return [parse_memberships(replies) for replies in await trip.go()]


def queue_memberships(members: Sequence[bytes], pipe: Pipeline, part: Counter) -> None:
    """Queue what `parse_memberships` reads."""
    states.queue_state(pipe, part.name)
    at = keys.of_counter(part.name)
    for chunk in steps.chunks(members):
        if at.storage is Storage.LAST_SEEN:
            pipe.hmget(at.members, list(chunk))
        else:
            pipe.smismember(at.members, list(chunk))


def parse_memberships(replies: Replies) -> list[bool] | State | Exception:
    """Whether each member is counted, or the state of a cold part, or one of Unreadable."""
    if isinstance(replies, Exception):
        return replies
    try:
        state, chunks = states.parse_state(replies[: states.REPLIES]), replies[states.REPLIES :]
    except RedisError as error:
        return error
    # A day for each that was seen, or 1; None or 0 for the others.
    return state if state.cold else [bool(each) for chunk in chunks for each in chunk]


async def read_samples(trips: Trips, counters: Sequence[Counter], until: datetime) -> dict[str, list[Sample]]:
    """The samples of each counter in the hour that ends at `until`; without the counters whose server does not answer.

    Raises one of Unreadable if no server answers.
    """
    # They are where the first part is.
    firsts = [counter.parts[0] for counter in counters]
    found = await trips.ask_each(firsts, lambda pipe, part: samples.queue_samples(pipe, part.whole))
    failures = [each for each in found if isinstance(each, Exception)]
    if failures and len(failures) == len(found):
        raise failures[0]
    return {
        each.name: samples.parse_samples(replies[0], until)
        for each, replies in zip(counters, found, strict=True)
        if not isinstance(replies, Exception)
    }
