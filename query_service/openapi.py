"""The description of query's API: what each operation takes, answers and refuses. It makes /openapi.json."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec
from django.conf import settings

from query_service import streams
from query_service.algebra import ALGEBRA, AlgebraAsked
from query_service.answers import COUNTER, COUNTS, STATS, Condition
from query_service.badges import BADGE, EMBED, HTML, SVG
from query_service.memberships import MembersAsked
from query_service.problems import (
    COUNTER_COLD,
    REDIS_UNAVAILABLE,
    SETS_TOO_LARGE,
    TOO_MANY_MEMBERS,
    TOO_MANY_STREAMS,
    TOP_TOO_EVEN,
    UNKNOWN_COUNTER,
    UNREADABLE_BODY,
    WRONG_MEMBER,
    WRONG_QUESTION,
)
from query_service.questions import GROUPS, MOST_DAYS, MOST_LISTED, MOST_PERIODS, MOST_TOP
from query_service.schemas import (
    Counts,
    Groups,
    History,
    Membership,
    Memberships,
    NamedCount,
    OfAGroup,
    OfAWindow,
    OfDays,
    OfSets,
    StatsError,
    Ticket,
    TopGroups,
)
from shared_models import declarations
from shared_models.declarations import NUMBERS, Counter, Storage
from shared_models.web.asgi import JSON
from shared_models.web.openapi import Access, Answer, Json, Operation, describe, header, parameter, reference
from shared_models.web.problems import INVALID_QUERY, NO_ROOM

HISTORY, MEMBER, MEMBERS = f"{COUNTER}/history", f"{COUNTER}/member", f"{COUNTER}/members"
TICKETS = f"{streams.PATH}/tickets"

# The headers of a count, so that an unchanged one costs a few bytes.
ETAG = {"ETag": header("It changes when a count, a state, a verification or a drift changes.")}
COUNT_HEADERS = ETAG | {
    "Rollcall-State": header(
        "How current the answer is; stale: Redis could not be read since `as_of`.",
        {"type": "string", "enum": [Condition.FRESH.value, Condition.STALE.value]},
    ),
}
UNCHANGED = Answer(None, "The client has these counts already.", headers=COUNT_HEADERS)
CACHING = (
    parameter(
        "If-None-Match", "header", {"type": "string"}, "The ETag of the last answer: 304 if nothing has changed."
    ),
    parameter("Cache-Control", "header", {"type": "string"}, "`no-cache`: query reads Redis before it answers."),
)


def describe_api() -> bytes:
    """The OpenAPI document, for the counters that are declared now."""
    access = Access(tokens=settings.TOKENS is not None, metrics_public=settings.METRICS_PUBLIC)
    return _describe(declarations.COUNTERS, access, settings.BADGES)


@lru_cache(maxsize=4)
def _describe(counters: tuple[Counter, ...], access: Access, badges: bool) -> bytes:
    return describe(
        "Rollcall query",
        "How many distinct members there are, and whether a value is one of them. Every count says how good it is.",
        [*describe_operations(counters), *(describe_badges(counters) if badges else ())],
        MembersAsked,
        AlgebraAsked,
        *shapes_of_a_count(counters),
        access=access,
    )


def named(counters: tuple[Counter, ...]) -> Json:
    """The parameter that names a counter."""
    names = [counter.name for counter in counters]
    return parameter("counter", "path", {"type": "string", "enum": names}, "The name of a counter.", example=names[0])


def grouped(counters: tuple[Counter, ...]) -> tuple[Counter, ...]:
    """The counters that have groups."""
    return tuple(counter for counter in counters if counter.groupings)


def shapes_of_a_count(counters: tuple[Counter, ...]) -> tuple[type[msgspec.Struct], ...]:
    """What the answer may be at the address of a counter, as far as these counters can be asked."""
    of_groups = (OfAGroup, TopGroups, OfDays) if grouped(counters) else ()
    return (NamedCount, *of_groups, *([OfAWindow] if any(each.last_seen for each in counters) else ()))


def describe_by(counters: tuple[Counter, ...], **more: object) -> Json:
    """By what a counter is asked. Which there are depends on the counter."""
    declared = {each.name: [f"`{','.join(by.by_names)}`" for by in each.groupings] for each in counters}
    said = "; ".join(f"`{name}`: {' or '.join(all_by)}" for name, all_by in declared.items())
    text = f"By what, as it is declared: {said}. `day` is enough if there is only one."
    return parameter("by", "query", {"type": "string"}, text, **more)


def day(name: str, description: str) -> Json:
    """A parameter that is a day."""
    return parameter(name, "query", {"type": "string", "format": "date"}, description)


def group_of(description: str) -> Json:
    """The parameter that names a group, a value for each term."""
    return parameter("group", "query", {"type": "array", "items": {"type": "string"}}, description, explode=True)


def parameters_of_one(counters: tuple[Counter, ...]) -> list[Json]:
    """The parameters that lead to one number, as far as these counters can be asked."""
    has_groups = grouped(counters)
    of_groups = [describe_by(has_groups), group_of(GROUP)] if has_groups else []
    return [*of_groups, *([WINDOW] if any(each.last_seen for each in counters) else ())]


GROUP = "The group: once for each term of `by`, in its order. With `from` and `to` without the day."
WINDOW = parameter(
    "window",
    "query",
    {"type": "string", "pattern": r"^(today|[1-9]\d{0,3}d)$"},
    f"Members that have a row of the last days: `today`, or `1d` to `{MOST_DAYS}d`. For counters with `last_seen`.",
)


def number(name: str, most: int, description: str) -> Json:
    """A parameter that is a number."""
    return parameter(name, "query", {"type": "integer", "minimum": 1, "maximum": most}, description)


def describe_badges(counters: tuple[Counter, ...]) -> list[Operation]:
    """The pictures and frames of BADGES=on."""
    return [
        Operation(
            method="GET",
            path=path,
            id=name,
            tag="badges",
            summary=f"A count as a {what}",
            description="For everybody, also if all else needs a token. 503, in the same form, while the count is not known.",
            parameters=(named(counters), *parameters_of_one(counters)),
            answers={200: Answer({"type": "string"}, f"A {what}.", media_type.partition(";")[0], ETAG)},
            refusals=(INVALID_QUERY, WRONG_QUESTION, UNKNOWN_COUNTER),
        )
        for path, name, what, media_type in (
            (BADGE, "getBadge", "picture", SVG),
            (EMBED, "getFrame", "page for a frame", HTML),
        )
    ]


def describe_count(counters: tuple[Counter, ...]) -> Operation:
    """What can be asked at the address of a counter."""
    shapes = shapes_of_a_count(counters)
    lists = (
        number("top", MOST_TOP, "How many of the largest groups."),
        day("from", f"The first day; the week or month that it lies in. At most {MOST_PERIODS} periods."),
        day("to", "The last day; the week or month that it lies in."),
    )
    said = {
        OfAGroup: " `by` and `group`: one group.",
        TopGroups: " `by` and `top`: the largest groups.",
        OfDays: " `by`, `from` and `to`: days, weeks or months.",
        OfAWindow: " `window`: the last days.",
    }
    one_of = {"oneOf": [reference(each) for each in shapes]}
    return Operation(
        method="GET",
        path=COUNTER,
        id="getCount",
        tag="counts",
        summary="Count one counter",
        description="While it is not complete: 503." + "".join(said.get(each, "") for each in shapes),
        parameters=(named(counters), *parameters_of_one(counters), *(lists if OfAGroup in shapes else ()), *CACHING),
        answers={
            200: Answer(NamedCount, headers=COUNT_HEADERS)
            if len(shapes) == 1
            else Answer(one_of, "What was asked for.", headers=COUNT_HEADERS),
            304: UNCHANGED,
        },
        refusals=(
            *(INVALID_QUERY, WRONG_QUESTION, UNKNOWN_COUNTER, COUNTER_COLD, REDIS_UNAVAILABLE),
            *([TOP_TOO_EVEN] if any(each.shards > 1 for each in grouped(counters)) else ()),
        ),
    )


def describe_listing(counters: tuple[Counter, ...]) -> Operation:
    """The list of groups; all of these counters have some."""
    return Operation(
        method="GET",
        path=GROUPS,
        id="listGroups",
        tag="counts",
        summary="List the groups of a counter, page by page",
        description="In the order of the bytes of their names. A group may come or go between two pages.",
        parameters=(
            named(counters),
            describe_by(counters, required=True, example=",".join(counters[0].groupings[0].by_names)),
            parameter("prefix", "query", {"type": "string"}, "What the groups' (first) value begins with."),
            number("limit", MOST_LISTED, "Groups of a page, 100 by default."),
            parameter("cursor", "query", {"type": "string"}, "`next_cursor` of the page before."),
            *CACHING,
        ),
        answers={200: Answer(Groups, headers=COUNT_HEADERS), 304: UNCHANGED},
        refusals=(INVALID_QUERY, WRONG_QUESTION, UNKNOWN_COUNTER, COUNTER_COLD, REDIS_UNAVAILABLE),
    )


def describe_algebra(example: Json) -> Operation:
    """The question about sets; `example` is one that there is."""
    return Operation(
        method="POST",
        path=ALGEBRA,
        id="countSets",
        tag="counts",
        summary="Count what several sets have in common, or together, or the first one alone",
        description="Sets are groups, and totals without `last_seen`, of counters with the same member fields. The members of "
        'two groups need not share a row: "NY" and "last week" is not "in NY last week". '
        f"The intersections may look at {settings.ALGEBRA_MEMBERS} members.",
        parameters=CACHING[1:],
        body={
            JSON: {
                "schema": reference(AlgebraAsked),
                "example": {"operation": "intersection", "sets": [example, example]},
            }
        },
        answers={200: Answer(OfSets)},
        refusals=(
            *(INVALID_QUERY, UNREADABLE_BODY, WRONG_QUESTION, UNKNOWN_COUNTER),
            *(SETS_TOO_LARGE, COUNTER_COLD, REDIS_UNAVAILABLE),
        ),
    )


# A value that each type can have; the day begins a week and a month.
VALUES = {
    **dict.fromkeys(NUMBERS, "1"),
    "date": "2026-06-01",
    "boolean": "true",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example_set(counters: tuple[Counter, ...]) -> Json | None:
    """A set that can be compared: a total, or a group that may be empty; None if there is neither."""
    for counter in counters:
        if counter.storage is Storage.SET:
            return {"counter": counter.name}
    for grouping in (each for counter in counters for each in counter.groupings):
        group = [VALUES.get(term.type, "x") for term in grouping.by]
        return {"counter": grouping.of, "by": ",".join(grouping.by_names), "group": group}
    return None


def describe_operations(counters: tuple[Counter, ...]) -> list[Operation]:
    """The operations, with the counters' names, and the first one as an example."""
    first, names = counters[0], [counter.name for counter in counters]
    counter = named(counters)
    chosen = parameter(
        "counters",
        "query",
        {"type": "string", "pattern": "^({0})(,({0}))*$".format("|".join(names))},
        "Names of counters, separated by commas; all of them by default.",
        example=",".join(names),
    )
    return [
        Operation(
            method="GET",
            path=COUNTS,
            id="listCounts",
            tag="counts",
            summary="Count every counter",
            description="A counter that is not complete is `cold` and has no count. If none is complete: 503.",
            parameters=(chosen, *CACHING),
            answers={200: Answer(Counts, headers=COUNT_HEADERS), 304: UNCHANGED},
            refusals=(INVALID_QUERY, UNKNOWN_COUNTER, COUNTER_COLD, REDIS_UNAVAILABLE),
        ),
        describe_count(counters),
        *(describe_listing(has_groups) for has_groups in [grouped(counters)] if has_groups),
        *(describe_algebra(example) for example in [example_set(counters)] if example),
        Operation(
            method="GET",
            path=HISTORY,
            id="getHistory",
            tag="counts",
            summary="List the counts of the last hour, one every ten seconds",
            description="There is a gap while the counter was not complete.",
            parameters=(counter,),
            answers={200: Answer(History)},
            refusals=(INVALID_QUERY, UNKNOWN_COUNTER, REDIS_UNAVAILABLE),
        ),
        Operation(
            method="GET",
            path=STATS,
            id="getStats",
            tag="counts",
            summary="Count every counter, in one flat object",
            description="For the frontends of the first demo. An error has a shape of its own here.",
            parameters=CACHING,
            answers={200: Answer(stats_of(names), headers=COUNT_HEADERS), 304: UNCHANGED, 503: Answer(StatsError)},
            refusals=(INVALID_QUERY,),
        ),
        Operation(
            method="GET",
            path=streams.PATH,
            id="streamCounts",
            tag="counts",
            summary="Follow the counts, as server-sent events",
            description="The data of each event is the answer of `listCounts`: at once, and whenever it changes. While Redis "
            "cannot be read, the state of each counter is `stale`.",
            parameters=(
                chosen,
                parameter("ticket", "query", {"type": "string"}, "A ticket from `createTicket`, instead of a token."),
            ),
            answers={200: Answer({"type": "string"}, "Endless events of the type `message`.", "text/event-stream")},
            refusals=(INVALID_QUERY, UNKNOWN_COUNTER, TOO_MANY_STREAMS, NO_ROOM),
        ),
        Operation(
            method="POST",
            path=TICKETS,
            id="createTicket",
            tag="counts",
            summary="Get a ticket for a stream",
            description="For clients that cannot send headers, such as a browser's EventSource.",
            answers={201: Answer(Ticket)},
            refusals=(INVALID_QUERY,),
        ),
        Operation(
            method="GET",
            path=MEMBER,
            id="isMember",
            tag="members",
            summary="Ask whether one member is counted",
            description="Give each field of the counter once: "
            + "; ".join(f"for `{each.name}` {', '.join(f'`{name}`' for name in each.fields)}" for each in counters)
            + ".",
            parameters=(counter, *describe_fields(counters)),
            answers={200: Answer(Membership)},
            refusals=(WRONG_MEMBER, UNKNOWN_COUNTER, COUNTER_COLD, REDIS_UNAVAILABLE),
        ),
        Operation(
            method="POST",
            path=MEMBERS,
            id="areMembers",
            tag="members",
            summary="Ask whether each of many members is counted",
            description=f"All are looked up at one moment. At most {settings.MAX_MEMBERS} members.",
            parameters=(counter,),
            body={JSON: {"schema": reference(MembersAsked), "example": {"members": [first.example_member()]}}},
            answers={200: Answer(Memberships)},
            refusals=(
                *(INVALID_QUERY, WRONG_MEMBER, UNREADABLE_BODY, UNKNOWN_COUNTER),
                *(TOO_MANY_MEMBERS, COUNTER_COLD, REDIS_UNAVAILABLE),
            ),
        ),
    ]


def describe_fields(counters: tuple[Counter, ...]) -> list[Json]:
    """A query parameter for each field of any counter. The counter decides which ones are required."""
    names = dict.fromkeys(name for counter in counters for name in counter.fields)
    example = counters[0].example_member()
    return [
        parameter(
            name,
            "query",
            {"type": "string"},
            f"Of {' and '.join(f'`{counter.name}`' for counter in counters if name in counter.fields)}.",
            **({"example": str(example[name])} if name in example else {}),
        )
        for name in names
    ]


def stats_of(names: list[str]) -> type[msgspec.Struct]:
    """The flat object: a number for each counter."""
    fields = [("result", Literal["success"]), *((name, int) for name in names if name != "result")]
    return msgspec.defstruct("Stats", fields, namespace={"__doc__": "The counts by name, all of them known."})
