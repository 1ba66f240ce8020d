"""A run for operators: the API's answer, and the command line's `--json`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from manage_service.protocol.findings import Findings
from manage_service.runs.registry import AskedBy, Mode, Run, Status
from shared_models.protocol.moments import Moment


class RunProgress(msgspec.Struct):
    """The present counter, the phase, and its progress."""

    counter: str
    phase: str
    read: Annotated[int, Meta(description="members read in this phase")]
    expected: Annotated[int, Meta(description="about how many there are; 0: not known")]
    eta_seconds: Annotated[float | None, Meta(description="how long this phase will still take, at its speed so far")]


class CounterDrift(msgspec.Struct):
    """The findings of a run in one counter so far."""

    missing: Annotated[int, Meta(description="members that have a row and were not in the set")]
    extra: Annotated[int, Meta(description="members of the set that no row has")]
    missing_sample: Annotated[list[dict[str, str]], Meta(description="at most 20 of them")]
    extra_sample: Annotated[list[dict[str, str]], Meta(description="at most 20 of them")]
    verified_at: Moment | None
    failure: Annotated[str, Meta(description="why this counter could not be reconciled; empty if it was, or will be")]


class RunReport(msgspec.Struct):
    """A run, open or from the history."""

    id: str
    status: Status
    cancelling: Annotated[bool, Meta(description="whether it was asked to stop, and has not stopped yet")]
    mode: Mode
    counters: list[str]
    asked_at: Moment
    asked_by: AskedBy
    started_at: Moment | None
    finished_at: Moment | None
    detail: Annotated[str, Meta(description="why it failed, or what it is waiting for")]
    progress: RunProgress
    drift: Annotated[dict[str, CounterDrift], Meta(description="by counter")]


def report(run: Run) -> RunReport:
    """The present state of the run."""
    return RunReport(
        id=run.id,
        status=run.status,
        cancelling=run.open and run.asked_to_stop,
        mode=run.mode,
        counters=run.counters,
        asked_at=run.asked_at,
        asked_by=run.asked_by,
        started_at=run.started_at,
        finished_at=run.finished_at,
        detail=run.detail,
        progress=RunProgress(run.counter, run.phase, run.read, run.expected, run.eta_seconds()),
        drift={name: report_drift(found) for name, found in run.by_counter.items()},
    )


def report_drift(found: Findings) -> CounterDrift:
    return CounterDrift(
        missing=found.missing,
        extra=found.extra,
        missing_sample=found.missing_sample,
        extra_sample=found.extra_sample,
        verified_at=found.verified_at,
        failure=found.failure,
    )
