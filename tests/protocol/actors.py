"""The actors: ingests, runs, passes, a builder. Each takes one step at a time, and anything may happen in between.

The steps are those of `ingest_service/writing/recording.py` and of manage's `reconciling.py`, `sweeping.py`, `catching_up.py`
and `building.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.protocol.postgres import Postgres, commit
from tests.protocol.rules import Rules
from tests.protocol.scripts import Scripts
from tests.protocol.state import DONE, FOREIGN, START, Actor, Redis, Saw, Seen, State, View, put


class Actors:
    """`verifying`: runs look for what is missing, too, and verify. It matters where the set may differ from its size, or where
    departures are read."""

    def __init__(self, rules: Rules, postgres: Postgres, scripts: Scripts, *, verifying: bool) -> None:
        self.on, self.postgres, self.scripts, self.verifying = rules.on, postgres, scripts, verifying

    def nexts(self, s: State) -> Iterator[State]:
        yield from self.steps(s, at_old=False)
        if s.old is not None:
            for after in self.steps(s._replace(redis=s.old, old=s.redis), at_old=True):
                assert after.old is not None
                pairs = zip(s.ingests, after.ingests, strict=True)
                void = tuple(DONE if new == ("counted",) != was else new for was, new in pairs)
                yield after._replace(redis=after.old, old=after.redis, ingests=void)

    def steps(self, s: State, *, at_old: bool) -> Iterator[State]:
        """What the actors may do at one primary of Redis: the present one, or the old one."""
        views = self.postgres.views(s)
        for i, ingest in each(s.ingests):
            for after, actor in self.ingest(s, ingest, i):
                yield after._replace(ingests=put(s.ingests, i, actor))
        for i, run in self.connected(s, "runs", at_old):
            for redis, actor in self.reconcile(s.redis, run, i, views):
                yield connect(s._replace(redis=redis, runs=put(s.runs, i, actor)), "runs", i, at_old)
        for i, catching_up in self.connected(s, "passes", at_old):
            for redis, actor in self.catch_up(s.redis, catching_up, views):
                yield connect(s._replace(redis=redis, passes=put(s.passes, i, actor)), "passes", i, at_old)
        for i, departer in self.connected(s, "departers", at_old):
            for redis, actor in self.resolve(s.redis, departer, i, views):
                yield connect(s._replace(redis=redis, departers=put(s.departers, i, actor)), "departers", i, at_old)
            if departer != START:  # it may die at any time
                yield connect(s._replace(departers=put(s.departers, i, START)), "departers", i, at_old)
        yield from self.build(s, views)
        if s.left.others:
            yield from self.ingest_another(s)

    def connected(self, s: State, kind: str, at_old: bool) -> Iterator[tuple[int, Actor]]:
        """The actors that may take a step at this primary: with the rule, each stays connected to the one at which it began."""
        for i, actor in enumerate(s.departers) if kind == "departers" else each(getattr(s, kind)):
            if actor == START or at_old == ((kind, i) in s.at_old) or not self.on("one connection"):
                yield i, actor

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
            if self.scripts.late(s.redis, *facts) and self.on("late records"):
                yield s, ("counted",) if s.redis.member or not self.on("late is not counted") else DONE
            else:
                redis = self.scripts.raise_watermark(self.scripts.record(s.redis), *facts)
                yield s._replace(redis=redis), ("counted",)
            yield s, DONE  # Redis was away

    # Reconcile

    def reconcile(self, redis: Redis, run: Actor, index: int, views: list[View]) -> Iterator[tuple[Redis, Actor]]:
        """A repair: look for what is missing; mark, fence, sweep; verify. Only the middle where there is nothing to settle.

        `about` is the build, the gap and the cursor that it began with.
        """
        at, *facts = run
        token = index if self.on("token") else 0
        if at == "start" and not self.scripts.lost(redis) and self.scripts.has_parts:
            for view in views:
                yield self.scripts.note_table(redis, view), ("noted",)
        elif at in ("start", "noted") and not self.scripts.lost(redis):
            about = (redis.build, redis.gap, redis.cursor, redis.change, redis.own) if self.verifying else (0,) * 5
            noted = redis._replace(mark=None)  # begins by forgetting older marks
            yield noted, ("looking", about, seen_of(redis)) if self.verifying else ("looked", about)
        elif at == "looking":
            about, was = facts
            shows = self.fence if about[1] != 0 and self.on("settle fence") else self.covers
            for view in views:
                if view.attached != was.attached and self.on("table of a run"):
                    yield redis, START  # it looks again
                elif shows(view, was):
                    yield redis, ("seen", about, was, sees(view), view.horizon, view.source)
        elif at == "seen":
            about, was, saw, *shown = facts
            if saw and self.scripts.late(redis, *shown) and self.on("late repairs"):
                yield redis, ("looking", about, was)
            else:
                yield self.scripts.look(redis, saw=saw), ("looked", about)
        elif at == "looked":
            if self.verifying and self.on("suspects below the cursor"):
                begun_at = facts[0][2]
                views = [view for view in views if view.horizon >= begun_at]
            rowless = [view for view in views if not self.has_row(view)]
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
            shown = [view for view in views if self.fence(view, was, cursor=self.on("cursor fence"))]
            if any(view.attached != was.attached for view in shown) and self.on("noted table"):
                yield redis, START
                shown = [view for view in shown if view.attached == was.attached]
            for here in {self.has_row(view) for view in shown}:
                if here:
                    yield redis._replace(mark=None, by_hand=False), self.then_verify(about)
                else:
                    yield redis, ("asked", about, was.change)
        elif at == "asked":
            about, change = facts
            if redis.change != change:
                yield redis, START
            elif redis.mark == token:
                yield self.scripts.sweep(redis)._replace(mark=None), self.then_verify(about)
            else:
                strict = about[1] != 0 and self.on("verify swept")
                if self.on("all taken out"):
                    about = (*about[:2], None, *about[3:])
                yield redis._replace(mark=None), DONE if strict else self.then_verify(about)
        elif at == "looked through":
            (about,) = facts
            build, gap, cursor, change, own = about
            yield self.scripts.verify(redis, build, gap, cursor, change, own, token=-2 - index), DONE

    def then_verify(self, about: tuple[Any, ...]) -> Actor:
        return ("looked through", about) if self.verifying else DONE

    def has_row(self, view: View) -> bool:
        return any(xact < view.xmax or self.on("foreign rows") for xact, _ in view.rows)

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
            was = redis.cursor, redis.source, redis.build, redis.change, redis.own
            settled = redis.change == redis.settled or not self.on("changed table")
            begun = "begun", was, redis.attached, settled
            if self.scripts.has_parts:
                yield redis, begun
            else:  # one step, which makes no difference
                yield from self.catch_up(redis, begun, views)
        elif at == "begun":
            was, attached, settled = facts
            cursor, source, *_ = was
            for view in views:
                if view.horizon < cursor or (view.source != source and self.on("source of a pass")):
                    continue
                # Rows above the horizon are added, too, but for those that an earlier pass has added.
                saw = any(cursor <= xact < view.horizon for xact, _ in view.rows)
                claim = (view.xmax - 1, view.source) if saw else None
                if view.attached != attached:
                    yield redis, ("noting", was, view, claim)
                    continue
                through = view.lsn if settled and self.scripts.has_parts else None
                yield redis, ("read", was, view.horizon, view.history, through, view.source, claim)
        elif at == "noting":
            was, view, claim = facts
            redis = self.scripts.note_table(redis, view)
            settled = redis.change == redis.settled or not self.on("changed table")
            through = view.lsn if settled else None
            yield (
                redis,
                ("read", (*was[:3], redis.change, was[4]), view.horizon, view.history, through, view.source, claim),
            )
        elif at == "read":
            *about, source, claim = facts
            if claim is not None and self.scripts.late(redis, about[1], source) and self.on("late passes"):
                yield redis, DONE
                return
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

    # Departures

    def resolve(self, redis: Redis, actor: Actor, index: int, views: list[View]) -> Iterator[tuple[Redis, Actor]]:
        """Read departures below the cursor; mark their members, fence, sweep; then they are resolved.

        `about` is left_through and the build that it began with, and how far it has read.
        """
        at, *facts = actor
        leave = self.scripts.leave
        if at == "start" and not self.scripts.lost(redis) and redis.left is not None:
            assert redis.cursor is not None
            left, was = redis.left, (redis.left, redis.build, redis.own)
            for view in views:
                if not self.covers(view, seen_of(redis)) or view.attached != redis.attached:
                    continue
                until = redis.cursor if self.on("below the cursor") else view.horizon
                found = {is_all for xact, is_all in view.departures if left <= xact < until}
                if True in found and self.on("all"):
                    yield leave(redis, was, None, None), START
                elif False not in found or self.has_row(view):
                    if redis.left != until:
                        yield leave(redis, was, until, None), START
                else:
                    noted = redis._replace(leaving=index, leaving_mark=None)
                    if not self.on("left after"):
                        noted = noted._replace(left=until)
                        was = until, redis.build, redis.own
                    yield noted, ("marking", (was, until), seen_of(redis))
        elif at == "marking":
            about, before = facts
            if redis.leaving == index or not self.on("mark compare"):
                yield redis._replace(leaving_mark=index), ("marked", about, before)
            else:
                yield redis, START
        elif at == "marked":
            about, before = facts
            yield redis, ("fencing", about, seen_of(redis) if self.on("fence after marks") else before)
        elif at == "fencing":
            about, was = facts
            shows = self.fence if self.on("departure fence") else self.covers
            for view in views:
                if not shows(view, was):
                    continue
                if view.attached != was.attached and self.on("noted table"):
                    yield redis, START
                else:
                    yield redis, ("resolved", about) if self.has_row(view) else ("asked", about, was.change)
        elif at == "asked":
            about, change = facts
            if redis.change != change:
                yield redis, START
                return
            if redis.leaving_mark == index:
                redis = self.scripts.sweep(redis)._replace(leaving_mark=None)
            yield redis, ("resolved", about)
        elif at == "resolved":
            ((was, until),) = facts
            yield leave(redis, was, until, index), START

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
                another_source = view.source != fill.source and self.on("source of a fill")
                another_table = view.attached != fill.attached and self.on("table of a fill")
                if another_source or (another_table and view.lsn >= fill.lsn):
                    yield from self.begin(s, view)
                elif view.lsn >= fill.lsn or not self.on("fill lsn"):
                    yield s._replace(builder=("read", fill.token, sees(view)))
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
        if s.left.losses or s.left.failovers:  # it may die wherever Redis may
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


def connect(s: State, kind: str, index: int, at_old: bool) -> State:
    """Note to which primary of Redis this actor is connected, until it is done."""
    on = at_old and getattr(s, kind)[index] not in (START, DONE)
    return s._replace(at_old=s.at_old | {(kind, index)} if on else s.at_old - {(kind, index)})


def sees(view: View) -> Saw:
    if any(writer == FOREIGN for _, writer in view.rows):
        return "foreign row"
    return "row" if view.rows else ""


def seen_of(redis: Redis) -> Seen:
    return Seen(
        redis.source, redis.cursor or 0, redis.water, redis.water_source, redis.reset, redis.attached, redis.change
    )
