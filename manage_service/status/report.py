"""How everything stands: one reading of Redis and the replica, for `GET /v1/status`, the command line and the page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
from redis import Redis

from manage_service.leases import read_holder
from manage_service.replica.snapshots import Replica
from manage_service.runs import registry
from manage_service.status.judging import Limits, judge, one_line
from shared_models import declarations
from shared_models.protocol import keys, moments, states
from shared_models.protocol.states import State

# A keeper ticks every second or so, and never takes longer than this for a step.
KEEPER_ALIVE = timedelta(seconds=15)


def read_status(redis: Redis, replica: Replica, limits: Limits) -> dict[str, Any]:
    """Counters, replica, keeper and open runs as one JSON-ready document, and what is wrong. Raises redis.RedisError.

    A replica that cannot be reached is said to be so: operators ask most when something is down.
    """
    now = datetime.now(UTC)
    names = [counter.name for counter in declarations.COUNTERS]
    found = states.read_states(redis, names)
    history = registry.latest(redis, 100)
    unended = list(registry.still_open(redis))
    shown = read_replica(replica, now)
    status = {
        "counters": {name: counter_status(name, found[name], shown, history) for name in names},
        "replica": shown,
        "keeper": read_keeper(redis, now),
        "open_runs": [run.id for run in unended],
        "as_of": now,
    }
    findings = judge(status, found, history, unended, limits)
    return {"healthy": not findings, "findings": [finding._asdict() for finding in findings], **status}


def read_keeper(redis: Redis, now: datetime) -> dict[str, Any]:
    """The keeper that works: when it last looked, what it does, what is in its way, and who it is."""
    names = ("ticked_at", "job", "failure", "committed_through", "held_microseconds")
    ticked, job, failure, through, held = states.read_fields(redis, keys.KEEPER, *names)
    ticked_at, holder = moments.from_microseconds(ticked), read_holder(redis, "keeper")
    alive = ticked_at is not None and now - ticked_at < KEEPER_ALIVE
    return {
        "alive": alive,
        # It ticks, and keeps its lock, also while a store keeps it from catching up: then it says which.
        "state": "alive" if alive and not failure else "held up" if holder else "not running",
        "ticked_at": ticked_at,
        "job": (job or b"").decode(),
        "holder": holder,
        "failure": (failure or b"").decode(),
        "committed_through": moments.from_microseconds(through),
        "horizon_held_seconds": int(held or 0) / 1e6,
    }


def read_drift(redis: Redis) -> dict[str, list[dict[str, Any]]]:
    """What the kept runs have found in each counter, the oldest first. Raises redis.RedisError."""
    found: dict[str, list[dict[str, Any]]] = {counter.name: [] for counter in declarations.COUNTERS}
    for run in registry.latest(redis, registry.HISTORY_RUNS):
        for name, findings in run.findings.items():
            if name in found and findings.verified_at is not None:
                found[name].append(
                    {
                        "run": run.id,
                        "mode": run.mode,
                        "verified_at": findings.verified_at,
                        "missing": findings.missing,
                        "extra": findings.extra,
                    }
                )
    return {name: sorted(proofs, key=lambda proof: proof["verified_at"]) for name, proofs in found.items()}


def counter_status(name: str, state: State, replica: dict[str, Any], history: list[registry.Run]) -> dict[str, Any]:
    """One counter. `horizon` and `replica_lag_seconds` are the replica's; null where it cannot be reached."""
    last = next((run for run in history if name in run.counters), None)
    return {
        "state": "cold" if state.cold else "live",
        "reason": state.why_cold,
        "count": None if state.cold else state.count,
        "cursor": state.cursor,
        "horizon": replica["horizon"],
        "replica_lag_seconds": replica["lag_seconds"],
        "watermark": state.watermark or 0,
        "source": state.source,
        "complete_through": state.complete_through,
        "verified_at": state.verified_at,
        "drift": None if state.drift is None else {"missing": state.drift.missing, "extra": state.drift.extra},
        "repaired": state.repaired,
        "building": None if state.filled is None else {"read": state.filled[0], "expected": state.filled[1]},
        "last_run": None if last is None else {"id": last.id, "status": last.status, "finished_at": last.finished_at},
    }


def read_replica(replica: Replica, now: datetime) -> dict[str, Any]:
    """What the replica shows at this moment, or why it cannot be asked."""
    try:
        with replica.snapshot() as snapshot:
            return {
                "reachable": True,
                "detail": "",
                "source": snapshot.source,
                "horizon": snapshot.horizon,
                "committed_through": snapshot.committed_through,
                "lag_seconds": round(max(0.0, (now - snapshot.committed_through).total_seconds()), 3),
            }
    except psycopg2.Error as error:
        return {
            "reachable": False,
            "detail": one_line(str(error)),
            "source": None,
            "horizon": None,
            "committed_through": None,
            "lag_seconds": None,
        }
