"""The rules of the protocol, each with a patch that leaves it out: to test the checker, and the targeted tests.

The product has no such option. These patches change it from outside, in a test's process (with pytest's
`monkeypatch`) or in a chaos run that has to fail (`--without`, through patched/sitecustomize.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from shared_models.declarations import Storage
from shared_models.protocol import states, steps

Patch = Callable[[Any, str, Any], None]


def leave_out(rule: str, patch: Patch = setattr) -> None:
    """Break the protocol in this process. `patch` is setattr, or a test's way to have it undone."""
    RULES[rule](patch)


def scripts_without(name: str, text: str, instead: str = "") -> dict[tuple[str, Storage], steps.Script]:
    """All scripts; this one without a part of it, which has to be there for some storage."""
    cut = {key: script for key, script in steps.SCRIPTS.items() if key[0] == name and text in script.text}
    assert cut, text
    return {**steps.SCRIPTS, **{key: steps.Script(each.text.replace(text, instead)) for key, each in cut.items()}}


def cut_out(patch: Patch, name: str, text: str, instead: str = "") -> None:
    """Leave a part of a script out."""
    patch(steps, "SCRIPTS", scripts_without(name, text, instead))


def module_with(module: Any, **changed: Any) -> SimpleNamespace:
    """A module as one other module sees it, with something changed."""
    return SimpleNamespace(**{**vars(module), **changed})


def token(patch: Patch) -> None:
    """A sweep removes members with any mark, not only its own."""
    cut_out(patch, "sweep", "if holder == ARGV[1] then", "if holder then")


def fence(patch: Patch) -> None:
    """A sweep does not wait until the replica shows what was acknowledged."""
    from manage_service.protocol import sweep

    patch(sweep, "fence", lambda snapshot, state: None)


def claim_of_a_fill(patch: Patch) -> None:
    """… nor what a fill relies on: the fill raises no watermark, and the sweep ignores its cursor."""
    from manage_service.protocol import freshness, sweep

    cut_out(patch, "begin", "raise_watermark(KEYS[2], ARGV[3], ARGV[4], not build)")
    cut_out(patch, "note_table", "raise_watermark(KEYS[1], ARGV[3], ARGV[4], not build)")

    whole = freshness.why_stale
    patch(sweep, "why_stale", lambda snapshot, state: whole(snapshot, replace(state, cursor=None)))


def claim(patch: Patch) -> None:
    """A pass does not raise the watermark to what it is about to claim."""
    from manage_service.protocol import catch_up

    def record(redis: Any, members: Any, xact: int | None = None, source: str = "", **options: Any) -> int:
        return steps.record(redis, members)

    patch(catch_up, "steps", module_with(steps, record=record))


def filter_present(patch: Patch) -> None:
    """A check puts members of the table that are not in the set into its bucket filter."""
    from manage_service.protocol import reconcile
    from shared_models.protocol.storages import Found

    patch(reconcile, "is_there", lambda found, repair: found is not Found.LATER)


def departures(patch: Patch) -> None:
    """Departures are noted as resolved without asking the table."""
    from manage_service.protocol import departures

    patch(departures, "rowless", lambda counter, members, snapshot: {})


def late_records(patch: Patch) -> None:
    """A record adds its members even if catch-up has passed it, and they may have left again."""
    too_late = "cursor and cursor_source == source and known ~= '' and below(known, cursor)"
    cut_out(patch, "record", too_late, "false")


UNMARK = "unmark(members, suspects, 4)"


def unmark(patch: Patch) -> None:
    """Recording does not remove the mark of a sweep."""
    cut_out(patch, "record", UNMARK)


def unmark_in_catch_up(patch: Patch) -> None:
    """Catching up does not remove the mark of a sweep."""
    from manage_service.protocol import catch_up

    whole, marked = steps.SCRIPTS, scripts_without("record", UNMARK)

    def record(*args: Any, **options: Any) -> int:
        steps.SCRIPTS = marked
        try:
            return steps.record(*args, **options)
        finally:
            steps.SCRIPTS = whole

    patch(catch_up, "steps", module_with(steps, record=record))


def compare(patch: Patch) -> None:
    """A pass sets the cursor even if it has changed."""
    compare = "if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] or have[3] ~= ARGV[5] or (have[4] or '') ~= ARGV[6] then return 0 end"
    cut_out(patch, "advance", compare)


def one_connection(patch: Patch) -> None:
    """A pass continues over a new connection after the old one broke."""
    from manage_service.stores import ConnectsOnce

    patch(ConnectsOnce, "_connect", lambda self: super(ConnectsOnce, self)._connect())


def one_history(patch: Patch) -> None:
    """What was read from Redis, or written to it, before a failover is still relied on after it."""
    for name in ("advance", "verify", "resolve", "mend_group"):
        cut_out(patch, name, "if history() ~= ", "if false and history() ~= ")


def horizon(patch: Patch) -> None:
    """The cursor is the highest xact seen, not the horizon."""
    from manage_service.replica import sql

    patch(sql, "HORIZON", sql.HORIZON.replace("pg_snapshot_xmin", "pg_snapshot_xmax"))


def fill_lsn(patch: Patch) -> None:
    """A fill continues from a replica that came back at an earlier state."""
    from manage_service.protocol import build

    for name in ("read_fill", "begin_fill"):
        whole = getattr(build, name)
        patch(build, name, lambda *args, whole=whole: (fill := whole(*args)) and replace(fill, lsn=0))


def fill_position(patch: Patch) -> None:
    """The position of a fill and its members are two steps."""
    cut_out(patch, "fill", "moved, added = put(KEYS[1], KEYS[4], 5)")
    whole = steps.fill

    def fill(client: Any, name: str, token: str, before: bytes, after: bytes, members: Any) -> bool:
        moved = whole(client, name, token, before, after, members)
        steps.record(client, {name: members})
        return moved

    patch(steps, "fill", fill)


def promote_last(patch: Patch) -> None:
    """A counter is live from the first chunk of its build on."""
    from manage_service.protocol import build

    whole = build.begin_fill

    def begin_fill(counter: Any, snapshot: Any, redis: Any) -> Any:
        fill = whole(counter, snapshot, redis)
        steps.promote(redis, counter.name, fill.token, b"")
        return fill

    patch(build, "begin_fill", begin_fill)


def complete_through(patch: Patch) -> None:
    """complete_through is the present time, not that of the replica's commits."""
    from manage_service.replica import sql

    shown = "greatest(pg_last_xact_replay_timestamp(), (SELECT checkpoint_time FROM pg_control_checkpoint()))"
    assert shown in sql.STANDPOINT
    patch(sql, "STANDPOINT", sql.STANDPOINT.replace(shown, "clock_timestamp()"))


def cold(patch: Patch) -> None:
    """Query serves the set of an incomplete counter as complete."""

    def change(state: states.State) -> states.State:
        through = state.complete_through or datetime.now(UTC)
        cursor = state.cursor or 0
        return replace(state, cursor=cursor, size=state.count, build=state.intake_build, complete_through=through)

    read_by_query(patch, change)


def size(patch: Patch) -> None:
    """Query does not compare a set with its size."""
    read_by_query(patch, lambda state: replace(state, size=state.size and state.count))


def read_by_query(patch: Patch, change: Callable[[states.State], states.State]) -> None:
    """Change the state of each part of a counter that query reads from Redis."""
    from query_service import reads

    def parse_state(*replies: Any) -> states.State:
        return change(states.parse_state(*replies))

    patch(reads, "states", module_with(states, parse_state=parse_state))


def group_size(patch: Patch) -> None:
    """Query does not compare the set of a group with its size."""
    from query_service import directories

    whole = directories.judge_one
    patch(directories, "judge_one", lambda size, count, *, is_broken: whole(count, count, is_broken=is_broken))


def broken_group(patch: Patch) -> None:
    """Query serves a group that was dropped and is being read again."""
    from query_service import directories

    whole = directories.judge_one
    patch(directories, "judge_one", lambda size, count, *, is_broken: whole(size, count, is_broken=False))


def mend_fence(patch: Patch) -> None:
    """A group is read again from a replica that does not show what was acknowledged into it."""
    from manage_service.protocol import groups

    patch(groups, "fence", lambda snapshot, state: None)


def lowered_day(patch: Patch) -> None:
    """A departure of the last day's row leaves the member on that day."""
    cut_out(
        patch,
        "sweep",
        "redis.call('HSET', members, member, instead)\n  move_days(members, { [day] = -1, [instead] = 1 })",
    )


def gap(patch: Patch) -> None:
    """A run corrects the size, whatever was changed meanwhile."""
    differs = "if count - tonumber(size) ~= tonumber(ARGV[2]) then return -1 end"
    cut_out(patch, "verify", differs)


def lock_first(patch: Patch) -> None:
    """A snapshot is taken before the table is locked, and may see an empty one."""
    from manage_service.replica import sql

    patch(sql, "LOCK", "SELECT 1")


def row_security(patch: Patch) -> None:
    """Hidden rows are not an error: manage treats them as missing."""
    from manage_service.replica import snapshots

    off = "-c row_security=off"
    assert off in snapshots.OPTIONS
    patch(snapshots, "OPTIONS", snapshots.OPTIONS.replace(off, ""))


def on_the_disk(patch: Patch) -> None:
    """Manage relies on a primary's rows before they are on its disk."""
    from manage_service.replica import snapshots

    patch(snapshots, "flush", lambda connection, unflushed_lsn: None)


def source_asked_anew(patch: Patch) -> None:
    """Ingest caches the source of a standby, also after its promotion."""
    from ingest_service import stores

    whole = stores.open_primary

    def open_primary() -> stores.Session:
        session = whole()
        return replace(session, source=stores._sources.setdefault(session.raw, session.source))

    patch(stores, "open_primary", open_primary)


def one_key(patch: Patch) -> None:
    """An Idempotency-Key does not prevent storing rows again."""
    from ingest_service.writing import idempotency

    patch(idempotency, "insert_new", lambda transaction, claims, first="": {claim.id for claim in claims})


RULES: dict[str, Callable[[Patch], None]] = {
    "token": token,
    "fence": fence,
    "claim of a fill": claim_of_a_fill,
    "claim": claim,
    "filter present": filter_present,
    "departures": departures,
    "late records": late_records,
    "unmark": unmark,
    "unmark in catch-up": unmark_in_catch_up,
    "compare": compare,
    "one connection": one_connection,
    "one history": one_history,
    "horizon": horizon,
    "fill lsn": fill_lsn,
    "fill position": fill_position,
    "promote last": promote_last,
    "complete through": complete_through,
    "cold": cold,
    "size": size,
    "group size": group_size,
    "broken group": broken_group,
    "mend fence": mend_fence,
    "lowered day": lowered_day,
    "gap": gap,
    "lock first": lock_first,
    "row security": row_security,
    "on the disk": on_the_disk,
    "source asked anew": source_asked_anew,
    "one key": one_key,
}
