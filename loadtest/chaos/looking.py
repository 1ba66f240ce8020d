"""Looking into Redis itself, past query: which members a group has, and how late they were seen.

Query has no address for these. So this asks as query would: in one MULTI, and only what is live has an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from redis import Redis
from redis.exceptions import ResponseError

from loadtest.chaos.history import Question, question_of
from shared_models.declarations import Counter, Storage, get_counter
from shared_models.nodes import Nodes
from shared_models.protocol import keys, states
from shared_models.protocol.elements import shard_of_member
from shared_models.protocol.members import encode


def find(nodes: Nodes[Redis], text: str, asked: Sequence[Sequence[str]]) -> list[bool] | None:
    """Which of these members are counted there; None if the part of one of them is cold. Raises redis.RedisError."""
    question = question_of(text)
    counter = get_counter(question.derived)
    members = [encode(values) for values in asked]
    found: dict[bytes, bool] = {}
    for part in counter.parts:
        some = [member for member in members if shard_of_member(counter, member) == part.shard]
        if some:
            of_part = find_in_part(nodes.of(keys.home_of(part)), part, question, some)
            if of_part is None:
                return None
            found |= zip(some, of_part, strict=True)
    return [found[member] for member in members]


def find_in_part(client: Redis, part: Counter, question: Question, members: list[bytes]) -> list[bool] | None:
    """The same for members of one part."""
    at = keys.of_counter(part.name)
    generation = cast("bytes | None", client.hget(at.intake, "generation"))
    pipe = client.pipeline(transaction=True)
    states.queue_state(pipe, part.name)
    pipe.hget(at.intake, "generation")
    if question.by:
        group = encode([value or "" for value in question.group])
        pipe.zscore(at.members, group)
        pipe.hexists(at.broken, group)
        pipe.scard(at.group(generation, group))
        pipe.smismember(at.group(generation, group), members)
    else:
        pipe.hmget(at.members, members)
    replies: list[Any] = pipe.execute(raise_on_error=False)
    state = states.parse_state(replies[: states.REPLIES])
    generation_now, *found = replies[states.REPLIES :]
    if state.cold or any(isinstance(each, ResponseError) for each in (generation_now, *found)):
        return None
    if not question.by:
        return [day is not None and day.decode() >= question.since for day in found[0]]
    size, is_broken, count, present = found
    if is_broken or generation_now != generation or (size is not None and size != count):
        return None
    return [size is not None and bool(each) for each in present]


def is_sound(client: Redis, counter: Counter) -> bool:
    """Whether a part of a derived counter is live, and nothing that belongs together is missing. Raises redis.RedisError."""
    at = keys.of_counter(counter.name)
    if states.read_state(client, counter.name).cold:
        return False
    if counter.storage is Storage.GROUPS:
        client.hlen(at.broken)  # refused if it is of another type
        return bool(client.zcard(at.members) == client.zcard(at.names))
    if counter.storage is Storage.LAST_SEEN:
        days = cast("list[bytes]", client.hvals(at.days))
        return all(day.isdigit() for day in days) and sum(map(int, days)) == client.hlen(at.members)
    return True
