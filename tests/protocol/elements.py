"""The search for storages other than a set: one element of a counter by group, or of one that knows days.

The protocol is the same for each storage (`search`). What is looked at here is what an element of these does in it, and
what is kept beside the elements; `holding` has both storages. Each transition is told where it is made.

    ingests       rows of ann, of one day each; the Redis step may fail, or come late
    Postgres      rows are deleted, and a trigger writes that down or was bypassed; a promotion that loses nothing
    the replica   replays; comes back earlier than it was
    the keeper    passes, runs that repair, builds; departures, by one keeper or two; drops of groups, and mends, by one or two
    Redis         goes back to an older state, and nobody's connection breaks
                  somebody adds ann or removes her, deletes a set, the directory, or the members; changes the size of a group, the
                  names, or the number of members by day

In every state in which query would answer for this group, or with these days (`Elements.live`):

    completeness      the stored day is not earlier than that of a committed row below the cursor
    read your write   nor than that of a row that was acknowledged as counted, until damage or the build that follows it
    soundness         a member that was put there by hand, and has no row, is not counted
    departure         nor is a day later than the last row's, once all departures of such days are below left_through
    proof             ... or a run has verified the counter since they left, whether a trigger wrote them down or not

Not covered:

    - two changes by hand that outweigh each other, a day that is written by hand, a token that is removed from `broken`
    - what a counter acknowledged after it was damaged and before its build begins with nothing: it may be counted a pass later
    - the bucket filter: see `test_bucket_filter`; a member of which several departures are in different chunks of a batch
    - more than one group, MAX_GROUPS, old generations; Redis that loses everything, failovers, tables that change, foreign rows,
      watermarks that are missing, a promotion that loses commits: `search` has these, for a set
    - what the code checks and nothing in these worlds needs: the build and the table when a group was read again, the cursor of
      that fence (late mends make up for it), that the set of a group without a size is removed before it is begun
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Set
from itertools import pairwise
from typing import Any, NamedTuple

from tests.protocol.holding import Groups, Held, LastSeen
from tests.protocol.rules import Rules
from tests.protocol.telling import Step

Row = tuple[int, int, int]  # xact, who wrote it, day
Actor = tuple[Any, ...]
START: Actor = ("start",)
DONE: Actor = ("done",)
ERASES = ("leave", "erase")
OLD = -1  # the writer of the rows that are there at the start


# The rules that only these storages need.
RULES = {
    "later day": "recording keeps the later day",
    "lowered": "a sweep lowers the day to that of the last row, and does not remove the member",
    "earlier record": "a record of an earlier day changes the mark",
    "again": "... and does not remove it: it does not prove the marked day",
    "begins again": "a batch of departures with such a mark begins again",
    "again of a run": "a run with such a mark does not say that everything has left",
    "last day behind the fence": "the last day is asked behind the fence",
    "later is suspected": "a member that has a later day than the table is asked about in the second half of a run",
    "day of a departure": "a departure names the day, so that the loss of an earlier row is not taken for that of the last one",
    "begins with nothing": "a fill of a counter whose keys do not fit together begins with nothing",
    "size of a group": "a group whose set differs from its size is not live",
    "broken": "nor is one that was dropped and has not been read again",
    "token of a drop": "each drop has a token",
    "compare the drop": "... and a mend makes a group live only if its drop is the last one",
    "fence of a mend": "a dropped group is read behind the fence",
    "late mends": "... and adds nothing from a snapshot whose horizon is below the cursor",
    "history of a mend": "a mend makes a group live only in the history of Redis in which it began",
    "only a set is settled": "a run that finds another number of groups or members than was counted settles nothing",
    "last of a group": "a group goes with its last member, not with its size",
}

_DAYS: dict[str, Any] = {"storage": "last_seen", "days": (2,), "old": (3,), "passes": 1}
_GROUP: dict[str, Any] = {"storage": "groups", "days": (1,), "passes": 1, "menders": 1, "damages": 1, "drops": 1}
_DEPARTURE: dict[str, Any] = {"departers": 1, "departures": 1}
_COLD: dict[str, Any] = {"old": (), "warm": False, "fills": 1}

WORLDS: dict[str, dict[str, Any]] = {
    "two departures": {**_DAYS, **_DEPARTURE, "departures": 2},
    "two keepers": {**_DAYS, **_DEPARTURE, "passes": 2, "departers": 2},
    "two keepers, and a replica that comes back earlier": {**_DAYS, **_DEPARTURE, "departers": 2, "backs": 1},
    "a run next to a departure": {**_DAYS, **_DEPARTURE, "runs": 1},
    "a run, and a replica that comes back earlier": {**_DAYS, **_DEPARTURE, "runs": 1, "backs": 1},
    "a build of days": {**_DAYS, **_DEPARTURE, **_COLD, "days": (2, 3), "old": (1,)},
    "days changed by hand under a run": {**_DAYS, "damages": 1, "runs": 1, "fills": 1, "backs": 1},
    "days changed by hand, and a departure": {**_DAYS, **_DEPARTURE, "damages": 1, "fills": 1},
    "a group changed by hand": {**_GROUP, "fills": 1},
    "a group changed by hand, and a replica that comes back earlier": {**_GROUP, "backs": 1},
    "a group changed twice": {**_GROUP, "damages": 2, "drops": 2},
    "a group changed twice, two keepers": {**_GROUP, "damages": 2, "drops": 2, "menders": 2},
    "a group changed, and Redis goes back": {**_GROUP, "losses": 1},
    "a group changed under a run": {**_GROUP, "days": (), "old": (1,), "runs": 1, "erases": 1},
    "a group changed under a build": {**_GROUP, **_COLD, "runs": 1},
    "days, and a promotion": {**_DAYS, **_DEPARTURE, "promotions": 1, "fills": 1},
    "two days, and a departure": {**_DAYS, **_DEPARTURE, "days": (2, 3), "old": (1,)},
    "a departure from a changed group, two passes": {**_GROUP, **_DEPARTURE, "passes": 2},
    "a departure from a changed group, and a replica that comes back earlier": {**_GROUP, **_DEPARTURE, "backs": 1},
    "a departure from a changed group, and a promotion": {**_GROUP, **_DEPARTURE, "promotions": 1, "fills": 1},
    "a group changed twice, and a promotion": {
        **_GROUP,
        "passes": 0,
        "damages": 2,
        "drops": 2,
        "promotions": 1,
        "fills": 1,
    },
    "a group changed, and a promotion": {**_GROUP, "passes": 0, "promotions": 1, "fills": 1},
    "two runs of days": {**_DAYS, **_DEPARTURE, "old": (1, 3), "passes": 0, "erases": 1, "runs": 2},
    "a run of days, and bypassed triggers": {**_DAYS, **_DEPARTURE, "erases": 1, "runs": 1},
    "a departure from a changed group under a run": {**_GROUP, **_DEPARTURE, "runs": 1},
    "two departures of two days": {**_DAYS, **_DEPARTURE, "days": (2, 3), "old": (1,), "departures": 2},
}
# They take 3 to 5 seconds each: more than all others.
LARGE = {
    "two runs of days",
    "a run of days, and bypassed triggers",
    "a departure from a changed group under a run",
    "two departures of two days",
}

# A world in which each rule is needed.
NEEDED = {
    **dict.fromkeys(("later day", "lowered", "again", "begins again", "earlier record"), "two departures"),
    **dict.fromkeys(("last day behind the fence", "day of a departure"), "two departures"),
    **dict.fromkeys(("again of a run", "later is suspected"), "a run next to a departure"),
    "begins with nothing": "days changed by hand, and a departure",
    **dict.fromkeys(("size of a group", "broken", "fence of a mend"), "a group changed by hand"),
    **dict.fromkeys(("token of a drop", "compare the drop"), "a group changed twice"),
    "history of a mend": "a group changed, and Redis goes back",
    **dict.fromkeys(("late mends", "only a set is settled"), "a group changed under a run"),
    "last of a group": "a group changed under a build",
}


class Fill(NamedTuple):
    token: int
    source: int
    horizon: int
    lsn: int
    gap: int
    done: bool = False


class Redis(NamedTuple):
    held: Held
    mark: Any = None  # of a run: its number, or "again"
    leaving_mark: Any = None  # of a batch of departures
    leaving: int | None = None
    size: int = 0
    cursor: int | None = None
    source: int = 0
    build: int = 0
    water: int = 0
    left: int | None = None
    unswept: frozenset[int] = frozenset()  # the runs since whose beginning no sweep has taken anything out
    fill: Fill | None = None
    own: int = 0  # its name for its own history: another one since each loss
    # Facts: what was erased below is gone, says a run; somebody has put ann there, and nobody has seen her row since.
    proved: int | None = None
    by_hand: bool = False


class View(NamedTuple):
    source: int
    lsn: int
    horizon: int
    xmax: int
    rows: frozenset[Row]
    departures: frozenset[tuple[int, int]]  # xact, day

    @property
    def last(self) -> int:
        """The day of the last row; 0 for none."""
        return max((day for _, _, day in self.rows), default=0)


class State(NamedTuple):
    log: tuple[tuple[str, int, frozenset[Row]], ...]  # what a commit did, its xact, and to which rows
    next_xact: int
    shown: int  # how much of it the replica shows
    source: int  # the timeline
    redis: Redis
    ingests: tuple[Actor, ...]
    runs: tuple[Actor, ...]
    passes: tuple[Actor, ...]
    departers: tuple[Actor, ...]
    menders: tuple[Actor, ...]
    builder: Actor
    left: tuple[tuple[str, int], ...]  # how often what comes from outside may still happen
    save: Redis | None = None  # what Redis may go back to


Next = tuple[Step, State]


class Result(NamedTuple):
    broken: str | None
    states: int
    steps: list[Step]


def put(actors: tuple[Actor, ...], index: int, actor: Actor) -> tuple[Actor, ...]:
    return (*actors[:index], actor, *actors[index + 1 :])


class Elements:
    """`days`: of the rows of each ingest. `old`: of the rows that are there at the start."""

    def __init__(self, storage: str, rules: Rules, days: tuple[int, ...], old: tuple[int, ...], damaged: bool) -> None:
        self.on, self.days = rules.on, days
        self.old = frozenset((0, OLD - number, day) for number, day in enumerate(old))
        self.storage: Any = {"last_seen": LastSeen, "groups": Groups}[storage](rules)
        self.has_bob = damaged or storage == "groups"
        self.by_group = storage == "groups"
        self._views: dict[Any, View] = {}

    # What there is

    def rows(self, log: tuple[Any, ...]) -> frozenset[Row]:
        found = self.old
        for kind, _, rows in log:
            found = found - rows if kind in ERASES else found | rows
        return found

    def view(self, s: State) -> View:
        log = s.log[: s.shown]
        if (log, s.source) not in self._views:
            ended = {xact for _, xact, _ in log}
            xmax = max(ended, default=0) + 1
            horizon = min([xact for xact in range(1, xmax) if xact not in ended] + [xmax])
            departures = {(xact, day) for kind, xact, rows in log if kind == "leave" for _, _, day in rows}
            self._views[log, s.source] = View(s.source, len(log), horizon, xmax, self.rows(log), frozenset(departures))
        return self._views[log, s.source]

    def gap(self, redis: Redis) -> int:
        return int(self.storage.count(redis.held)) - redis.size

    def live(self, redis: Redis) -> bool:
        return redis.cursor is not None and self.gap(redis) == 0 and bool(self.storage.live(redis.held))

    # Atomic steps

    def put_in(self, redis: Redis, day: int) -> Redis:
        """`record.lua`, of one that is not late; a fill's step, too."""
        mark, leaving = (self.storage.unmark(redis.held, day, mark) for mark in (redis.mark, redis.leaving_mark))
        moved, held = self.storage.put(redis.held, day)
        by_hand = redis.by_hand and self.storage.day(held) > day
        return redis._replace(held=held, mark=mark, leaving_mark=leaving, size=redis.size + moved, by_hand=by_hand)

    def put_bob(self, redis: Redis) -> Redis:
        if not self.has_bob:
            return redis
        moved, held = self.storage.put_bob(redis.held)
        return redis._replace(held=held, size=redis.size + moved)

    def is_late(self, redis: Redis, known: int, source: int) -> bool:
        return redis.cursor is not None and known < redis.cursor and source == redis.source

    def claim(self, redis: Redis, xact: int) -> Redis:
        return redis._replace(water=max(redis.water, xact))

    def take(self, redis: Redis, instead: int) -> tuple[Redis, bool]:
        moved, held, took = self.storage.take(redis.held, instead)
        by_hand = redis.by_hand and not took
        unswept = frozenset[int]() if took else redis.unswept
        return redis._replace(held=held, size=redis.size - moved, unswept=unswept, by_hand=by_hand), took

    # Who does something

    def nexts(self, s: State) -> Iterator[Next]:
        view = self.view(s)
        yield from self.outside(s)
        for kind, actors, act in (
            ("Ingest", s.ingests, self.ingest),
            ("Run", s.runs, self.run),
            ("Catch-up", s.passes, self.catch_up),
            ("Departures", s.departers, self.resolve),
            ("Mend", s.menders, self.mend),
        ):
            field = _FIELDS[kind]
            for i, actor in enumerate(actors):
                who = f"{kind} {i + 1}" if len(actors) > 1 else kind
                for whom, what, after, new in act(s, actor, i, view):
                    yield Step(who, whom, what), after._replace(**{field: put(getattr(after, field), i, new)})  # type: ignore[arg-type]
                if kind == "Departures" and actor != START:
                    yield Step(who, who, "stops in the middle"), s._replace(**{field: put(actors, i, START)})  # type: ignore[arg-type]
                if actor == START and kind not in ("Ingest",):
                    break  # those that have not begun are alike
        yield from self.build(s, view)
        yield from self.watch(s)

    def spend(self, s: State, what: str) -> State | None:
        """The state in which this has happened once more; None if it may not."""
        left = dict(s.left)
        if not left.get(what):
            return None
        left[what] -= 1
        return s._replace(left=tuple(left.items()))

    def outside(self, s: State) -> Iterator[Next]:
        if s.shown < len(s.log):
            kind, xact, _ = s.log[s.shown]
            what = "ann's row" if kind == "insert" else "the deletion"
            yield Step("Replica", "Primary", f"replays xact {xact} ({what})"), s._replace(shown=s.shown + 1)
        if s.shown and not s.source and (after := self.spend(s, "backs")):
            yield (
                Step("Replica", "Replica", "crashes and comes back one commit earlier"),
                after._replace(shown=s.shown - 1),
            )
        for kind, field, how in (
            ("leave", "departures", "a trigger notes a departure"),
            ("erase", "erases", "no trigger fires"),
        ):
            if after := self.spend(s, field):
                for row in sorted(self.rows(s.log)):
                    log = (*s.log, (kind, s.next_xact, frozenset({row})))
                    what = f"deletes ann's row{self.of(row[2])}, {how} (xact {s.next_xact})"
                    yield Step("Somebody", "Primary", what), after._replace(log=log, next_xact=s.next_xact + 1)
        if s.shown == len(s.log) and (after := self.spend(s, "promotions")):
            yield Step("Replica", "Replica", "is promoted with all commits, a new timeline begins"), promote(after)
        if after := self.spend(s, "losses"):
            if s.save != s.redis:
                yield Step("Redis", "Redis", "writes a save"), s._replace(save=s.redis)
            if s.save is not None:
                redis = s.save._replace(own=dict(s.left)["losses"])
                told = self.told(s.redis, redis)
                yield (
                    Step("Redis", "Redis", f"goes back to an older save, {told}"),
                    forgive(after)._replace(redis=redis),
                )
        if after := self.spend(s, "damages"):
            for what, held in self.storage.change(s.redis.held):
                day = self.storage.day
                by_hand = day(held) > day(s.redis.held) or (s.redis.by_hand and day(held) > 0)
                redis = s.redis._replace(held=held, by_hand=by_hand)
                yield Step("Somebody", "Redis", what), forgive(after)._replace(redis=redis)

    def of(self, day: int) -> str:
        return "" if self.by_group else f" of day {day}"

    def told(self, before: Redis, after: Redis) -> str:
        """What has changed in Redis."""
        found = []
        was, now = self.storage.day(before.held), self.storage.day(after.held)
        if was != now and self.by_group:
            found.append("ann is in the group now" if now else "ann leaves the group")
        elif was != now:
            found.append(f"ann's day is {now}" if now else "ann leaves")
        if before.mark != after.mark:
            found.append("her mark says: again" if after.mark == "again" else "her mark goes")
        if before.leaving_mark != after.leaving_mark:
            found.append(f"her departing mark {'says: again' if after.leaving_mark == 'again' else 'goes'}")
        if before.water != after.water:
            found.append(f"watermark is {after.water}")
        return ", ".join(found) or "which changes nothing"

    def ingest(self, s: State, actor: Actor, writer: int, view: View) -> Iterator[tuple[str, str, State, Actor]]:
        at, *facts = actor
        day = self.days[writer]
        if at == "start":
            yield (
                "Primary",
                f"begins xact {s.next_xact}",
                s._replace(next_xact=s.next_xact + 1),
                ("begun", s.next_xact, s.source),
            )
        elif at == "begun":
            row = facts[0], writer, day
            log = (*s.log, ("insert", facts[0], frozenset({row})))
            what = f"commits a row of ann{self.of(day)} (xact {facts[0]})"
            yield "Primary", what, s._replace(log=log), ("committed", *facts)
        elif at == "committed":
            redis = s.redis
            if self.is_late(redis, *facts):
                there = self.storage.holds(redis.held, day)
                told = "counted" if there else "not counted"
                yield (
                    "Redis",
                    f"comes too late, changes nothing, and acknowledges: {told}",
                    s,
                    ("counted",) if there else DONE,
                )
            else:
                redis = self.claim(self.put_in(redis, day), facts[0])
                what = f"records ann, {self.told(s.redis, redis)}, and acknowledges: counted"
                yield "Redis", what, s._replace(redis=redis), ("counted",)
            yield "Redis", "does not record ann, and acknowledges: not counted", s, DONE

    def catch_up(self, s: State, actor: Actor, index: int, view: View) -> Iterator[tuple[str, str, State, Actor]]:
        at, *facts = actor
        redis = s.redis
        if at == "start" and self.covers(view, redis):
            assert redis.cursor is not None
            seen = tuple(sorted({day for xact, _, day in view.rows if xact >= redis.cursor}))
            was = redis.cursor, redis.build, redis.own
            what = f"reads the horizon {view.horizon} and {self.rows_of(seen)}"
            yield "Replica", what, s, ("read", was, view.horizon, view.source, view.xmax - 1, seen)
        elif at == "read":
            was, horizon, source, claim, seen = facts
            if seen and self.is_late(redis, horizon, source):
                yield "Redis", "comes too late: another pass has moved the cursor", s, DONE
                return
            for day in seen:
                redis = self.claim(self.put_in(redis, day), claim)
            yield (
                "Redis",
                f"adds what it read, {self.told(s.redis, redis)}",
                s._replace(redis=redis),
                ("added", was, horizon),
            )
        elif at == "added":
            was, horizon = facts
            if (redis.cursor, redis.build, redis.own) == was:
                redis = redis._replace(cursor=horizon)
            yield "Redis", f"sets the cursor to {horizon}", s._replace(redis=redis), DONE

    def rows_of(self, seen: tuple[int, ...]) -> str:
        if not seen:
            return "no new row of ann"
        return "a row of ann" if self.by_group else f"rows of ann of day {' and '.join(map(str, seen))}"

    def row_of(self, last: int) -> str:
        """What is read of the last row."""
        return f"a row of ann{self.of(last)}" if last else "no row of ann"

    def run(self, s: State, actor: Actor, index: int, view: View) -> Iterator[tuple[str, str, State, Actor]]:
        """A repair. `about` is the build, the gap and the cursor that it began with."""
        at, *facts = actor
        redis, storage = s.redis, self.storage
        if at == "start" and redis.cursor is not None and redis.source == view.source:
            about = redis.build, self.gap(redis), redis.cursor, redis.own
            begun = redis._replace(mark=None, unswept=redis.unswept | {index})
            yield (
                "Redis",
                f"begins, reads the cursor {redis.cursor}",
                s._replace(redis=begun),
                ("looking", about),
            )
        elif at in ("looking", "looked", "fencing") and redis.cursor and redis.source != view.source:
            yield "Replica", "sees another timeline, and ends", s, DONE
        elif at == "looking" and view.horizon >= facts[0][2]:
            last, stored = view.last, storage.day(redis.held)
            found = "absent" if stored < last else "there" if stored == last else "later"
            yield (
                "Replica",
                f"reads {self.row_of(last)}" + (f", finds her {found}" if last or stored else ""),
                s,
                ("found", *facts, last, found, view.horizon, view.source),
            )
        elif at == "found":
            about, last, found, *known = facts
            if last and found == "absent":
                if self.is_late(redis, *known):
                    yield "Redis", "comes too late with its chunk, and reads it again", s, ("looking", about)
                    return
                redis = self.put_in(redis, last)
            redis = redis._replace(by_hand=redis.by_hand and found == "later")
            if not self.is_late(redis, *known):
                redis = self.put_bob(redis)
            # Its bucket is even: she was there as the table has her, or is by now.
            settled = bool(last) and (found != "later" or not self.on("later is suspected"))
            yield (
                "Redis",
                f"adds what is missing, {self.told(s.redis, redis)}",
                s._replace(redis=redis),
                ("looked", about, settled),
            )
        elif at == "looked":
            about, settled = facts
            stored = storage.day(redis.held)
            if not stored or (settled and index in redis.unswept):
                yield "Redis", "finds nobody to ask about", s, ("through", about)
            if view.horizon < about[2]:
                return
            if stored and view.last < stored:
                marked = s._replace(redis=redis._replace(mark=index))
                yield "Replica", f"sees {self.row_of(view.last)}, and marks her", marked, ("marked", about, stored)
            elif stored:
                yield (
                    "Replica",
                    f"sees {self.row_of(view.last)}",
                    s._replace(redis=redis._replace(by_hand=False)),
                    ("through", about),
                )
        elif at == "marked":
            what = f"reads the fence: watermark {redis.water}, cursor {redis.cursor}"
            yield "Redis", what, s, ("fencing", *facts, (redis.water, redis.cursor or 0, redis.source))
        elif at == "fencing":
            about, stored, was = facts
            if self.is_behind(view, was):
                return
            what = f"asks again behind the fence: {self.row_of(view.last)}"
            if view.last < stored:
                yield "Replica", what, s, ("asked", about, view.last)
            else:
                redis = redis._replace(mark=None, by_hand=False)
                yield "Replica", what, s._replace(redis=redis), ("through", about)
        elif at == "asked":
            about, instead = facts
            took = False
            if redis.mark == index:
                redis, took = self.take(redis, instead)
            if not took and not (redis.mark == "again" and not self.on("again of a run")):
                about = (*about[:2], None, about[3])  # not all were taken out
            redis = redis._replace(mark=None)
            what = f"sweeps, {self.told(s.redis, redis)}" if took else "does not sweep ann: the mark is not its own"
            yield "Redis", what, s._replace(redis=redis), ("through", about)
        elif at == "through":
            build, gap, cursor, own = facts[0]
            redis = redis._replace(unswept=redis.unswept - {index})
            settles = not gap or not self.on("only a set is settled")
            same = (redis.build, self.gap(redis), redis.own) == (build, gap, own)
            if settles and redis.cursor is not None and same:
                redis = redis._replace(size=storage.count(redis.held))
                if gap:
                    redis = redis._replace(build=-2 - index)
                if cursor is not None:
                    proved = max(cursor, redis.proved or 0)
                    redis = redis._replace(left=max(cursor, redis.left or 0), proved=proved)
            yield "Redis", "verifies the counter", s._replace(redis=redis), DONE

    def covers(self, view: View, redis: Redis) -> bool:
        return redis.cursor is not None and redis.source == view.source and view.horizon >= redis.cursor

    def is_behind(self, view: View, was: tuple[int, int, int]) -> bool:
        """Whether the replica lacks something that was acknowledged, or relied on."""
        water, cursor, source = was
        return view.source != source or view.horizon < cursor or view.horizon <= water

    def resolve(self, s: State, actor: Actor, index: int, view: View) -> Iterator[tuple[str, str, State, Actor]]:
        at, *facts = actor
        redis = s.redis
        if at == "start" and redis.left is not None and self.covers(view, redis):
            assert redis.cursor is not None
            until, was = redis.cursor, (redis.left, redis.build, redis.own)
            found = {day for xact, day in view.departures if redis.left <= xact < until}
            leaving = {day for day in found if view.last < day}
            if not self.on("day of a departure") and view.last:
                leaving = set()
            if leaving:
                noted = redis._replace(leaving=index, leaving_mark=None)
                what = f"reads ann's departure{self.of(max(leaving))}, sees {self.row_of(view.last)}"
                yield "Replica", what, s._replace(redis=noted), ("marking", (was, until), max(leaving))
            elif until != redis.left:
                what = f"finds nothing to take out, left_through is {until}"
                yield "Replica", what, s._replace(redis=redis._replace(left=until)), START
        elif at == "marking":
            if redis.leaving != index:
                yield "Redis", "finds that another batch has begun", s, START
            else:
                yield (
                    "Redis",
                    "marks ann as departing",
                    s._replace(redis=redis._replace(leaving_mark=index)),
                    ("marked", *facts),
                )
        elif at == "marked":
            what = f"reads the fence: watermark {redis.water}, cursor {redis.cursor}"
            yield "Redis", what, s, ("fencing", *facts, (redis.water, redis.cursor or 0, redis.source))
        elif at == "fencing":
            about, day, was = facts
            if view.source != was[2]:
                yield "Replica", "sees another timeline, and ends", s, START
                return
            if self.is_behind(view, was) and self.on("last day behind the fence"):
                return
            what = f"asks again behind the fence: {self.row_of(view.last)}"
            yield "Replica", what, s, ("asked", about, view.last) if view.last < day else ("resolved", about)
        elif at == "asked":
            about, instead = facts
            if redis.leaving_mark == "again" and self.on("begins again"):
                yield "Redis", "finds the mark: again, and begins again", s, START
                return
            if redis.leaving_mark == index:
                redis, _ = self.take(redis, instead)
                redis = redis._replace(leaving_mark=None)
            what = self.told(s.redis, redis)
            yield "Redis", f"takes out what is marked, {what}", s._replace(redis=redis), ("resolved", about)
        elif at == "resolved":
            was, until = facts[0]
            if (redis.left, redis.build, redis.own) == was and redis.leaving == index:
                redis = redis._replace(left=until, leaving=None, leaving_mark=None)
            yield (
                "Redis",
                f"notes the departure as resolved, left_through is {redis.left}",
                s._replace(redis=redis),
                START,
            )

    def watch(self, s: State) -> Iterator[Next]:
        """The keeper looks at what is kept beside the elements, and makes a counter cold."""
        redis, held = s.redis, s.redis.held
        if redis.cursor is not None and (self.gap(redis) or not self.storage.whole(held)):
            cold = s._replace(redis=redis._replace(cursor=None))
            yield Step("Keeper", "Redis", "finds that keys do not fit together, and makes the counter cold"), cold
        if self.by_group and held.size is not None and held.members != held.size and (after := self.spend(s, "drops")):
            token = dict(after.left)["drops"] if self.on("token of a drop") else 0
            moved, held = self.storage.drop(held, token)
            redis = redis._replace(held=held, size=redis.size + moved, unswept=frozenset(), by_hand=False)
            yield Step("Keeper", "Redis", "finds the group changed, and drops it"), after._replace(redis=redis)

    def mend(self, s: State, actor: Actor, index: int, view: View) -> Iterator[tuple[str, str, State, Actor]]:
        """Read a group again that was dropped."""
        at, *facts = actor
        redis = s.redis
        if at == "start" and self.by_group and redis.cursor is not None and redis.held.broken is not None:
            was = redis.held.broken, redis.build, redis.own
            fence = redis.water, redis.cursor, redis.source
            yield (
                "Redis",
                f"begins, reads the fence: watermark {redis.water}, cursor {redis.cursor}",
                s,
                ("begun", was, fence),
            )
        elif at == "begun":
            was, fence = facts
            if view.source != fence[2]:
                yield "Replica", "sees another timeline, and ends", s, START
                return
            behind = self.is_behind(view, fence) if self.on("fence of a mend") else view.horizon < fence[1]
            if not behind:
                yield (
                    "Replica",
                    f"reads {self.row_of(view.last)}",
                    s,
                    ("read", was, fence, view.last, view.horizon, view.source),
                )
        elif at == "read":
            was, fence, last, *known = facts
            if self.is_late(redis, *known) and self.on("late mends"):
                yield "Redis", "comes too late with its chunk, and reads it again", s, ("begun", was, fence)
                return
            redis = self.put_bob(self.put_in(redis, last) if last else redis)
            yield "Redis", f"adds what it read, {self.told(s.redis, redis)}", s._replace(redis=redis), ("added", was)
        elif at == "added":
            token, build, own = facts[0]
            same = redis.held.broken == token or not self.on("compare the drop")
            same = same and (redis.own == own or not self.on("history of a mend"))
            if redis.cursor is not None and redis.build == build and same:
                redis = redis._replace(held=redis.held._replace(broken=None))
            what = "notes that the group was read again" if redis != s.redis else "leaves the group as it is"
            yield "Redis", what, s._replace(redis=redis), START

    def build(self, s: State, view: View) -> Iterator[Next]:
        at, *facts = s.builder
        redis, fill = s.redis, s.redis.fill
        who = "Build"
        if at == "start":
            if redis.cursor is None or redis.source < view.source:
                if fill is not None:
                    yield Step(who, who, "goes on with the fill"), s._replace(builder=("filling", fill.token))
                elif after := self.spend(s, "fills"):
                    yield self.begin(after, view, 1 + dict(after.left)["fills"])
        elif at == "filling":
            if fill is None or fill.token != facts[0]:
                yield Step(who, who, "stops"), s._replace(builder=START)
            elif view.source != fill.source:
                if after := self.spend(s, "fills"):
                    yield self.begin(after, view, 1 + dict(after.left)["fills"])
            elif view.lsn >= fill.lsn:
                what = f"reads {self.row_of(view.last)}"
                yield Step(who, "Replica", what), s._replace(builder=("read", facts[0], view.last))
        elif fill is None or fill.token != facts[0]:
            yield Step(who, who, "stops"), s._replace(builder=START)
        elif self.gap(redis) != fill.gap:
            yield (
                Step(who, who, "finds something changed, and stops"),
                s._replace(redis=redis._replace(fill=None), builder=START),
            )
        elif at == "read":
            redis = self.put_bob(self.put_in(redis, facts[1]) if facts[1] else redis)
            what = f"adds its chunk, {self.told(s.redis, redis)}"
            yield Step(who, "Redis", what), s._replace(redis=redis, builder=("filled", facts[0]))
        elif at == "filled":
            redis = redis._replace(
                cursor=fill.horizon,
                source=fill.source,
                build=fill.token,
                fill=None,
                left=None,
                leaving=None,
                proved=None,
            )
            what = f"completes the counter with cursor {fill.horizon}"
            yield Step(who, "Redis", what), s._replace(redis=redis, builder=START)

    def begin(self, s: State, view: View, token: int) -> Next:
        redis, storage = s.redis, self.storage
        count = storage.count(redis.held)
        lost = not redis.build or (count == 0 and redis.size)
        if lost:
            redis = redis._replace(cursor=None)
        if count == 0:
            redis = redis._replace(size=0)
        what = f"begins a fill: horizon {view.horizon}"
        if count == 0 or self.gap(redis) != 0 or not storage.whole(redis.held):
            if self.on("begins with nothing"):
                redis = redis._replace(held=storage.clear(redis.held), by_hand=False)
                s, what = forgive(s), f"{what}, with nothing"
                redis = redis._replace(size=0, cursor=None)
            else:
                redis = redis._replace(size=count)
        redis = redis._replace(fill=Fill(token, view.source, view.horizon, view.lsn, self.gap(redis)))
        redis = self.claim(redis, max(view.horizon - 1, view.xmax - 1))
        return Step("Build", "Redis", what), s._replace(redis=redis, builder=("filling", token))

    # What must hold

    def broken_promise(self, s: State) -> str | None:
        redis = s.redis
        if not self.live(redis):
            return None
        assert redis.cursor is not None
        if self.has_bob and not self.storage.has_bob(redis.held):
            return "completeness of others"
        stored, rows = self.storage.day(redis.held), self.rows(s.log)
        if self.by_group and redis.held.size is None:
            stored = 0
        if stored and redis.by_hand:
            return "soundness"
        late = "" if self.by_group else " of a day"
        for xact, writer, day in rows:
            if day > stored:
                if writer >= 0 and s.ingests[writer] == ("counted",):
                    return f"read your write{late}"
                if xact < redis.cursor:
                    return f"completeness{late}"
        if stored > max((day for _, _, day in rows), default=0):
            # A departure is done where the member still has a row of that day or a later one: that one has its own.
            gone = [each for each in s.log if each[0] in ERASES and any(day >= stored for _, _, day in each[2])]
            left = {xact for kind, xact, _ in gone if kind == "leave" and xact < (redis.left or 0)}
            proved = {xact for _, xact, _ in gone if xact < (redis.proved or 0)}
            if gone and len(left | proved) == len(gone):
                return f"{'departure' if len(left) == len(gone) else 'proof'}{late}"
        return None


_FIELDS = {"Ingest": "ingests", "Run": "runs", "Catch-up": "passes", "Departures": "departers", "Mend": "menders"}


def forgive(s: State) -> State:
    """What was acknowledged may be gone, until catch-up counts it again."""
    return s._replace(ingests=tuple(DONE if actor == ("counted",) else actor for actor in s.ingests))


def promote(s: State) -> State:
    """Nothing that was committed is lost. Transactions that were open have ended."""
    ended = tuple(("none", actor[1], frozenset[Row]()) for actor in s.ingests if actor[0] == "begun")
    ingests = tuple(DONE if actor[0] == "begun" else actor for actor in s.ingests)
    log = s.log + ended
    return s._replace(log=log, shown=len(log), source=s.source + 1, ingests=ingests)


def search(
    storage: str,
    days: tuple[int, ...] = (1,),
    old: tuple[int, ...] = (),
    runs: int = 0,
    passes: int = 0,
    departers: int = 0,
    menders: int = 0,
    *,
    warm: bool = True,
    without: Set[str] = frozenset(),
    **left: int,
) -> Result:
    """Look at every state that can be reached, as `search.search` does."""
    model = Elements(storage, Rules(frozenset(without), RULES), days, old, bool(left.get("damages")))
    redis = Redis(held=model.storage.empty)
    if warm:
        for day in old:
            redis = model.put_in(redis, day)
        redis = model.put_bob(redis)._replace(cursor=1, build=-1, left=1, proved=1)
    start = State(
        log=(),
        next_xact=1,
        shown=0,
        source=0,
        redis=redis,
        ingests=(START,) * len(days),
        runs=(START,) * runs,
        passes=(START,) * passes,
        departers=(START,) * departers,
        menders=(START,) * menders,
        builder=START,
        left=tuple(sorted(left.items())),
    )
    return explore(start, model.nexts, model.broken_promise)


def explore(
    start: State, nexts: Callable[[State], Iterator[Next]], broken_promise: Callable[[State], str | None]
) -> Result:
    came_from: dict[State, State | None] = {start: None}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if broken := broken_promise(state):
            path = [state]
            while (before := came_from[path[-1]]) is not None:
                path.append(before)
            path.reverse()
            steps = [next(step for step, after in nexts(before) if after == state) for before, state in pairwise(path)]
            return Result(broken, len(came_from), steps)
        for _, after in nexts(state):
            if after not in came_from:
                came_from[after] = state
                waiting.append(after)
    return Result(None, len(came_from), [])
