"""The atomic steps on Redis: one function for each file of `shared_models/lua`."""

from __future__ import annotations

from tests.protocol.rules import Rules
from tests.protocol.state import Fill, Redis, Saw, View


class Scripts:
    """`has_rest`: there are other members, with old rows. `has_departures`: triggers write down what is deleted.
    `has_parts`: a part is attached, and detached."""

    def __init__(self, rules: Rules, *, has_rest: bool, has_departures: bool, has_parts: bool) -> None:
        self.on, self.has_rest, self.has_departures = rules.on, has_rest, has_departures
        self.has_parts = has_parts

    def lost(self, redis: Redis) -> bool:
        if redis.cursor is None or redis.size is None:
            return True
        return redis.build != redis.intake_build and self.on("builds")

    def live(self, redis: Redis) -> bool:
        """Whether query answers with the number of members."""
        return not self.lost(redis) and (redis.gap == 0 or not self.on("size"))

    def late(self, redis: Redis, xact: int, source: int) -> bool:
        """Whether catch-up has passed this xact: what comes with it is in the set, or has left again."""
        return redis.cursor is not None and xact < redis.cursor and source == redis.source

    def record(self, redis: Redis) -> Redis:
        leaving_mark = None if self.on("unmark departing") else redis.leaving_mark
        redis = redis._replace(leaving_mark=leaving_mark)
        mark = None if self.on("unmark") else redis.mark
        size = redis.size if redis.member else (redis.size or 0) + 1
        return redis._replace(member=True, by_hand=False, mark=mark, size=size)

    def record_rest(self, redis: Redis) -> Redis:
        if redis.rest or not self.has_rest:
            return redis
        return redis._replace(rest=True, size=(redis.size or 0) + 1)

    def raise_watermark(self, redis: Redis, xact: int, source: int) -> Redis:
        if redis.water is None:
            replace = redis.intake_build is None or not self.on("missing stays missing")
        elif redis.water_source == source or not self.on("timelines"):
            replace = redis.water < xact
        else:
            replace = redis.water_source < source or not self.on("stragglers")
        return redis._replace(water=xact, water_source=source) if replace else redis

    def reset_watermark(self, redis: Redis, view: View, committed: int) -> Redis:
        return redis._replace(water=view.xmax - 1, water_source=view.source, reset=committed)

    def note_table(self, redis: Redis, view: View) -> Redis:
        if redis.attached == view.attached:
            return redis
        # A part that left, and is retired, withdraws nothing that is claimed.
        settles = redis.change == redis.settled and redis.cursor is not None and view.horizon >= redis.cursor
        redis = redis._replace(attached=view.attached, change=redis.change + 1)
        if settles and (not view.attached or not self.on("settles itself")):
            redis = redis._replace(settled=redis.change)
        if self.on("claim of a change"):
            redis = self.raise_watermark(redis, view.xmax - 1, view.source)
        return redis

    def begin(self, redis: Redis, token: int, view: View, committed: int) -> Redis:
        redis = self.note_table(redis, view)
        cursor, size, reset = redis.cursor, redis.size, redis.reset
        unlike = size is None or redis.build != redis.intake_build or (redis.held == 0 and size != 0)
        if unlike and self.on("begin makes cold"):
            cursor = None
        if redis.held == 0 or not self.on("begin keeps the gap"):
            size = redis.held
        gap = redis.held - (size or 0)
        unaccounted = gap != 0 or (redis.held > 0 and redis.water is None)
        if redis.intake_build is None and unaccounted and self.on("reset by a fill"):
            reset = committed
        fill = Fill(token, view.source, view.history, view.horizon, view.lsn, gap, view.attached, redis.change)
        redis = redis._replace(cursor=cursor, size=size, reset=reset, intake_fill=token, fill=fill)
        if self.on("claim of a fill"):
            redis = self.raise_watermark(redis, max(fill.horizon - 1, 0), fill.source)
        return redis

    def fill(self, redis: Redis, *, saw: Saw) -> Redis:
        if saw == "foreign row":
            redis = redis._replace(foreign=True)
        return self.record_rest(self.record(redis) if saw else redis)

    def look(self, redis: Redis, *, saw: Saw) -> Redis:
        """What a run does with a chunk: members that are there stay as they are, and keep their marks."""
        if saw and redis.member:
            foreign = redis.foreign or saw == "foreign row"
            return self.record_rest(redis._replace(by_hand=False, foreign=foreign))
        return self.fill(redis, saw=saw)

    def intact(self, redis: Redis, fill: Fill) -> bool:
        """Whether what a fill has added is still there."""
        return redis.gap == fill.gap and (redis.intake_fill == fill.token or not self.on("intake fill"))

    def promote(self, redis: Redis, fill: Fill) -> Redis:
        return redis._replace(
            cursor=fill.horizon,
            source=fill.source,
            history=fill.history,
            build=fill.token,
            intake_build=fill.token,
            intake_fill=None,
            size=redis.size or 0,
            fill=None,
            settled=fill.change,
            through=fill.lsn if self.has_parts else 0,
            left=None if self.on("promote forgets") else fill.horizon,
            leaving=None,
        )

    def advance(self, redis: Redis, was: tuple[int, ...], cursor: int, history: int, through: int | None) -> Redis:
        if redis.change != was[3] and self.on("compare change"):
            return redis
        if redis.own != was[4] and self.on("one history"):
            return redis
        same = (redis.cursor, redis.source) == was[:2] or not self.on("compare")
        if same and (redis.build == was[2] or not self.on("compare build")):
            return redis._replace(cursor=cursor, history=history, through=max(redis.through, through or 0))
        return redis

    def sweep(self, redis: Redis) -> Redis:
        size = redis.size if redis.size is None or not redis.member else redis.size - 1
        return redis._replace(member=False, by_hand=False, size=size)

    def leave(self, redis: Redis, was: tuple[int | None, ...], left: int | None, token: int | None) -> Redis:
        """Departures are resolved up to there; None: a reconcile has to resolve them."""
        if self.on("left compare") and ((redis.left, redis.build) != was[:2] or token not in (None, redis.leaving)):
            return redis
        if redis.own != was[2] and self.on("history of departures"):
            return redis
        return redis._replace(left=left, leaving=None if token is not None else redis.leaving)

    def verify(
        self, redis: Redis, build: int, gap: int, cursor: int | None, change: int, own: int, token: int
    ) -> Redis:
        if redis.cursor is None or redis.size is None:
            return redis
        if self.on("verify build") and not redis.build == redis.intake_build == build:
            return redis
        if redis.gap != gap and self.on("verify gap"):
            return redis
        if redis.own != own and self.on("history of a run"):
            return redis
        if gap != 0 and self.on("settled once"):
            redis = redis._replace(build=token, intake_build=token)
        if self.has_departures and cursor is not None:
            left = cursor if self.on("reconciled from") else redis.cursor or 0
            redis = redis._replace(left=max(left, redis.left or 0))
        if redis.change == change or not self.on("settled as begun"):
            redis = redis._replace(settled=redis.change)
        return redis._replace(size=redis.held)
