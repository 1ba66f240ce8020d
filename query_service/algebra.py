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
from query_service.groups import CHANGING, ROUNDS, Document, GroupReader, judge, live, plain, queue_groups, utc_now
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
            min_length=FEWEST_SETS, max_length=MOST_SETS, description="sets of counters with the same member fields"
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
    """Reads for the questions of one worker. `limit`: how many members one question may look at."""

    def __init__(self, trips: Trips, groups: GroupReader, limit: int) -> None:
        self._trips, self._groups, self.limit = trips, groups, limit

    async def read(self, asked: Algebra) -> Document:
        """The answer. Raises Problem."""
        terms = list(terms_of(asked.operation, len(asked.sets)))
        needed: list[Places] = []
        was: list[int] | None = None

        def queue(pipe: Pipeline) -> None:
            for each, generation in zip(asked.sets, generations, strict=True):
                queue_set(pipe, each, generation)
            for places in needed:
                found = [key_of(asked.sets[place], generations[place]) for place in places]
                pipe.sintercard(len(found), found)  # type: ignore[arg-type]

        for _ in range(ROUNDS):
            as_of, generations = utc_now(), [self._groups.guess(each.counter) for each in asked.sets]
            replies = iter(await self._trips.ask(queue))
            found = [parse_set(each, replies) for each in asked.sets]
            for each, (_, generation, _) in zip(asked.sets, found, strict=True):
                self._groups.learn(each.counter, generation)
            if generations != [generation for _, generation, _ in found]:
                was, needed = None, []
                continue
            sizes = [judge_set(each, count) for each, (_, _, count) in zip(asked.sets, found, strict=True)]
            # A set that the directory does not name may exist, but is of no group: the question does not read it.
            if was is not None and [size > 0 for size in sizes] == [size > 0 for size in was]:
                counts = dict(zip(needed, plain(asked.sets[0].counter, list(replies)), strict=True))
                counts |= {(place,): size for place, size in enumerate(sizes)}
                count = sum(sign * counts.get(places, 0) for sign, places in terms)
                return answer_of(asked, count, sizes, [state for state, _, _ in found], as_of)
            was, needed = sizes, [each for _, each in terms if len(each) > 1 and all(sizes[place] for place in each)]
            self.check(asked.operation, needed, sizes)
        raise problems.cold(f"the {asked.operation}", CHANGING)

    def check(self, operation: Operation, needed: list[Places], sizes: list[int]) -> None:
        """Raises Problem if the intersections are too much work: each goes through its smallest set."""
        smallest = [min(places, key=lambda place: sizes[place]) for places in needed]
        work = sum(sizes[place] for place in smallest)
        if work > self.limit:
            place = max(smallest, key=lambda place: sizes[place])
            raise problems.sets_too_large(operation, place, sizes[place], work, self.limit)


def queue_set(pipe: Pipeline, each: SetOf, generation: object) -> None:
    """Queue the state of its counter; for a group also its generation and size."""
    states.queue_state(pipe, each.counter.name)
    if each.group is not None:
        pipe.hget(keys.of_counter(each.counter.name).intake, "generation")
        queue_groups(pipe, each.counter, generation, [members.encode(each.group)])


def parse_set(each: SetOf, replies: Iterator[Any]) -> tuple[State, object, int | str]:
    """The state, the generation, and the count, or why it is cold. Raises Problem if the counter is cold."""
    state = live(each.counter, list(islice(replies, states.REPLIES)))
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


def key_of(each: SetOf, generation: object) -> str | bytes:
    """The key of the set in Redis."""
    at = keys.of_counter(each.counter.name)
    return at.members if each.group is None else at.group(generation, members.encode(each.group))


def answer_of(asked: Algebra, count: int, sizes: list[int], found: list[State], as_of: datetime) -> Document:
    """The document. Its complete_through is the earliest one of the sets."""
    return {
        "operation": asked.operation,
        "count": count,
        "sets": [
            {"counter": each.counter.of or each.counter.name}
            | ({"by": each.counter.by_names, "group": each.group} if each.group is not None else {})
            | {"count": size}
            for each, size in zip(asked.sets, sizes, strict=True)
        ],
        "state": "live",
        "complete_through": min(state.complete_through for state in found if state.complete_through is not None),
        "as_of": as_of,
    }
