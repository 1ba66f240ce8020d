"""Who does something: ingests, runs, passes, a builder. Each takes one step at a time, whatever happens in between.

The steps are those of `ingest_service/writing/recording.py` and of manage's `reconciling.py`, `sweeping.py`, `catching_up.py`
and `building.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.protocol.postgres import Postgres, commit
from tests.protocol.rules import Rules
from tests.protocol.scripts import Scripts
from tests.protocol.state import DONE, START, Actor, Redis, Seen, State, View, put


class Actors:
    """`settling`: the set may differ from its size, so that runs look for what is missing, and verify."""

    def __init__(self, rules: Rules, postgres: Postgres, scripts: Scripts, *, settling: bool) -> None:
        self.on, self.postgres, self.scripts, self.settling = rules.on, postgres, scripts, settling

    def nexts(self, s: State) -> Iterator[State]:
        views = self.postgres.views(s)
        for i, ingest in each(s.ingests):
            for after, actor in self.ingest(s, ingest, i):
                yield after._replace(ingests=put(s.ingests, i, actor))
        for i, run in each(s.runs):
            for redis, actor in self.reconcile(s.redis, run, i, views):
                yield s._replace(redis=redis, runs=put(s.runs, i, actor))
        for i, catching_up in each(s.passes):
            for redis, actor in self.catch_up(s.redis, catching_up, views):
                yield s._replace(redis=redis, passes=put(s.passes, i, actor))
        yield from self.build(s, views)
        if s.left.others:
            yield from self.ingest_another(s)

    # Ingest

    def ingest_another(self, s: State) -> Iterator[State]:
        """A row of another member, acknowledged at once, or not counted."""
        stored = commit(s, "other", s.left._replace(others=s.left.others - 1))
        yield stored
        source = len(s.histories) - 1
        if not self.postgres.is_primary:  # there it waits for the disk
            yield stored._replace(redis=self.scripts.raise_watermark(s.redis, s.next_xact, source))

    def ingest(self, s: State, actor: Actor, writer: int) -> Iterator[tuple[State, Actor]]:
        at, *facts = actor
        if at == "start":
            timeline = len(s.histories) - 1
            for source in {timeline} if self.on("source anew") else {timeline, 0}:
                yield s._replace(next_xact=s.next_xact + 1), ("begun", s.next_xact, timeline, source)
        elif at == "begun":
            # On a primary that has been replaced meanwhile, its row is lost.
            xact, timeline, source = facts
            log = (*s.histories[timeline], ("insert", xact, writer))
            yield s._replace(histories=put(s.histories, timeline, log)), ("committed", xact, source)
        elif at == "committed" and self.postgres.is_committed(s, writer):
            redis = self.scripts.raise_watermark(self.scripts.record(s.redis), *facts)
            yield s._replace(redis=redis), ("counted",)
            yield s, DONE  # Redis was away

    # Reconcile

    def reconcile(self, redis: Redis, run: Actor, index: int, views: list[View]) -> Iterator[tuple[Redis, Actor]]:
        """A repair: look for what is missing; mark, fence, sweep; verify. Only the middle where there is nothing to settle.

        `about` is the build and the gap that it began with.
        """
        at, *facts = run
        token = index if self.on("token") else 0
        if at == "start" and not self.scripts.lost(redis):
            about = (redis.build, redis.gap) if self.settling else (0, 0)
            noted = redis._replace(mark=None)  # begins by forgetting older marks
            yield noted, ("looking", about, seen_of(redis)) if self.settling else ("looked", about)
        elif at == "looking":
            about, was = facts
            shows = self.fence if about[1] != 0 and self.on("settle fence") else self.covers
            for view in views:
                if shows(view, was):
                    yield redis, ("seen", about, bool(view.rows))
        elif at == "seen":
            yield self.scripts.fill(redis, saw=facts[1]), ("looked", facts[0])
        elif at == "looked":
            rowless = [view for view in views if not view.rows]
            if redis.member and rowless:
                yield redis._replace(mark=token), ("marked", *facts)
            if not redis.member:
                yield redis, self.then_verify(*facts)
            elif len(rowless) < len(views):
                yield redis._replace(by_hand=False), self.then_verify(*facts)
        elif at == "marked":
            yield redis, ("fencing", *facts, seen_of(redis))
        elif at == "fencing":
            about, was = facts
            for here in {bool(view.rows) for view in views if self.fence(view, was, cursor=self.on("cursor fence"))}:
                if here:
                    yield redis._replace(mark=None, by_hand=False), self.then_verify(about)
                else:
                    yield redis, ("asked", about)
        elif at == "asked":
            ((build, gap),) = facts
            if redis.mark == token:
                yield self.scripts.sweep(redis), self.then_verify((build, gap))
            else:
                strict = gap != 0 and self.on("verify swept")
                yield redis._replace(mark=None), DONE if strict else self.then_verify((build, gap))
        elif at == "looked through":
            ((build, gap),) = facts
            yield self.scripts.verify(redis, build, gap, token=-2 - index), DONE

    def then_verify(self, about: tuple[Any, ...]) -> Actor:
        return ("looked through", about) if self.settling else DONE

    def covers(self, view: View, was: Seen, *, cursor: bool = True) -> bool:
        return view.source == was.source and (view.horizon >= was.cursor or not cursor)

    def fence(self, view: View, was: Seen, *, cursor: bool = True) -> bool:
        """Whether the snapshot shows all that was acknowledged, or relied on, when the state was read."""
        if not self.covers(view, was, cursor=cursor):
            return False
        if not self.on("fence"):
            return True
        if was.water is None or (view.lsn < was.reset and self.on("reset waits")):
            return False
        if was.water_source != view.source and self.on("timelines"):
            return was.water_source < view.source or not self.on("source fence")
        return view.horizon > was.water

    # Catch up

    def catch_up(self, redis: Redis, actor: Actor, views: list[View]) -> Iterator[tuple[Redis, Actor]]:
        at, *facts = actor
        if at == "start" and not self.scripts.lost(redis):
            assert redis.cursor is not None
            was = redis.cursor, redis.source, redis.build
            for view in views:
                if view.horizon < redis.cursor or (view.source != redis.source and self.on("source of a pass")):
                    continue
                # Rows above the horizon are added, too, but for those that an earlier pass has added.
                saw = any(redis.cursor <= xact < view.horizon for xact, _ in view.rows)
                claim = (view.xmax - 1, view.source) if saw else None
                yield redis, ("read", was, view.horizon, view.history, claim)
        elif at == "read":
            *about, claim = facts
            if claim is not None:
                mark = redis.mark
                redis = self.scripts.record(redis)
                if not self.on("unmark in catch-up"):
                    redis = redis._replace(mark=mark)
                if self.on("claim"):
                    redis = self.scripts.raise_watermark(redis, *claim)
            yield redis, ("added", *about)
        elif at == "added":
            yield self.scripts.advance(redis, *facts), DONE

    # Build

    def build(self, s: State, views: list[View]) -> Iterator[State]:
        at, *facts = s.builder
        redis, fill = s.redis, s.redis.fill
        if at == "start":
            for view in views:
                # A replica that has not followed to the counter's timeline yet is waited for.
                if self.scripts.lost(redis) or redis.source < view.source:
                    yield from self.begin(s, view) if fill is None else [s._replace(builder=("filling",))]
            return
        if at == "filling" and fill is not None and not fill.done:
            for view in views:
                if view.source != fill.source and self.on("source of a fill"):
                    yield from self.begin(s, view)
                elif view.lsn >= fill.lsn or not self.on("fill lsn"):
                    yield s._replace(builder=("read", fill.token, bool(view.rows)))
        elif at == "filling":
            yield s._replace(builder=START if fill is None else ("filled", fill.token))
        elif at == "late":
            yield s._replace(redis=self.scripts.fill(redis, saw=facts[0]), builder=("filling",))
        elif fill is None or fill.token != facts[0] or fill.done != (at == "filled"):
            yield s._replace(builder=START)  # another one has begun
        elif not self.scripts.intact(redis, fill):
            yield s._replace(redis=redis._replace(fill=None), builder=START)
        elif at == "filled":
            yield s._replace(redis=self.scripts.promote(redis, fill), builder=START)
        else:
            saw = facts[1]
            moved = redis._replace(fill=fill._replace(done=True))
            if self.on("fill position"):
                yield s._replace(redis=self.scripts.fill(moved, saw=saw), builder=("filling",))
            else:  # the position first, the members in a step of their own
                yield s._replace(redis=moved, builder=("late", saw))
        if s.left.losses:  # it may die wherever Redis may
            yield s._replace(builder=START)

    def begin(self, s: State, view: View) -> Iterator[State]:
        token = s.left.fills
        if token:
            redis = self.scripts.begin(s.redis, token, view, len(s.histories[-1]))
            yield s._replace(redis=redis, builder=("filling",), left=s.left._replace(fills=token - 1))


def each(actors: tuple[Actor, ...]) -> Iterator[tuple[int, Actor]]:
    """Those that have something to do. Of those that have not begun, the first one is enough: they are alike."""
    for index, actor in enumerate(actors):
        yield index, actor
        if actor == START:
            return


def seen_of(redis: Redis) -> Seen:
    return Seen(redis.source, redis.cursor or 0, redis.water, redis.water_source, redis.reset)
