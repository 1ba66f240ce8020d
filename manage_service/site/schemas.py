"""The shapes of what manage is asked and what it answers, for the description at /openapi.json."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from ninja import Schema
from pydantic import Field, WithJsonSchema

from manage_service.runs import registry
from manage_service.runs.registry import Mode
from shared_models.declarations import COUNTERS


class Refusal(Schema):
    """A problem; `complete` describes it."""


NAME_OF_A_COUNTER = {"type": "string", "enum": [counter.name for counter in COUNTERS]}


class RunRequest(Schema):
    """Which counters to reconcile, and whether to mend what is found."""

    counters: list[Annotated[str, WithJsonSchema(NAME_OF_A_COUNTER)]] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="names of counters; all of them where this is left out",
        examples=[[counter.name for counter in COUNTERS]],
    )
    mode: Mode = Field(Mode.REPAIR, description="check finds the same drift, but adds nothing and takes nothing out")

    model_config = {"extra": "forbid"}


class ProgressOut(Schema):
    counter: str
    phase: str
    read: int
    expected: int
    eta_seconds: float | None


class DriftOut(Schema):
    missing: int
    extra: int
    missing_sample: list[dict[str, str]]
    extra_sample: list[dict[str, str]]
    verified_at: datetime | None
    failure: str = Field(description="why this counter could not be reconciled; empty where it was, or will be")


class RunOut(Schema):
    """A run, under way or from the history."""

    id: str
    status: registry.Status
    cancelling: bool = Field(description="whether it was asked to stop, and has not stopped yet")
    mode: Mode
    counters: list[str]
    asked_at: datetime
    asked_by: str
    started_at: datetime | None
    finished_at: datetime | None
    detail: str
    progress: ProgressOut
    drift: dict[str, DriftOut]


class RunsOut(Schema):
    runs: list[RunOut]


class FoundOut(Schema):
    """Drift, by how many members."""

    missing: int
    extra: int


class BuildingOut(Schema):
    read: int
    expected: int


class LastRunOut(Schema):
    id: str
    status: registry.Status
    finished_at: datetime | None


class CounterOut(Schema):
    """One counter. Xacts are 64-bit integers; what the replica would have to tell is null where it cannot be reached."""

    state: Literal["live", "cold"]
    reason: str  # why it is cold; empty where it is live
    count: int | None
    cursor: int | None
    horizon: int | None
    replica_lag_seconds: float | None
    watermark: int
    source: str
    complete_through: datetime | None
    verified_at: datetime | None
    drift: FoundOut | None = Field(description="what the last reconcile found")
    repaired: bool = Field(description="whether that reconcile has mended it; a check mends nothing")
    building: BuildingOut | None
    last_run: LastRunOut | None


class ReplicaOut(Schema):
    reachable: bool
    detail: str
    source: str | None
    horizon: int | None
    committed_through: datetime | None
    lag_seconds: float | None


class HolderOut(Schema):
    """A process, by its host and id."""

    host: str
    pid: int


class KeeperOut(Schema):
    alive: bool = Field(description="whether it has caught up lately")
    state: Literal["alive", "held up", "not running"]
    ticked_at: datetime | None
    job: str
    holder: HolderOut | None = Field(description="who holds the keeper's lock")
    failure: str
    committed_through: datetime | None = Field(description="the newest commit that it has seen on the replica")
    horizon_held_seconds: float = Field(description="for how long an open transaction holds the horizon; 0: none does")


class FindingOut(Schema):
    """Something that is wrong, and keeps `healthy` from being true."""

    about: str = Field(description="a counter, `keeper`, `replica`, `horizon`, or the id of a run")
    kind: str
    since: datetime | None
    detail: str = Field(description="what is wrong, since when, and what to do, in a sentence")


class StatusOut(Schema):
    healthy: bool = Field(description="whether there are no findings")
    findings: list[FindingOut]
    counters: dict[str, CounterOut]
    replica: ReplicaOut
    keeper: KeeperOut
    open_runs: list[str]
    as_of: datetime


class ProofOut(FoundOut):
    """What one run found in one counter."""

    run: str
    mode: Mode
    verified_at: datetime


class DriftsOut(Schema):
    counters: dict[str, list[ProofOut]]
