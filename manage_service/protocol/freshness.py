"""Replica freshness: whether a snapshot shows all rows that a counter claims. A run checks this before it compares."""

from __future__ import annotations

from manage_service.replica.snapshots import Snapshot
from shared_models.protocol.states import State


class CounterWasLost(Exception):
    """The counter was lost, or built again, during the run, so the run proves nothing. Run again."""


def why_stale(snapshot: Snapshot, state: State) -> str | None:
    """None if the snapshot shows all rows that the counter claims; otherwise the reason why not.

    Raises CounterWasLost if the replica shows another history. The counter needs a build to follow it, and
    no build begins while a run waits.
    """
    if snapshot.source != state.source:
        raise CounterWasLost(
            f"the replica now shows {snapshot.source}, the counter belongs to {state.source or 'none: it was lost'}"
        )
    if state.cursor is not None and snapshot.horizon < state.cursor:
        return f"the counter is complete below xact {state.cursor}, the replica only below {snapshot.horizon}"
    return None
