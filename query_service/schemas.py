"""Query's answers as structs. `answers` and `asgi` write them; here is their shape, for the description of the API."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared_models.protocol.moments import Moment


class Drift(msgspec.Struct):
    """By how many members the set and the table differed at the last reconcile."""

    missing: Annotated[int, Meta(description="members of the table that were not in the set")]
    extra: Annotated[int, Meta(description="members of the set that were not in the table")]


class Progress(msgspec.Struct):
    """The progress of a cold counter's build, in members."""

    read: int
    expected: int


class Count(msgspec.Struct):
    """One counter. `count` is a number where `state` is live or stale."""

    count: int | None
    state: Annotated[
        Literal["live", "stale", "cold", "unavailable"],
        Meta(
            description="live: the count is correct. stale: it was correct at `as_of`; Redis could not be read since. "
            "cold: the counter is not complete. unavailable: there is no recent answer"
        ),
    ]
    complete_through: Annotated[
        Moment | None, Meta(description="every row that was committed before this moment is counted")
    ]
    verified_at: Annotated[Moment | None, Meta(description="when the counter was last compared with the table")]
    drift: Drift | None
    repaired: Annotated[
        bool | UnsetType, Meta(description="whether the reconcile that found the drift repaired it")
    ] = UNSET
    reason: Annotated[str | UnsetType, Meta(description="why it is cold")] = UNSET
    progress: Progress | UnsetType | None = UNSET


class NamedCount(Count, kw_only=True):
    """One counter."""

    counter: str
    as_of: Moment


class Counts(msgspec.Struct):
    """Counters by name, and when they were read from Redis."""

    counters: dict[str, Count]
    as_of: Moment | None


class StatsError(msgspec.Struct):
    """Some count is not known."""

    result: Literal["error"]
    detail: str


class History(msgspec.Struct):
    """The last hour of a counter, the oldest sample first."""

    counter: str
    samples: Annotated[
        list[tuple[float, int]],
        Meta(description="when the counter was read (in seconds since 1970), and its count then"),
    ]


class Membership(msgspec.Struct):
    """Whether the member is counted."""

    member: bool


class Memberships(msgspec.Struct):
    """Whether each member is counted, in the order of the request."""

    members: list[bool]


class Ticket(msgspec.Struct):
    """The ticket for the URL of a stream, `?ticket=…`. It opens streams until it expires."""

    ticket: str
    expires_at: Annotated[Moment | None, Meta(description="null if no ticket is needed")]
