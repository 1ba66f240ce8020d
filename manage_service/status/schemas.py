"""The state of everything as a document, for the API and the command line."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from manage_service.leases import Holder
from manage_service.runs.registry import Mode, Status
from shared_models.protocol.moments import Moment


class Drift(msgspec.Struct):
    """How many members differed between a set and its table."""

    missing: int
    extra: int


class BuildProgress(msgspec.Struct):
    """The progress of a build, in members."""

    read: int
    expected: int


class LastRun(msgspec.Struct):
    """The newest run of a counter."""

    id: str
    status: Status
    finished_at: Moment | None


class CounterStatus(msgspec.Struct):
    """One derived counter. Fields that need the replica are null if it cannot be reached.

    The last four are there only for counters that have groups, last_seen, or the next number of shards.
    """

    state: Literal["live", "cold"]
    reason: Annotated[str, Meta(description="why it is cold; empty if it is live")]
    withheld: Annotated[str, Meta(description="why complete_through stands still; empty if it moves")]
    count: Annotated[int | None, Meta(description="members; of a counter by group, the members of all groups together")]
    cursor: Annotated[int | None, Meta(description="the counter is complete below this xact")]
    left_through: Annotated[
        int | None,
        Meta(description="members that were deleted below this xact have left; null: a reconcile has to remove them"),
    ]
    horizon: Annotated[int | None, Meta(description="the replica shows all rows below this xact")]
    replica_lag_seconds: float | None
    watermark: Annotated[int, Meta(description="the highest xact that ingest has acknowledged")]
    source: str
    complete_through: Moment | None
    verified_at: Moment | None
    drift: Annotated[Drift | None, Meta(description="the drift that the last reconcile found")]
    repaired: Annotated[bool, Meta(description="whether that reconcile has repaired it; a check repairs nothing")]
    building: BuildProgress | None
    last_run: LastRun | None
    groups: Annotated[
        int | UnsetType | None, Meta(description="of a counter by group: how many groups it has; null if it is cold")
    ] = UNSET
    broken_groups: Annotated[
        int | UnsetType,
        Meta(description="of a counter by group: groups that the keeper reads again; only these are cold"),
    ] = UNSET
    days: Annotated[
        int | UnsetType | None,
        Meta(description="of a counter with last_seen: the different days on which members were last seen"),
    ] = UNSET
    next_of: Annotated[
        str | UnsetType,
        Meta(
            description="of a counter that is kept with `next_shards`: the one that it will replace; query reads that one"
        ),
    ] = UNSET


class ReplicaStatus(msgspec.Struct):
    """What the replica shows now, or why it cannot be read."""

    reachable: bool
    detail: str
    source: str | None = None
    horizon: int | None = None
    committed_through: Moment | None = None
    lag_seconds: float | None = None
    host: Annotated[str, Meta(description="which of several replicas it is; empty if DATABASE_URL names one")] = ""
    passed_over: Annotated[
        dict[str, str], Meta(description="why others of DATABASE_URL are not read, by host and port")
    ] = msgspec.field(default_factory=dict)
    months_ahead: Annotated[
        dict[str, int], Meta(description="for how many months to come a table of messages has partitions, by its name")
    ] = msgspec.field(default_factory=dict)
    retiring: Annotated[list[str], Meta(description="partitions that `retain` has detached, and not dropped")] = (
        msgspec.field(default_factory=list)
    )


class KeeperStatus(msgspec.Struct):
    """The active keeper: when it last worked, what it does, what blocks it, and its process."""

    alive: Annotated[bool, Meta(description="whether it has caught up lately")]
    state: Literal["alive", "held up", "not running"]
    ticked_at: Moment | None
    job: str
    holder: Annotated[Holder | None, Meta(description="who holds the keeper's lock")]
    failure: str
    committed_through: Annotated[Moment | None, Meta(description="the newest commit that it has seen on the replica")]
    horizon_held_seconds: Annotated[
        float, Meta(description="for how long an open transaction has held back the horizon; 0: none does")
    ]


Kind: TypeAlias = Literal[
    "not-running",  # about the keeper
    "held-up",
    "held",  # about the horizon
    "not-reachable",  # about the replica
    "behind",
    "passed-over",
    "few-months",  # about a table
    "waits",  # about a run
    "open-long",
    "disbelieved",  # about a counter, or a counter by group
    "broken-groups",
    "cold",
    "incomplete",
    "run-failed",
    "not-verified",
    "drift",
]


class Finding(msgspec.Struct):
    """Something that is wrong, so that `healthy` is false."""

    about: Annotated[str, Meta(description="a counter, a table, `keeper`, `replica`, `horizon`, or the id of a run")]
    kind: Kind
    since: Annotated[Moment | None, Meta(description="null if not known")]
    detail: Annotated[str, Meta(description="what is wrong, since when, and what to do, in a sentence")]


class StatusReport(msgspec.Struct):
    """The state of everything, and what is wrong."""

    healthy: Annotated[bool, Meta(description="whether there are no findings")]
    findings: list[Finding]
    counters: dict[str, CounterStatus]
    replica: ReplicaStatus
    keeper: KeeperStatus
    open_runs: Annotated[list[str], Meta(description="ids of the runs that have not ended")]
    as_of: Moment


class Proof(msgspec.Struct):
    """The drift that one run found in one counter."""

    run: str
    mode: Mode
    verified_at: Moment
    missing: int
    extra: int
