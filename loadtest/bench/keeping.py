"""The keeper: what it takes of a processor while nothing happens, with few counters and with many."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import psutil

from loadtest.bench import visits
from loadtest.bench.reconciling import CommandFailed
from loadtest.bench.results import Report, Result
from loadtest.bench.world import World, run_sql
from shared_models import declarations
from shared_models.protocol import keys, states

BY = ["page", "day(seen_at)", "country", "device", "week(seen_at)", "month(seen_at)", ["country", "day(seen_at)"]]
ROWS = 20_000
REST_SECONDS = 10.0
# How often it looks whether the keeper has ticked: that costs Redis next to nothing.
LOOK_SECONDS = 0.05
READY_SECONDS = 600.0
GOAL = 0.15


def declare(totals: int, by: Sequence[object]) -> str:
    """The text of a file with so many counters, each by these, and with its last days if there are any."""
    more = f'by = {json.dumps(by)}\nlast_seen = "seen_at"\n' if by else ""
    return visits.FIELDS + "".join(
        f'[counters.visitors{number}]\ntable = "visit"\nmember = ["visitor"]\n{more}' for number in range(totals)
    )


# Two, twelve and forty derived counters.
DECLARED = (declare(2, []), declare(4, BY[:2]), declare(5, BY))


def rest(world: World, report: Report, rounds: int, table_rows: int) -> None:
    """keeper.rest: processor seconds a second of the keeper, and of its connection to Postgres, at rest."""
    visits.make(world)
    visits.fill(world, ROWS)
    found: dict[int, list[tuple[float, ...]]] = {}  # by how many derived counters there are
    for text in DECLARED:
        world.declare(text)
        visits.adopt(world)
    _ = world.replica
    for _turn in range(rounds):
        for text in DECLARED:
            world.declare(text)
            keeper = world.keeper()
            wait_until_verified(world)
            found.setdefault(len(declarations.derived()), []).append(busy(world, keeper.pid or 0))
            world.stop(keeper)
    for many, shares in found.items():
        _, of_postgres, of_redis, ticks = (sorted(each)[len(each) // 2] for each in zip(*shares, strict=True))
        report.add(
            Result(f"keeper.rest.{many}", "of a processor", "limit", [(own, GOAL) for own, *_ in shares], goal=-1.0,
                   note=f"{many} derived counters, {ticks:.1f} passes over each a second; "
                   f"its session of Postgres took {of_postgres:.1%}, and Redis {of_redis:.1%}")
        )  # fmt: skip


def busy(world: World, pid: int) -> tuple[float, ...]:
    """The shares of a processor that the keeper, its session of Postgres, and Redis take, and ticks a second."""
    ((session,),) = run_sql(
        world.replica.url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'rollcall-manage'"
    )
    processes = [psutil.Process(each) for each in (pid, session, world.valkey.pid)]
    ticked: set[object] = set()
    began, before = time.perf_counter(), [sum(each.cpu_times()[:2]) for each in processes]
    with world.redis() as redis:
        while (seconds := time.perf_counter() - began) < REST_SECONDS:
            ticked.add(redis.hget(keys.KEEPER, "ticked_at"))
            time.sleep(LOOK_SECONDS)
    shares = [(sum(each.cpu_times()[:2]) - earlier) / seconds for each, earlier in zip(processes, before, strict=True)]
    return *shares, len(ticked) / seconds


def wait_until_verified(world: World) -> None:
    """Wait until every counter is live and its first reconcile has ended."""
    deadline = time.monotonic() + READY_SECONDS
    names = [each.name for each in declarations.derived()]
    with world.redis() as redis:
        while any(each.cold or each.left_through is None for each in states.read_states(redis, names).values()):
            if time.monotonic() > deadline:
                raise CommandFailed("the counters are not live and verified")
            time.sleep(0.1)


CASES = {"keeper.rest": rest}
