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
            "cold: the counter is not complete. unavailable: Redis, or the server with a part of the counter, does not answer"
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
    reason: Annotated[str | UnsetType, Meta(description="why it has no count")] = UNSET
    progress: Progress | UnsetType | None = UNSET


class NamedCount(Count, kw_only=True):
    """One counter."""

    counter: str
    as_of: Moment


class Live(msgspec.Struct, kw_only=True):
    """How good an answer is that was read from Redis for this question. One that is not correct is refused."""

    state: Literal["live"]
    complete_through: Annotated[Moment, Meta(description="every row that was committed before this moment is counted")]
    verified_at: Annotated[Moment | None, Meta(description="when these counts were last compared with the table")]
    drift: Drift | None
    repaired: Annotated[bool, Meta(description="whether the reconcile that found the drift repaired it")]
    as_of: Moment


class OfAGroup(Live, kw_only=True):
    """The members of one group."""

    counter: str
    by: list[str]
    group: Annotated[list[str], Meta(description="a value for each term of `by`, in its order")]
    count: Annotated[int, Meta(description="0 if there is no such group")]


class Group(msgspec.Struct):
    """One group of several. Without a count it is cold: its set was changed by something else, and is read again."""

    group: list[str]
    count: int | None


class TopGroups(Live, kw_only=True):
    """The largest groups."""

    counter: str
    by: list[str]
    top: Annotated[
        list[Group], Meta(description="the largest first; those of one size in the order of the bytes of their names")
    ]
    distinct: Annotated[int | None, Meta(description="the members of the counter, each once; null if it is cold")]
    sum_of_groups: Annotated[
        int | None, Meta(description="the members of all groups, each once a group; null if a group is cold")
    ]
    groups: Annotated[
        int | None,
        Meta(
            description="how many groups there are; null if the counter has several shards, and more groups than were looked at"
        ),
    ]
    cold_groups: Annotated[
        list[list[str]], Meta(description="groups that cannot be counted now; any may belong to the top")
    ]


class OfDays(Live, kw_only=True):
    """The groups of consecutive days, weeks or months."""

    counter: str
    by: list[str]
    from_: Annotated[str, Meta(description="the first day of the first period")] = msgspec.field(name="from")
    to: Annotated[str, Meta(description="the first day of the last period")]
    time_zone: str
    groups: Annotated[list[Group], Meta(description="one for each period, also where nobody is in it")]
    sum_of_groups: Annotated[
        int | None, Meta(description="a member of three days is in it three times; null if a group is cold")
    ]
    cold_groups: list[list[str]]


class OfAWindow(Live, kw_only=True):
    """The members that have a row of the last days."""

    counter: str
    window: Annotated[str, Meta(description="today and the days before it, and any after it")]
    from_: Annotated[str, Meta(description="its first day")] = msgspec.field(name="from")
    time_zone: str
    count: int


class Groups(Live, kw_only=True):
    """A page of groups, in the order of the bytes of their names."""

    counter: str
    by: list[str]
    groups: list[Group]
    next_cursor: Annotated[str | None, Meta(description="for the next page; null if this is the last one")]


class CountedSet(msgspec.Struct):
    """A set of the question, and how many members it has."""

    counter: str
    count: int
    by: list[str] | UnsetType = UNSET
    group: list[str] | UnsetType = UNSET


class OfSets(msgspec.Struct):
    """How many members sets have in common, or together, or the first one alone."""

    operation: Literal["intersection", "union", "difference"]
    count: int
    sets: list[CountedSet]
    state: Literal["live"]
    complete_through: Annotated[Moment, Meta(description="of the sets' moments the earliest")]
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
