"""An interleaving in words: each step as who does what to whom, for the terminal and for docs/protocol.md.

The member is called ann. The rest of the set is "the others". `python -m tests.protocol.telling` searches once
for each rule and writes into docs/protocol.md what breaks without it; `test_rules` compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

from tests.protocol.state import START, Actor, Left, Redis, State

PROMISES = {
    "completeness": "ann has a committed row below the cursor, and is not in the set",
    "read your write": "ann was acknowledged as counted, and is not in the set",
    "soundness": "somebody put ann into the set by hand, she has no row, and the counter is live",
    "departure": "ann has no row, her departure counts as resolved, and she is in the set",
    "foreign row": "ann has a row that was read, and is not in the set",
    "attached row": "ann has a row in a part that was attached before complete_through, and is not in the set",
    "completeness of a day": "ann has a committed row below the cursor, of a later day than the one that is stored",
    "completeness of others": "bob has a row, and is not counted",
    "read your write of a day": "ann's row was acknowledged as counted, and the stored day is earlier",
    "departure of a day": "the departure of ann's last row counts as resolved, and the stored day is still that one",
    "proof": "a run has verified the counter, and ann, who had no row any more, is in the group",
    "proof of a day": "a run has verified the counter, and the stored day is later than that of ann's last row",
}


PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"


class Step(NamedTuple):
    """`who` does `what` to `whom`, or asks `whom`. Both are the same if nobody else is involved."""

    who: str
    whom: str
    what: str


def tell(path: Sequence[State]) -> list[Step]:
    """The steps of an interleaving, from a start to a broken promise."""
    return join(step(before, after) for before, after in pairwise(path))


def join(told_steps: Iterable[Step]) -> list[Step]:
    """The steps; two that belong together become one."""
    steps: list[Step] = []
    for told in told_steps:
        last = steps[-1] if steps else None
        if last and last.who == told.who and (last.what, told.what) in _TOGETHER:
            steps[-1] = told._replace(what=_TOGETHER[last.what, told.what])
        elif told.what != "has read all chunks":
            steps.append(told)
    return steps


def as_lines(steps: Sequence[Step]) -> list[str]:
    return [f"{number}. **{step.who}** {step.what}" for number, step in enumerate(steps, 1)]


def as_diagram(steps: Sequence[Step], broken: str) -> list[str]:
    """Mermaid's text of a sequence diagram."""
    names = dict.fromkeys(name for step in steps for name in (step.who, step.whom))
    order = [name for kind in _ORDER for name in names if name.startswith(kind)]
    lines = [_SIZE, "sequenceDiagram", *(f"participant {_id(name)} as {name}" for name in order)]
    for who, whom, what in steps:
        what = "<br/>".join(wrap(what, _LETTERS))
        if who == whom:
            lines.append(f"Note over {_id(who)}: {what}")
        else:
            lines.append(f"{_id(who)}->>{_id(whom)}: {what}")
    return [*lines, f"Note over {_id(order[0])},{_id(order[-1])}: broken: {PROMISES[broken]}"]


# Narrow enough for a page: a wider diagram is scaled down, and its letters become too small.
_SIZE = '%%{init: {"sequence": {"actorMargin": 15, "width": 90, "height": 40}}}%%'
_LETTERS = 24

_ORDER = (
    "Ingest",
    "Deleter",
    "Somebody",
    "Primary",
    "Replica",
    "Catch-up",
    "Run",
    "Build",
    "Departures",
    "Mend",
    "Keeper",
    "Redis",
)


def _id(name: str) -> str:
    return name.replace(" ", "").replace("-", "")


def step(before: State, after: State) -> Step:
    """What happened between two neighbouring states."""
    if before.old is not None and before.redis == after.redis and before.old != after.old:
        assert after.old is not None
        told = step(*(each._replace(redis=old) for each, old in ((before, before.old), (after, after.old))))
        return told._replace(what=f"at the old primary of Redis: {told.what}")
    redis, spent = ", ".join(_effects(before.redis, after.redis)), _spent(before.left, after.left)
    if spent in _OUTSIDE:
        return _OUTSIDE[spent](before, after, redis)
    for kind, field in (("Ingest", "ingests"), ("Catch-up", "passes"), ("Run", "runs"), ("Departures", "departers")):
        for index, (old, new) in enumerate(zip(getattr(before, field), getattr(after, field), strict=True)):
            if old != new:
                many = len(getattr(before, field)) > 1
                return _ACTORS[kind](f"{kind} {index + 1}" if many else kind, old, new, before, after, redis)
    for index, (old, new) in enumerate(zip(before.deleters, after.deleters, strict=True)):
        who = f"Deleter {index + 1}" if len(before.deleters) > 1 else "Deleter"
        if old == START != new:
            return Step(who, "Primary", f"begins xact {new[1]}")
        if old != new:
            return Step(who, "Primary", f"deletes ann's rows, a trigger notes a departure (xact {old[1]})")
    if before.replicas != after.replicas:
        return _replays(before, after)
    if before.builder != after.builder or before.left.fills != after.left.fills:
        return _builds(before, after, redis)
    if before.departers and before.redis != after.redis and before.redis.left != after.redis.left:
        return Step("Departures", "Redis", _departures_read(after.redis.left))
    return _mends(before, after, redis)


def _spent(before: Left, after: Left) -> str:
    spent = [field for field in Left._fields if getattr(before, field) > getattr(after, field) and field != "fills"]
    return spent[0] if spent else ""


def _effects(old: Redis, new: Redis) -> Iterator[str]:
    """What has changed in Redis. The size is told only if somebody may change a set by hand: else it follows the set."""
    if old.member != new.member:
        yield "ann is in the set now" if new.member else "ann leaves the set"
    if old.rest != new.rest:
        yield "the others are in the set now" if new.rest else "the others leave the set"
    if old.mark != new.mark:
        yield "ann is marked" if new.mark is not None else "her mark is removed"
    if old.leaving_mark != new.leaving_mark:
        yield "ann is marked as departing" if new.leaving_mark is not None else "her departing mark is removed"
    for name, field in (("cursor", "cursor"), ("size", "size"), ("left_through", "left")):
        was, now = getattr(old, field), getattr(new, field)
        if was != now and (field != "size" or old.rest or new.rest):
            yield f"{name} is removed" if now is None else f"{name} is {now}"
    if (old.water, old.water_source) != (new.water, new.water_source):
        timeline = f" of timeline {new.water_source + 1}" if new.water_source or old.water_source else ""
        yield f"watermark is {new.water}{timeline}"
    if old.change != new.change:
        yield f"the table is noted {'with' if new.attached else 'without'} the part"
    if old.settled != new.settled and new.settled == new.change:
        yield "the change is settled"
    if old.through != new.through:
        yield _claims(new)
    if (old.build, old.intake_build) != (new.build, new.intake_build) and new.intake_build != new.build:
        yield "the two hashes name different builds"


def _claims(redis: Redis) -> str:
    return f"complete_through claims {redis.through} commit{'s' if redis.through != 1 else ''}"


# What comes from outside


def _by(who: str, what: str) -> Any:
    return lambda before, after, redis: Step(who, "Primary", f"{what} (xact {after.histories[-1][-1][1]})")


def _other(before: State, after: State, redis: str) -> Step:
    xact = after.histories[-1][-1][1]
    if redis:
        return Step("Ingest", "Redis", f"commits a row of somebody else (xact {xact}) and records it, {redis}")
    return Step("Ingest", "Primary", f"commits a row of somebody else (xact {xact}), not counted yet")


def _rewritten(before: State, after: State, redis: str) -> Step:
    kind, xact, _ = after.histories[-1][-1]
    how = "changes the type of a column" if kind == "alter" else "empties the table and loads it again"
    return Step("Somebody", "Primary", f"{how}, the table gets a new file (xact {xact})")


def _lost(before: State, after: State, redis: str) -> Step:
    what = "loses everything" if after.redis == Redis(own=after.redis.own) else "goes back to an older save"
    return Step("Redis", "Redis", f"{what}, {redis}" if redis else what)


def _failed_over(before: State, after: State, redis: str) -> Step:
    what = "fails over to a replica, the old primary does not notice it"
    return Step("Redis", "Redis", f"{what}, {redis}" if redis else what)


def _changed(before: State, after: State, redis: str) -> Step:
    old, new = before.redis, after.redis
    if old.intake_build is not None and new.intake_build is None:
        what = "deletes the intake hash" if old.held == new.held else "deletes the set and the intake hash"
    elif (old.rest and not new.rest) or (old.held and not new.held and old.member and not old.rest):
        what = "deletes the set"
    else:
        what = "removes ann from the set by hand" if old.member else "adds ann to the set by hand"
    return Step("Somebody", "Redis", what)


def _poisoned(before: State, after: State, redis: str) -> Step:
    what = "removes the watermark" if after.redis.water is None else "writes a watermark that is far too high"
    return Step("Somebody", "Redis", what)


def _crashed(before: State, after: State, redis: str) -> Step:
    return Step("Primary", "Primary", "crashes, and comes back with what was on its disk")


def _promoted(before: State, after: State, redis: str) -> Step:
    lost = len(before.histories[-1]) - after.fork
    lacks = (
        f"without the last {lost} commits" if lost > 1 else "without the last commit" if lost else "with all commits"
    )
    return Step(_replica(after, 0), _replica(after, 0), f"is promoted {lacks}, a new timeline begins")


def _back(before: State, after: State, redis: str) -> Step:
    return _replays(before, after)


_OUTSIDE: dict[str, Any] = {
    "erases": _by("Somebody", "deletes ann's rows, no trigger fires"),
    "departures": _by("Somebody", "deletes ann's rows, a trigger notes a departure"),
    "empties": _by("Somebody", "empties the table by TRUNCATE, a trigger notes a departure that means all"),
    "prunes": _by("Ingest", "prunes old departures"),
    "loads": _by("Somebody", "loads a row of ann that has an xact of another history"),
    "burns": _by("Somebody", "commits a transaction that writes no row"),
    "attaches": _by("Somebody", "attaches a part that has an old row of ann"),
    "detaches": _by("Somebody", "detaches the part"),
    "others": _other,
    "rewrites": _rewritten,
    "losses": _lost,
    "failovers": _failed_over,
    "damages": _changed,
    "poisons": _poisoned,
    "crashes": _crashed,
    "promotions": _promoted,
    "backs": _back,
}


def _replica(s: State, index: int) -> str:
    return f"Replica {index + 1}" if len(s.replicas) > 1 else "Replica"


def _replays(before: State, after: State) -> Step:
    for index, (old, new) in enumerate(zip(before.replicas, after.replicas, strict=True)):
        if old == new:
            continue
        who = _replica(before, index)
        if new.history > old.history:
            name = "names the new timeline" if new.named else "still names the old timeline"
            return Step(who, who, f"follows the new primary, {name}")
        if new.history == old.history and new.named > old.named:
            return Step(who, who, "names the new timeline")
        if new.shown < old.shown:
            return Step(who, who, "crashes and comes back one commit earlier")
        kind, xact, _ = after.histories[new.history][new.shown - 1]
        return Step(who, "Primary", f"replays xact {xact} ({_KINDS[kind]})")
    raise AssertionError("no replica has moved")


_KINDS = {
    "insert": "ann's row",
    "erase": "the deletion",
    "leave": "the deletion",
    "empty": "the TRUNCATE",
    "prune": "the pruning",
    "load": "the loaded row",
    "other": "somebody else's row",
    "none": "no row",
    "alter": "the new file",
    "reload": "the new file",
    "attach": "the part is attached",
    "detach": "the part is detached",
}


# The actors


def _ingests(who: str, old: Actor, new: Actor, before: State, after: State, redis: str) -> Step:
    if new[0] == "begun":
        return Step(who, "Primary", f"begins xact {new[1]}")
    if new[0] == "committed":
        where = " on the old primary" if old[2] < len(after.histories) - 1 else ""
        return Step(who, "Primary", f"commits a row of ann{where} (xact {new[1]})")
    if new[0] == "counted":
        return Step(who, "Redis", f"records ann, {redis or 'which changes nothing'}, and acknowledges: counted")
    return Step(who, "Redis", "does not record ann, and acknowledges: not counted")


def _passes(who: str, old: Actor, new: Actor, before: State, after: State, redis: str) -> Step:
    if new[0] == "begun":
        return Step(who, "Redis", "begins, reads the cursor and which table is noted")
    if new[0] == "noting":
        return Step(who, _shown(after), f"reads the horizon {new[2].horizon}, sees another table")
    if old[0] == "noting":
        return Step(who, "Redis", redis or "finds this table noted already")
    if new[0] == "read":
        _, _, horizon, *_, claim = new
        saw = "a row of ann" if claim is not None else "no new row of ann"
        return Step(who, _shown(after), f"reads the horizon {horizon} and {saw}")
    if new[0] == "added":
        return Step(who, "Redis", f"adds what it read, {redis}" if redis else "adds nothing new")
    if old[0] == "read":
        return Step(who, "Redis", "comes too late: another pass has moved the cursor")
    if before.redis == after.redis:
        return Step(who, "Redis", "leaves the cursor as it is")
    claimed = [effect for effect in _effects(before.redis, after.redis) if effect.startswith("complete_through")]
    return Step(who, "Redis", ", ".join([f"sets the cursor to {after.redis.cursor}", *claimed]))


def _runs(who: str, old: Actor, new: Actor, before: State, after: State, redis: str) -> Step:
    was, now = old[0], new[0]
    if now == "noted":
        return Step(
            who,
            _shown(after),
            f"looks at the table, {redis}" if redis else "looks at the table, it is the noted one",
        )
    if now == "start":
        return Step(who, _shown(after), "sees another table than the noted one, and starts again")
    if was in ("start", "noted"):
        return Step(who, "Redis", f"begins, {redis}" if redis else "begins, reads cursor and watermark")
    if now == "seen":
        return Step(who, _shown(after), "reads a row of ann" if "row" in new[3] else "reads no row of ann")
    if was == "seen":
        if now == "looking":
            return Step(who, "Redis", "comes too late with its chunk, and reads it again")
        return Step(who, "Redis", f"adds what it read, {redis}" if redis else "adds nothing new")
    if now == "marked":
        return Step(who, "Redis", "finds no row of ann on the replica, and marks her")
    if now == "fencing":
        return Step(who, "Redis", f"reads the fence: watermark {new[-1].water}, cursor {new[-1].cursor}")
    if now == "asked":
        return Step(who, _shown(after), "asks again behind the fence: no row of ann")
    if was == "fencing":
        return Step(who, _shown(after), "asks again behind the fence: ann has a row")
    if was == "asked":
        return Step(who, "Redis", f"sweeps, {redis}" if "leaves" in redis else "does not sweep ann: the mark is gone")
    if was == "looked through":
        return Step(who, "Redis", f"verifies the counter, {redis}" if redis else "verifies the counter")
    return Step(who, _shown(after), "has nobody to remove")


def _departs(who: str, old: Actor, new: Actor, before: State, after: State, redis: str) -> Step:
    was, now = old[0], new[0]
    if now == "marking":
        read = f"reads ann's departure below {new[1][1]}, she has no row"
        return Step(who, _shown(after), f"{read}, {redis}" if redis else read)
    if now == "marked":
        return Step(who, "Redis", "marks ann as departing")
    if now == "fencing":
        return Step(who, "Redis", f"reads the fence: watermark {new[2].water}, cursor {new[2].cursor}")
    if now == "asked":
        return Step(who, _shown(after), "asks again behind the fence: no row of ann")
    if was == "fencing" and now == "resolved":
        return Step(who, _shown(after), "asks again behind the fence: ann has a row")
    if was == "asked" and now == "resolved":
        what = (
            "removes ann and her mark"
            if "leaves" in redis
            else "removes nobody: the mark is not its own, or no longer there"
        )
        return Step(who, "Redis", what)
    if was == "resolved" and before.redis != after.redis:
        return Step(who, "Redis", f"notes the departure as resolved, {redis}" if redis else "is done with its batch")
    return Step(who, who, "stops in the middle")


def _departures_read(left: int | None) -> str:
    if left is None:
        return "reads a departure that means all, left_through is removed"
    return f"finds nothing to remove, left_through is {left}"


_ACTORS: dict[str, Any] = {"Ingest": _ingests, "Catch-up": _passes, "Run": _runs, "Departures": _departs}


def _builds(before: State, after: State, redis: str) -> Step:
    old, new, fill = before.builder, after.builder, after.redis.fill
    if before.left.fills != after.left.fills and fill is not None:
        begins = f"begins a fill: horizon {fill.horizon}"
        return Step("Build", "Redis", f"{begins}, {redis}" if redis else begins)
    if new[0] == "read":
        return Step("Build", _shown(after), "reads a row of ann" if "row" in new[2] else "reads no row of ann")
    if old[0] in ("read", "late") and new == ("filling",):
        return Step("Build", "Redis", f"adds its chunk, {redis}" if redis else "adds its chunk: nothing new")
    if new[0] == "late":
        return Step("Build", "Redis", "notes its position")
    if new[0] == "filled":
        return Step("Build", "Build", "has read all chunks")
    if old[0] == "filled" and before.redis != after.redis and after.redis.cursor is not None:
        left = f", left_through is {after.redis.left}" if after.redis.left != before.redis.left else ""
        through = f", {_claims(after.redis)}" if after.redis.through else ""
        return Step("Build", "Redis", f"completes the counter with cursor {after.redis.cursor}{left}{through}")
    return Step("Build", "Build", "continues the fill" if new == ("filling",) else "stops")


def _mends(before: State, after: State, redis: str) -> Step:
    if after.redis.cursor is None and before.redis.cursor is not None:
        return Step("Keeper", "Redis", "finds that the set is lost, and makes the counter cold")
    if before.save != after.save:
        return Step("Redis", "Redis", "writes a save")
    return Step("Keeper", "Redis", f"sets the watermark again from what the replica shows, {redis}")


def _shown(s: State) -> str:
    """The name of the actor that answers questions about the table."""
    return "Replica" if len(s.replicas) == 1 else "Replicas"


# Two steps of one actor that are told as one, unless another actor's step comes between them.
_TOGETHER = {("notes its position", "stops"): "notes its position, and dies"}
for _number in range(20):
    _committed, _set = f"commits a row of ann (xact {_number})", f"sets the cursor to {_number}"
    _TOGETHER[f"begins xact {_number}", _committed] = _committed
    _TOGETHER["adds nothing new", _set] = f"adds nothing new, and {_set}"
    for _day in range(1, 4):
        _committed = f"commits a row of ann of day {_day} (xact {_number})"
        _TOGETHER[f"begins xact {_number}", _committed] = _committed


# docs/protocol.md


def passage(rule: str, broken: str, steps: Sequence[Step]) -> str:
    """The text for the page between the marks of this rule: the interleaving, with a diagram if the mark says `drawn`."""
    drawn = f"<!-- drawn: {rule} -->" in PAGE.read_text()
    return "\n".join(
        [
            *(["```mermaid", *as_diagram(steps, broken), "```", ""] if drawn else []),
            f'<details markdown="1"><summary>{"The same in words" if drawn else "What happens without it"}</summary>',
            "",
            *as_lines(steps),
            "",
            f"Broken, *{broken}*: {PROMISES[broken]}.",
            "",
            "</details>",
        ]
    )


def written(rule: str) -> str:
    """The text on the page now between the marks of this rule; empty if there are no such marks."""
    found = _between(rule).search(PAGE.read_text())
    return found[2] if found else ""


def _between(rule: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- (?:drawn|told): {re.escape(rule)} -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)


def main() -> None:
    from tests.protocol import elements, search, worlds  # they import this module

    for rule, world in worlds.NEEDED.items():
        result = search.search(**{**world, "without": world.get("without", set()) | {rule}})
        assert result.broken
        write(rule, passage(rule, result.broken, tell(result.path)))
    for rule, name in elements.NEEDED.items():
        found = elements.search(**elements.WORLDS[name], without={rule})
        assert found.broken
        write(rule, passage(rule, found.broken, join(found.steps)))


def write(rule: str, told: str) -> None:
    PAGE.write_text(_between(rule).sub(lambda found: found[1] + told + found[3], PAGE.read_text()))


if __name__ == "__main__":
    main()
