"""The API described, for /openapi.json."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from django.conf import settings

from query_service.answers import COUNTER, COUNTS, STATS
from query_service.memberships import MembersAsked
from query_service.streams import PATH
from shared_models import declarations
from shared_models.web.asgi import JSON
from shared_models.web.openapi import HEALTH, Operation, describe, parameter, reference


class Drift(msgspec.Struct):
    """What the last reconcile found: members in the table only, and in the set only."""

    missing: int
    extra: int


class Progress(msgspec.Struct):
    """How far the build of a cold counter has come, in members."""

    read: int
    expected: int


class Count(msgspec.Struct):
    """One counter. `count` is null unless `state` is live or stale."""

    count: int | None
    state: Literal["live", "stale", "cold", "unavailable"]
    complete_through: datetime | None
    verified_at: datetime | None
    drift: Drift | None
    # Whether the reconcile that found the drift has mended it.
    repaired: bool | msgspec.UnsetType = msgspec.UNSET
    # Why it is cold.
    reason: str | msgspec.UnsetType = msgspec.UNSET
    progress: Progress | msgspec.UnsetType | None = msgspec.UNSET


class NamedCount(Count, kw_only=True):
    """One counter, by itself."""

    counter: str
    as_of: datetime


class Counts(msgspec.Struct):
    """Counters by name, and when they were read."""

    counters: dict[str, Count]
    as_of: datetime | None


class Stats(msgspec.Struct):
    """All counts: beside `result`, a number for the name of each counter; or an error and its `detail`."""

    result: Literal["success", "error"]
    detail: str | msgspec.UnsetType = msgspec.UNSET


class History(msgspec.Struct):
    """The last hour of a counter, the oldest sample first: when it was read (seconds since 1970), and the count then."""

    counter: str
    samples: list[tuple[float, int]]


class Membership(msgspec.Struct):
    """Whether the member is counted."""

    member: bool


class Memberships(msgspec.Struct):
    """Of each member asked for, in order, whether it is counted."""

    members: list[bool]


class Ticket(msgspec.Struct):
    """What to put into the address of a stream, as ?ticket=…; it opens one until it expires."""

    ticket: str
    expires_at: datetime | None


def describe_api() -> dict[str, Any]:
    """The OpenAPI document, for the counters that are declared now."""
    first = declarations.COUNTERS[0]
    member = first.example_member()
    fields = "; ".join(f"{counter.name}: {', '.join(counter.fields)}" for counter in declarations.COUNTERS)
    names = [counter.name for counter in declarations.COUNTERS]
    counter = parameter("counter", "path", {"type": "string", "enum": names}, example=first.name)
    counters = parameter(
        "counters", "query", {"type": "string"}, "names of counters, with commas between; all of them by default"
    )
    of_fields = parameter(
        "fields",
        "query",
        {"type": "object", "additionalProperties": {"type": "string"}},
        f"each field of the counter, once ({fields})",
        required=True,
        style="form",
        explode=True,
        example=member,
    )
    asked = {"schema": reference(MembersAsked), "example": {"members": [member]}}
    operations = [
        Operation(
            method="GET",
            path=COUNTS,
            id="listCounts",
            tag="counts",
            summary="Every counter",
            description="One that is not complete has the state `cold` and no count; 503 where none is complete. `ETag` and "
            "`If-None-Match` are understood. `Cache-Control: no-cache` reads Redis before it answers.",
            parameters=[counters],
            answers={200: Counts, 304: "What the client has is still so."},
            refusals=(400, 404, 503),
        ),
        Operation(
            method="GET",
            path=COUNTER,
            id="getCount",
            tag="counts",
            summary="One counter",
            description="503 with `Retry-After` while it is not complete.",
            parameters=[counter],
            answers={200: NamedCount, 304: "What the client has is still so."},
            refusals=(400, 404, 503),
        ),
        Operation(
            method="GET",
            path=f"{COUNTER}/history",
            id="getHistory",
            tag="counts",
            summary="The counts of the last hour, one every ten seconds",
            description="Where the counter was not complete there is a gap.",
            parameters=[counter],
            answers={200: History},
            refusals=(400, 404, 503),
        ),
        Operation(
            method="GET",
            path=STATS,
            id="getStats",
            tag="counts",
            summary="All counts in one flat object, for the frontends of the first demo",
            answers={200: Stats, 503: Stats},
            refusals=(400,),
        ),
        Operation(
            method="GET",
            path=PATH,
            id="streamCounts",
            tag="counts",
            summary="Server-sent events: what /v1/counts says, at once and at every change",
            description="Plain `message` events. While Redis cannot be read the state of each counter is `stale`. Where tokens "
            "are asked for, a browser's EventSource brings a ticket.",
            parameters=[
                counters,
                parameter("ticket", "query", {"type": "string"}, "in place of a token; see createTicket"),
            ],
            answers={200: "text/event-stream"},
            refusals=(400, 404, 429, 503),
        ),
        Operation(
            method="POST",
            path=f"{PATH}/tickets",
            id="createTicket",
            tag="counts",
            summary="A ticket for a stream, for clients that cannot send headers",
            answers={201: Ticket},
            refusals=(400,),
        ),
        Operation(
            method="GET",
            path=f"{COUNTER}/member",
            id="isMember",
            tag="members",
            summary="Whether one member is counted",
            parameters=[counter, of_fields],
            answers={200: Membership},
            refusals=(400, 404, 503),
        ),
        Operation(
            method="POST",
            path=f"{COUNTER}/members",
            id="areMembers",
            tag="members",
            summary="Of many members whether each is counted",
            description=f"All of them at one moment, in the order of the question. {settings.MAX_MEMBERS} at most.",
            parameters=[counter],
            body={JSON: asked},
            answers={200: Memberships},
            refusals=(400, 404, 408, 413, 503),
        ),
        *HEALTH,
    ]
    return describe(
        "Rollcall query",
        "How many distinct members there are, and whether a value is one of them. Every count says how good it is.",
        operations,
        MembersAsked,
        tokens=settings.TOKENS is not None,
    )
