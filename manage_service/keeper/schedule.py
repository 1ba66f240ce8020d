"""The schedule: asks for a reconcile of each derived counter when its interval is over, or its set or table has changed.

A total and its groupings are due each by itself: one run for all of them would read more, and hold up the others.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from redis import Redis

from manage_service.runs import registry
from manage_service.runs.registry import Mode
from shared_models.protocol.states import State

# How soon the schedule asks again for a run that failed; sooner if the interval is shorter. It asks at once if
# the counter has been built or verified since, if something else has changed its set, or if its table has changed.
RETRY_RUN_SECONDS = 60.0
# It waits while so many runs are open, so that operators can ask for one, too, when many counters are due at once.
MOST_OPEN = registry.MOST_OPEN // 2


class Schedule:
    """Remembers its requests, so that it does not ask again at once for a run that failed."""

    def __init__(self, reconcile_seconds: float) -> None:
        self.reconcile_seconds = reconcile_seconds
        # The counters for which it has asked for a run, with their state then, and when to ask again.
        self._asked: dict[str, tuple[object, float]] = {}

    def ask_for_what_is_due(self, found: Mapping[str, State], refused: Collection[str], redis: Redis) -> None:
        """A run for each counter that is due and has no open run, except for those that cannot be built (`refused`).

        `redis` has to be able to open a second connection, to look at the runs while it watches the list of them.
        """
        due = [name for name, state in found.items() if name not in refused and self.is_due(state)]
        for name in self._asked.keys() - due:
            del self._asked[name]  # it was verified: the next run is a new request
        if not due:
            return
        unended = registry.still_open(redis)
        open_for, room = {name for run in unended for name in run.counters}, MOST_OPEN - len(unended)
        for name in due:
            if room <= 0:
                return
            # A counter that was verified meanwhile is due for a new reason; for example, it was emptied during the run.
            seen = found[name].build, found[name].gap, found[name].verified_at, found[name].changed_at
            asked_for, again_at = self._asked.get(name, (None, 0.0))
            if name not in open_for and (seen != asked_for or time.monotonic() >= again_at):
                self._asked[name] = seen, time.monotonic() + min(RETRY_RUN_SECONDS, self.reconcile_seconds)
                room -= 1
                with suppress(registry.TooManyRuns):
                    registry.create(redis, [name], Mode.REPAIR, asked_by="schedule")

    def is_due(self, state: State) -> bool:
        """Whether the counter has to be reconciled. One of these is enough: it has not been verified for an interval;
        its set and its size differ; its table has changed; its departures are not enough to find deleted members."""
        if (
            state.gap != 0
            or state.verified_at is None
            or state.left_through is None
            or state.changed_at != state.settled
        ):
            return True
        return (datetime.now(UTC) - state.verified_at).total_seconds() >= self.reconcile_seconds
