"""Requests to manage, and the lists in its answers. The modules of the runs and the status describe their elements."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from manage_service.runs.registry import Mode
from manage_service.runs.report import RunReport
from manage_service.status.schemas import Proof
from shared_models import declarations

TOTALS = [counter.name for counter in declarations.COUNTERS]
NAMES = [counter.name for counter in declarations.kept()]
Names = Annotated[list[Annotated[str, Meta(extra_json_schema={"enum": NAMES})]], Meta(min_length=1, max_length=100)]


class RunRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which counters to reconcile, and whether to repair the drift."""

    counters: Annotated[
        Names | None,
        Meta(description="counters, each with its groupings, or single groupings; all by default"),
    ] = None
    mode: Annotated[Mode, Meta(description="by default repair; check finds the same drift, and changes nothing")] = (
        Mode.REPAIR
    )


class RunList(msgspec.Struct):
    """Runs, the newest first."""

    runs: list[RunReport]


class DriftHistory(msgspec.Struct):
    """The drift that the kept runs have found, by counter, the oldest first."""

    counters: dict[str, list[Proof]]
