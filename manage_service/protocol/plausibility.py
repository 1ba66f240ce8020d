"""Checks whether a counter's watermark and cursor are possible, compared with the replica, and repairs them if not.

A watermark above everything that the replica knows is normal: the replica lags. But an xact is committed
before it is acknowledged. If a replica shows commits from minutes later, and still does not know this xact, it never
will. So the protocol did not write the watermark, and every sweep would wait for it. The same is true for a cursor.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from redis import Redis

from manage_service.replica.snapshots import Snapshot
from shared_models.protocol import steps
from shared_models.protocol.states import State

log = structlog.get_logger()

# How much newer the replica's commits have to be than when the value was first seen.
IMPOSSIBLE_AFTER = timedelta(minutes=2)


class Plausibility:
    """Checks the watermark and cursor of all counters, once a tick, and remembers since when one is above the replica.

    The process keeps this in memory: a new keeper waits again.
    """

    def __init__(self) -> None:
        # By counter and field: its value, and the last commit that the replica showed when the value was first seen.
        self._above: dict[tuple[str, str], tuple[int, datetime]] = {}
        self._disbelieved: dict[str, tuple[str, ...]] = {}

    def mend(self, name: str, state: State, snapshot: Snapshot, redis: Redis) -> None:
        """Repair the watermark or cursor of one counter if it is impossible. Raises redis.RedisError."""
        if state.disbelieved != self._disbelieved.get(name, ()):
            self._disbelieved[name] = state.disbelieved
            if state.disbelieved:
                log.error("counter.disbelieved", counter=name, fields=state.disbelieved)
        if state.lost or state.cursor is None or state.source != snapshot.source:
            return  # it is built, and gets new values
        if self._cannot_be(name, "cursor", state.cursor - 1, snapshot) and steps.make_cold(redis, name, state):
            log.error("counter.impossible_cursor", counter=name, cursor=state.cursor, replica_xact=snapshot.xmax)
        impossible = state.watermark is None or (
            state.watermark_source == snapshot.source and self._cannot_be(name, "watermark", state.watermark, snapshot)
        )
        # Not lower than anything that the replica shows. Rows that were acknowledged meanwhile, and are not shown yet,
        # are covered by the time that is noted with it: see `sweep.fence`.
        anew = snapshot.xmax - 1
        if impossible and steps.reset_watermark(redis, name, state, anew, snapshot.source):
            log.error("counter.impossible_watermark", counter=name, watermark=state.watermark, set_to=anew)

    def _cannot_be(self, name: str, mark: str, xact: int, snapshot: Snapshot) -> bool:
        """Whether this xact is still unknown to a replica that shows commits from long after it was first seen here."""
        if xact < snapshot.xmax:
            self._above.pop((name, mark), None)
            return False
        first = self._above.get((name, mark))
        if first is None or first[0] != xact:
            self._above[name, mark] = xact, snapshot.committed_through
            return False
        return snapshot.committed_through - first[1] > IMPOSSIBLE_AFTER
