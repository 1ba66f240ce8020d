"""Set algebra: how many members do several sets have in common, or together, or has the first one alone?

Redis counts intersections (SINTERCARD). A union and a difference follow from intersections, by inclusion and exclusion.
Redis serves nobody else meanwhile. So there is a limit on the members that one question looks at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations, islice
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from redis.asyncio.client import Pipeline

from query_service import problems
from query_service.directories import (
    CHANGING,
    ROUNDS,
    Document,
    Generations,
    judge,
    live,
    plain,
    queue_groups,
    states_of,
    utc_now,
)
from query_service.questions import Group, declared_by, names_of, read_by, read_group
from query_service.trips import Trips
from shared_models.declarations import Counter, Storage
from shared_models.protocol import keys, members, states
from shared_models.protocol.states import State

ALGEBRA = "/v1/algebra"
FEWEST_SETS, MOST_SETS = 2, 4

Operation: TypeAlias = Literal["intersection", "union", "difference"]
# The places, in the question, of the sets of one intersection.
Places: TypeAlias = tuple[int, ...]
REPLIES_OF_A_GROUP = 3  # of `queue_groups`


class SetAsked(msgspec.Struct, forbid_unknown_fields=True):
    """A set: a group of a counter (`by` and `group`), or, without these, all members of the counter."""

    counter: str
    by: str | None = None
    group: list[str] | None = None


class AlgebraAsked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a question about sets."""

    operation: Annotated[
        Operation, msgspec.Meta(description="difference: the members of the first set that are in none of the others")
    ]
    sets: Annotated[
        list[SetAsked],
        msgspec.Meta(
            min_length=FEWEST_SETS,
            max_length=MOST_SETS,
            description="sets of counters with the same member fields, and the same number of shards",
        ),
    ]


@dataclass(frozen=True, slots=True)
class SetOf:
    """A set of members: all of a total, or a group."""

    counter: Counter = field(hash=False)
    group: Group | None


@dataclass(frozen=True, slots=True)
class Algebra:
    """How many members?"""

    operation: Operation
    sets: tuple[SetOf, ...]
    kind = "algebra"
    route = ALGEBRA


_body = msgspec.json.Decoder(AlgebraAsked)


def read_body(body: bytes | bytearray) -> Algebra:
    """What the body asks. Raises Problem."""
    try:
        asked = _body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise problems.unreadable_body(
            f'send {{"operation": "intersection", "sets": [{{"counter": "…", "by": "…", "group": ["…"]}}, …]}} as JSON: {error}'
        ) from None
    sets = tuple(read_set(each) for each in asked.sets)
    first = sets[0].counter
    for number, each in enumerate(sets):
        if (each.counter.fields, each.counter.types) != (first.fields, first.types):
            raise problems.wrong_question(
                "sets",
                f"sets[{number}] has members of {described(each.counter)}, and sets[0] of {described(first)}: sets can be "
                "compared if their members are the same",
            )
        if each.counter.shards != first.shards:
            raise problems.wrong_question(
                "sets",
                f"sets[{number}] is of a counter with shards = {each.counter.shards}, and sets[0] of one with shards = "
                f"{first.shards}: sets can be compared if their counters are declared with the same number",
            )
    return Algebra(asked.operation, sets)


def read_set(asked: SetAsked) -> SetOf:
    """One of the sets. Raises Problem."""
    total = problems.known_counter(asked.counter)
    if asked.by is not None:
        counter = read_by(total, asked.by)
        return SetOf(counter, read_group(counter, asked.group or ()))
    if asked.group is not None:
        raise problems.wrong_question("by", f"group needs by, too; {declared_by(total)}", declared=names_of(total))
    if total.storage is not Storage.SET:
        raise problems.wrong_question(
            "sets",
            f"counter {total.name!r} keeps with each member when it was last seen (last_seen), and so has no set that could be "
            f"compared as a whole; ask for groups of it: {declared_by(total)}",
            declared=names_of(total),
        )
    return SetOf(total, None)


def described(counter: Counter) -> str:
    """What its members are made of."""
    return ", ".join(f"{name} ({type_})" for name, type_ in zip(counter.fields, counter.types, strict=True))


def terms_of(operation: Operation, many: int) -> Iterator[tuple[int, Places]]:
    """The terms of the sum: each has a sign, and the places of the sets of one intersection."""
    if operation == "intersection":
        yield 1, tuple(range(many))
    elif operation == "union":
        for size in range(1, many + 1):
            yield from ((-1 if size % 2 == 0 else 1, places) for places in combinations(range(many), size))
    else:
        for size in range(many):
            yield from ((-1 if size % 2 else 1, (0, *places)) for places in combinations(range(1, many), size))


class AlgebraReader:
    """Reads for the questions of one worker. `limit`: how many members one question may look at in one trip.

    A member is in parts of the same number in all sets. So what the parts of each number have in common adds up."""

    def __init__(self, trips: Trips, generations: Generations, limit: int) -> None:
        self._trips, self._generations, self.limit = trips, generations, limit

    async def read(self, asked: Algebra) -> Document:
        """The answer. Raises Problem."""
        self.check_slots(asked)
        terms = list(terms_of(asked.operation, len(asked.sets)))
        parts = asked.sets[0].counter.parts
        # The intersections that are counted in the parts of each number; and the sizes that these depend on.
        needed: list[list[Places]] = [[] for _ in parts]
        was: list[list[int]] | None = None

        def queue(pipe: Pipeline, part: Counter) -> None:
            of_sets = [generations[part.shard] for generations in guesses]
            for each, generation in zip(asked.sets, of_sets, strict=True):
                queue_set(pipe, each, part.shard, generation)
            for places in needed[part.shard]:
                found = [key_of(asked.sets[place], part.shard, of_sets[place]) for place in places]
                pipe.sintercard(len(found), found)  # type: ignore[arg-type]

        for _ in range(ROUNDS):
            as_of, guesses = utc_now(), [self._generations.guess(each.counter) for each in asked.sets]
            replies = [iter(each) for each in await self._trips.ask(parts, queue)]
            found = [[parse_set(each, some) for each in asked.sets] for some in replies]
            now = [[of_part[place][1] for of_part in found] for place in range(len(asked.sets))]
            for each, generations in zip(asked.sets, now, strict=True):
                if each.group is not None:
                    self._generations.learn(each.counter, generations)
            if any(
                each.group is not None and generations != guess
                for each, generations, guess in zip(asked.sets, now, guesses, strict=True)
            ):
                was, needed = None, [[] for _ in parts]
                continue
            sizes = [
                [judge_set(each, count) for each, (_, _, count) in zip(asked.sets, of_part, strict=True)]
                for of_part in found
            ]
            # A set that the directory does not name may exist, but is of no group: the question does not read it.
            if was is not None and signs(sizes) == signs(was):
                count = 0
                for places, some, of_part in zip(needed, replies, sizes, strict=True):
                    counts = dict(zip(places, plain(asked.sets[0].counter, list(some)), strict=True))
                    counts |= {(place,): size for place, size in enumerate(of_part)}
                    count += sum(sign * counts.get(places, 0) for sign, places in terms)
                summed = [sum(of_set) for of_set in zip(*sizes, strict=True)]
                return answer_of(asked, count, summed, [state for of_part in found for state, _, _ in of_part], as_of)
            was, needed = (
                sizes,
                [
                    [each for _, each in terms if len(each) > 1 and all(of_part[place] for place in each)]
                    for of_part in sizes
                ],
            )
            for places, of_part in zip(needed, sizes, strict=True):
                self.check(asked.operation, places, of_part)
        raise problems.cold(f"the {asked.operation}", CHANGING)

    def check_slots(self, asked: Algebra) -> None:
        """Raises Problem if the sets are in different slots of a cluster, which does not intersect those."""
        first = asked.sets[0].counter
        for number, each in enumerate(asked.sets):
            if self._trips.nodes.is_cluster and keys.tag_of(each.counter.parts[0]) != keys.tag_of(first.parts[0]):
                raise problems.wrong_question(
                    "sets",
                    f"sets[{number}] is of counter {total_of(each.counter)!r}, and sets[0] of {total_of(first)!r}: they are in "
                    "different slots of the Redis Cluster, which intersects sets of one slot only; declare both with the same tag",
                )

    def check(self, operation: Operation, needed: list[Places], sizes: list[int]) -> None:
        """Raises Problem if the intersections are too much work: each goes through its smallest set."""
        smallest = [min(places, key=lambda place: sizes[place]) for places in needed]
        work = sum(sizes[place] for place in smallest)
        if work > self.limit:
            place = max(smallest, key=lambda place: sizes[place])
            raise problems.sets_too_large(operation, place, sizes[place], work, self.limit)


def signs(sizes: list[list[int]]) -> list[list[bool]]:
    """Which sets have members."""
    return [[size > 0 for size in of_part] for of_part in sizes]


def queue_set(pipe: Pipeline, each: SetOf, number: int, generation: object) -> None:
    """Queue the state of its counter's part with this number; for a group also its generation and size."""
    part = each.counter.parts[number]
    states.queue_state(pipe, part.name)
    if each.group is not None:
        pipe.hget(keys.of_counter(part.name).intake, "generation")
        queue_groups(pipe, part, generation, [members.encode(each.group)])


def parse_set(each: SetOf, replies: Iterator[Any]) -> tuple[State, object, int | str]:
    """The state, the generation, and the count, or why it is cold. Raises Problem if the counter is cold."""
    state = live(each.counter, states_of([list(islice(replies, states.REPLIES))]))
    if each.group is None:
        return state, None, state.count
    (generation,) = plain(each.counter, [next(replies)])
    (count,) = judge(1, list(islice(replies, REPLIES_OF_A_GROUP)))
    return state, generation, count


def judge_set(each: SetOf, count: int | str) -> int:
    """How many members it has. Raises Problem if it is cold."""
    if isinstance(count, str):
        raise problems.group_is_cold(each.counter, each.group or (), count)
    return count


def key_of(each: SetOf, number: int, generation: object) -> str | bytes:
    """The key in Redis of the part of the set with this number."""
    at = keys.of_counter(each.counter.parts[number].name)
    return at.members if each.group is None else at.group(generation, members.encode(each.group))


def total_of(counter: Counter) -> str:
    """The name of the declared counter."""
    return counter.of or counter.name


def answer_of(asked: Algebra, count: int, sizes: list[int], found: list[State], as_of: datetime) -> Document:
    """The document. Its complete_through is the earliest one of the sets."""
    return {
        "operation": asked.operation,
        "count": count,
        "sets": [
            {"counter": total_of(each.counter)}
            | ({"by": each.counter.by_names, "group": each.group} if each.group is not None else {})
            | {"count": size}
            for each, size in zip(asked.sets, sizes, strict=True)
        ],
        "state": "live",
        "complete_through": min(state.complete_through for state in found if state.complete_through is not None),
        "as_of": as_of,
    }
