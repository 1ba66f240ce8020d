"""Exhaustive search over the counting protocol: one member of one counter, every interleaving of

    ingests   (xact taken at begin, commits in any order, the Redis step may fail)
    an eraser, the replica's replay, the replica coming back earlier than it was
    sweeps, catch-up passes, a build that may die and be gone on with
    Redis losing everything, or going back to an older save

Two things must hold in every state:

    completeness      a committed row, not erased, whose xact is below the cursor  =>  the member is in the set
    read your write   acknowledged as counted, not erased since, Redis lost nothing since  =>  the member is in the set

Each rule of the protocol has a name; `search(..., without={"fence"})` leaves it out and finds the interleaving that breaks.

The actors' steps are those of the code: `shared_models/lua`, `manage_service/catching_up.py`, `building.py`, `sweeping.py`.
By hand: `python -m tests.protocol.search ingests erases sweeps passes losses backs warm [rule left out …]`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

RULES = {
    "token": "a sweep takes out only what carries its own mark",
    "fence": "a sweep asks again once the replica shows the watermark",
    "cursor fence": "... and all that is below the cursor, which a replica that came back earlier does not",
    "claim": "... and what a pass that is under way is about to claim",
    "unmark": "recording takes the mark off",
    "unmark in catch-up": "catching up takes the mark off",
    "compare": "a pass sets the cursor only where it is still the one that it started from",
    "one connection": "a pass over a broken connection is void",
    "horizon": "the cursor is the horizon, not the highest xact seen",
    "fill lsn": "a chunk of a fill comes from a snapshot that is not earlier than the fill's first",
    "fill position": "a fill's position and its members are one atomic step",
}


class Redis(NamedTuple):
    """What is in Redis. `fill` is (token, horizon, lsn, chunk done)."""

    live: bool = False
    mark: int | None = None
    water: int = 0
    cursor: int | None = None
    fill: tuple[int, int, int, bool] | None = None


class State(NamedTuple):
    """Everything. `wal` is (kind, xact) in the order of commits, of which the replica shows the first `replayed`."""

    wal: tuple[tuple[str, int], ...]
    replayed: int
    next_xact: int
    redis: Redis
    save: Redis | None
    incarnation: int  # how often Redis has lost something
    ingests: tuple[tuple[str, int, int], ...]
    erases: int
    sweeps: tuple[tuple[str, int, int], ...]  # where it is, its fence, the cursor that it must show
    passes: tuple[tuple[str, int | None, bool, int, int], ...]
    builder: tuple[Any, ...]
    fills: int
    losses: int
    backs: int


def rows(wal: tuple[tuple[str, int], ...], shown: int) -> set[int]:
    """The xacts of the rows that the first `shown` commits leave."""
    live: set[int] = set()
    for kind, xact in wal[:shown]:
        live = live | {xact} if kind == "insert" else set()
    return live


def search(
    ingests: int = 1,
    erases: int = 1,
    sweeps: int = 1,
    passes: int = 1,
    losses: int = 0,
    backs: int = 0,
    warm: bool = True,
    without: frozenset[str] | set[str] = frozenset(),
) -> tuple[str | None, int]:
    """The promise that was broken (None: none in any interleaving), and how many states were seen."""
    if unknown := set(without) - set(RULES):
        raise ValueError(f"no such rule: {unknown}")
    start = State(
        wal=(),
        replayed=0,
        next_xact=1,
        redis=Redis(cursor=1 if warm else None),
        save=None,
        incarnation=0,
        ingests=(("idle", 0, 0),) * ingests,
        erases=erases,
        sweeps=(("start", 0, 0),) * sweeps,
        passes=(("start", None, False, 0, 0),) * passes,
        builder=("start",),
        fills=0,
        losses=losses,
        backs=backs,
    )
    model = Model(frozenset(without))
    seen, stack = {start}, [start]
    while stack:
        state = stack.pop()
        if broken := violated(state):
            return broken, len(seen)
        for after in model.nexts(state):
            if after not in seen:
                seen.add(after)
                stack.append(after)
    return None, len(seen)


def violated(s: State) -> str | None:
    """Which of the two promises does not hold here."""
    truth = rows(s.wal, len(s.wal))
    if s.redis.live:
        return None
    if s.redis.cursor is not None and any(xact < s.redis.cursor for xact in truth):
        return "completeness"
    if any(at == "counted" and xact in truth and inc == s.incarnation for at, xact, inc in s.ingests):
        return "read your write"
    return None


def put(actors: tuple, index: int, actor: tuple) -> tuple:
    return (*actors[:index], actor, *actors[index + 1 :])


class Model:
    """The steps, with some rules left out."""

    def __init__(self, without: frozenset[str]) -> None:
        self.without = without

    def on(self, rule: str) -> bool:
        return rule not in self.without

    def horizon(self, s: State) -> int:
        done = {xact for _, xact in s.wal[: s.replayed]}
        latest = max(done, default=0)
        if not self.on("horizon"):
            return latest + 1
        return min([xact for xact in range(1, latest + 1) if xact not in done] + [latest + 1])

    def recorded(self, redis: Redis, xact: int = 0) -> Redis:
        mark = None if self.on("unmark") else redis.mark
        return redis._replace(live=True, mark=mark, water=max(redis.water, xact))

    def nexts(self, s: State) -> Iterator[State]:
        if s.replayed < len(s.wal):
            yield s._replace(replayed=s.replayed + 1)
        if s.backs and s.replayed:
            yield s._replace(replayed=s.replayed - 1, backs=s.backs - 1)
        if s.erases:
            wal = (*s.wal, ("erase", s.next_xact))
            yield s._replace(wal=wal, next_xact=s.next_xact + 1, erases=s.erases - 1)
        yield from self.ingest(s)
        yield from self.sweep(s)
        yield from self.catch_up(s)
        yield from self.build(s)
        if s.losses:
            lost = {"incarnation": s.incarnation + 1, "losses": s.losses - 1}
            if s.save != s.redis:
                yield s._replace(save=s.redis)
            yield s._replace(redis=Redis(), **lost)
            if s.save is not None:
                yield s._replace(redis=s.save, **lost)

    def ingest(self, s: State) -> Iterator[State]:
        for i, (at, xact, _) in enumerate(s.ingests):
            if at == "idle":
                yield s._replace(next_xact=s.next_xact + 1, ingests=put(s.ingests, i, ("begun", s.next_xact, 0)))
            elif at == "begun":
                wal = (*s.wal, ("insert", xact))
                yield s._replace(wal=wal, ingests=put(s.ingests, i, ("committed", xact, 0)))
            elif at == "committed":
                counted = put(s.ingests, i, ("counted", xact, s.incarnation))
                yield s._replace(redis=self.recorded(s.redis, xact), ingests=counted)
                yield s._replace(ingests=put(s.ingests, i, ("uncounted", xact, 0)))

    def sweep(self, s: State) -> Iterator[State]:
        for i, (at, fence, cursor) in enumerate(s.sweeps):
            token = i if self.on("token") else 0
            here = rows(s.wal, s.replayed)
            if at == "start" and s.redis.cursor is not None:
                suspect = s.redis.live and not here
                redis = s.redis._replace(mark=token if suspect else None)  # begins by forgetting older marks
                yield s._replace(redis=redis, sweeps=put(s.sweeps, i, ("marked" if suspect else "done", 0, 0)))
            elif at == "marked":
                fence = s.redis.water if self.on("fence") else 0
                cursor = (s.redis.cursor or 0) if self.on("cursor fence") else 0
                yield s._replace(sweeps=put(s.sweeps, i, ("fencing", fence, cursor)))
            elif at == "fencing" and self.horizon(s) > fence and self.horizon(s) >= cursor:
                yield s._replace(sweeps=put(s.sweeps, i, ("done" if here else "asked", 0, 0)))
            elif at == "asked":
                hit = s.redis.mark == token
                redis = s.redis._replace(live=False, mark=None) if hit else s.redis
                yield s._replace(redis=redis, sweeps=put(s.sweeps, i, ("done", 0, 0)))

    def catch_up(self, s: State) -> Iterator[State]:
        for i, (at, began, saw, horizon, inc) in enumerate(s.passes):
            intact = inc == s.incarnation or not self.on("one connection")
            if at == "start" and s.redis.cursor is not None:
                if self.horizon(s) >= s.redis.cursor:
                    saw = any(xact >= s.redis.cursor for xact in rows(s.wal, s.replayed))
                    read = ("read", s.redis.cursor, saw, self.horizon(s), s.incarnation)
                    yield s._replace(passes=put(s.passes, i, read))
            elif at in ("read", "added") and not intact:
                yield s._replace(passes=put(s.passes, i, ("done", None, False, 0, 0)))
            elif at == "read":
                redis = s.redis
                if saw:
                    mark = None if self.on("unmark in catch-up") else redis.mark
                    claim = horizon - 1 if self.on("claim") else 0
                    redis = redis._replace(live=True, mark=mark, water=max(redis.water, claim))
                yield s._replace(redis=redis, passes=put(s.passes, i, ("added", began, saw, horizon, inc)))
            elif at == "added":
                same = s.redis.cursor == began or not self.on("compare")
                redis = s.redis._replace(cursor=horizon) if same else s.redis
                yield s._replace(redis=redis, passes=put(s.passes, i, ("done", None, False, 0, 0)))

    def build(self, s: State) -> Iterator[State]:
        at, *facts = s.builder
        if at == "start" and s.redis.cursor is None:
            if s.redis.fill is not None:  # left by one that died
                yield s._replace(builder=("filling",))
            elif s.fills < 2:
                fill = (s.fills, self.horizon(s), s.replayed, False)
                yield s._replace(redis=s.redis._replace(fill=fill), fills=s.fills + 1, builder=("filling",))
        elif at == "filling":
            if s.redis.fill is None:
                yield s._replace(builder=("start",))
            else:
                token, _, lsn, done = s.redis.fill
                if done:
                    yield s._replace(builder=("filled", token))
                elif s.replayed >= lsn or not self.on("fill lsn"):
                    yield s._replace(builder=("read", token, bool(rows(s.wal, s.replayed))))
        elif at == "read":
            token, saw = facts
            redis = s.redis
            if redis.fill is not None and redis.fill[0] == token and not redis.fill[3]:
                if not self.on("fill position"):  # the position first, the members in a step of their own
                    redis = redis._replace(fill=(*redis.fill[:3], True))
                    yield s._replace(redis=redis, builder=("late", token, saw))
                    return
                redis = self.recorded(redis) if saw else redis
                redis = redis._replace(fill=(*s.redis.fill[:3], True))  # type: ignore[index]
            yield s._replace(redis=redis, builder=("filling",))
        elif at == "late":
            token, saw = facts
            yield s._replace(redis=self.recorded(s.redis) if saw else s.redis, builder=("filling",))
        elif at == "filled":
            redis = s.redis
            if redis.fill is not None and redis.fill[0] == facts[0] and redis.fill[3]:
                redis = redis._replace(cursor=redis.fill[1], fill=None)
            yield s._replace(redis=redis, builder=("start",))
        if at not in ("start",) and s.losses:  # may die wherever Redis may
            yield s._replace(builder=("start",))


if __name__ == "__main__":
    numbers, rules = [int(word) for word in sys.argv[1:8]], set(sys.argv[8:])
    broken, states = search(*numbers[:6], warm=bool(numbers[6]), without=rules)
    print(f"{'holds' if broken is None else 'BROKEN: ' + broken} in {states:,} states")
