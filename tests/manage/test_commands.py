"""The command line of manage: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from manage_service import runs
from shared_models import keys
from tests import servers
from tests.servers import wait_for


def manage(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "manage_service", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_check_exits_1_where_there_is_drift_and_a_repair_0(world):
    world.post("ann")
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "ghost")
    check = manage("reconcile", "users", "--check", "--json")
    assert check.returncode == 1, check.stderr
    assert json.loads(check.stdout)["drift"]["users"]["extra_sample"] == [{"username": "ghost"}]
    repair = manage("reconcile")
    assert repair.returncode == 0 and "ghost" in repair.stdout and "\x1b" not in repair.stdout
    assert manage("reconcile", "--check").returncode == 0
    assert world.exact()


def test_what_cannot_run_exits_2_and_says_why(world):
    unknown = manage("reconcile", "nobody")
    assert unknown.returncode == 2 and "there are: cities, users" in unknown.stderr
    nowhere = f"127.0.0.1:{servers.free_port()}"
    no_redis = manage("reconcile", REDIS_URL=f"redis://{nowhere}/0")
    assert no_redis.returncode == 2 and "Redis" in no_redis.stderr and "Traceback" not in no_redis.stderr
    no_replica = manage("reconcile", DATABASE_URL=f"postgres://x@{nowhere}/x", FENCE_SECONDS="0.2")
    assert no_replica.returncode == 2 and "Connection refused" in no_replica.stdout


@pytest.mark.parametrize("missing", ["DATABASE_URL", "REDIS_URL"])
def test_a_missing_variable_is_named_in_one_line(missing):
    environment = {name: value for name, value in os.environ.items() if name != missing}
    said = subprocess.run(
        [sys.executable, "-m", "manage_service", "status"], env=environment, capture_output=True, text=True
    )
    assert said.returncode != 0 and missing in said.stderr and len(said.stderr.strip().splitlines()) == 1


def test_status_exits_0_only_where_all_is_well(world):
    cold = manage("status")
    assert cold.returncode == 1 and "cold" in cold.stdout and "NOT RUNNING" in cold.stdout
    document = json.loads(manage("status", "--json").stdout)
    assert document["counters"]["users"]["state"] == "cold"


def test_ctrl_c_ends_the_run_and_leaves_nothing_open(world):
    world.post("ann")
    world.replay()
    world.build()
    with world.replay_paused():
        world.post("new")
        process = subprocess.Popen([sys.executable, "-m", "manage_service", "reconcile", "users"], env=os.environ)
        wait_for(
            lambda: any(run.phase == "fence" for run in runs.latest(world.redis, 1)), "the run to wait at its fence"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    assert runs.latest(world.redis, 1)[0].status == "cancelled" and runs.still_open(world.redis) == []
    assert not world.redis.exists(keys.of_lock("reconcile:users"))
