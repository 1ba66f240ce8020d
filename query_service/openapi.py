"""The description of query's API: what each operation takes, answers and refuses. It makes /openapi.json."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec
from django.conf import settings

from query_service import streams
from query_service.answers import COUNTER, COUNTS, STATS, Condition
from query_service.memberships import MembersAsked
from query_service.problems import (
    COUNTER_COLD,
    REDIS_UNAVAILABLE,
    TOO_MANY_MEMBERS,
    TOO_MANY_STREAMS,
    UNKNOWN_COUNTER,
    UNREADABLE_BODY,
    WRONG_MEMBER,
)
from query_service.schemas import Counts, History, Membership, Memberships, NamedCount, StatsError, Ticket
from shared_models import declarations
from shared_models.declarations import Counter
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
    return _describe(declarations.COUNTERS, access)


@lru_cache(maxsize=4)
def _describe(counters: tuple[Counter, ...], access: Access) -> bytes:
    return describe(
        "Rollcall query",
        "How many distinct members there are, and whether a value is one of them. Every count says how good it is.",
        describe_operations(counters),
        MembersAsked,
        access=access,
    )


def describe_operations(counters: tuple[Counter, ...]) -> list[Operation]:
    """The operations, with the counters' names, and the first one as an example."""
    first, names = counters[0], [counter.name for counter in counters]
    counter = parameter(
        "counter", "path", {"type": "string", "enum": names}, "The name of a counter.", example=first.name
    )
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
        Operation(
            method="GET",
            path=COUNTER,
            id="getCount",
            tag="counts",
            summary="Count one counter",
            description="While it is not complete: 503.",
            parameters=(counter, *CACHING),
            answers={200: Answer(NamedCount, headers=COUNT_HEADERS), 304: UNCHANGED},
            refusals=(INVALID_QUERY, UNKNOWN_COUNTER, COUNTER_COLD, REDIS_UNAVAILABLE),
        ),
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
