"""Damage to Redis: it loses data, or somebody changes its keys by hand; and the keeper's repair."""

from __future__ import annotations

from collections.abc import Iterator

from tests.protocol.postgres import Postgres
from tests.protocol.rules import Rules
from tests.protocol.scripts import Scripts
from tests.protocol.state import DONE, START, Redis, State

# A watermark that no transaction has.
FAR = 1_000


class Damage:
    def __init__(self, rules: Rules, postgres: Postgres, scripts: Scripts) -> None:
        self.on, self.postgres, self.scripts = rules.on, postgres, scripts

    def nexts(self, s: State) -> Iterator[State]:
        if s.left.losses or s.left.failovers:
            yield from self.lose(s)
        if s.left.damages:
            for redis, left_alone in changed_by_hand(s.redis):
                after = s if left_alone else forgive(s)
                yield after._replace(redis=redis, left=s.left._replace(damages=s.left.damages - 1))
        if s.left.poisons:
            for water in (FAR, None):
                less = s.left._replace(poisons=s.left.poisons - 1)
                yield s._replace(redis=s.redis._replace(water=water), left=less)
        yield from self.mend(s)

    def lose(self, s: State) -> Iterator[State]:
        """Redis loses everything, or goes back to an older state: all its keys together. No client notices anything."""
        if s.save != s.redis:
            yield s._replace(save=s.redis)
        own, lost = s.left.losses + s.left.failovers, forgive(s)
        if s.left.losses:
            lost = lost._replace(left=s.left._replace(losses=s.left.losses - 1))
            yield lost._replace(redis=Redis(own=own))
            if s.save is not None:
                yield lost._replace(redis=s.save._replace(own=own))
        if s.left.failovers:
            # Those who were connected to an old primary have come back with it: it follows the next one, and is promoted again.
            busy = (
                (kind, i)
                for kind in ("runs", "passes", "departers")
                for i, actor in enumerate(getattr(s, kind))
                if actor not in (START, DONE)
            )
            left = s.left._replace(failovers=s.left.failovers - 1)
            lost = forgive(s)._replace(left=left, old=s.redis, at_old=frozenset(busy) - s.at_old)
            yield lost._replace(redis=s.redis._replace(own=own))
            if s.save is not None:
                yield lost._replace(redis=s.save._replace(own=own))

    def mend(self, s: State) -> Iterator[State]:
        """The keeper makes a counter cold if its set is lost, and sets a missing or impossible watermark again."""
        redis = s.redis
        if redis.cursor is None:
            return
        if redis.held == 0 and redis.gap < 0:
            yield s._replace(redis=redis._replace(cursor=None))
        if redis.water in (FAR, None) and not self.scripts.lost(redis):
            for view in self.postgres.views(s):
                if view.source == redis.source:
                    yield s._replace(redis=self.scripts.reset_watermark(redis, view, len(s.histories[-1])))


def changed_by_hand(redis: Redis) -> Iterator[tuple[Redis, bool]]:
    """What one command, or one of ingest's, can make of the keys; and whether the member stayed.

    It leaves out changes that cancel an earlier one: after adding one member and removing another the size is correct.
    """
    without_intake = redis._replace(size=None, intake_build=None, intake_fill=None, water=None, water_source=0)
    yield without_intake, True
    if redis.gap >= 0 and not redis.member:
        yield redis._replace(member=True, by_hand=True), True
    if redis.gap <= 0 and redis.held:
        kept = not redis.member
        yield redis._replace(member=False, rest=False, by_hand=False), kept
        yield without_intake._replace(member=False, rest=False, by_hand=False), kept
        if redis.member:
            yield redis._replace(member=False, by_hand=False), kept


def forgive(s: State) -> State:
    """What was acknowledged as counted may be gone: read your write is not asked for any more."""
    return s._replace(ingests=tuple(DONE if actor == ("counted",) else actor for actor in s.ingests))
