"""The command line of manage: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

import pytest
from rich.console import Console

from manage_service.__main__ import COMMANDS
from manage_service.leases import Lease
from manage_service.management import terminal
from manage_service.management.commands import reconcile
from manage_service.runs import registry
from shared_models.commands import run
from shared_models.nodes import only
from shared_models.protocol import keys
from tests import servers
from tests.servers import wait_for


class Said(NamedTuple):
    """What a command has left."""

    returncode: int
    stdout: str
    stderr: str


def manage(*arguments):
    """A command as `python -m manage_service` runs it, in this process: a new one takes most of a second to start."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run("manage_service", COMMANDS, arguments)
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def manage_elsewhere(*arguments, **environment):
    """In a process of its own, with other stores."""
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
    assert repair.returncode == 0 and "\x1b" not in repair.stdout + repair.stderr
    assert "users extra username=ghost" in repair.stdout.splitlines()
    assert "users: looking for extra members" in repair.stderr.splitlines()
    assert manage("reconcile", "--check").returncode == 0
    assert world.exact()


def test_what_cannot_run_exits_2_and_says_why(world):
    unknown = manage("reconcile", "nobody")
    assert unknown.returncode == 2 and "there are: cities, users" in unknown.stderr
    nowhere = f"127.0.0.1:{servers.free_port()}"
    no_redis = manage_elsewhere("reconcile", REDIS_URL=f"redis://{nowhere}/0")
    assert no_redis.returncode == 2 and "Redis failed: " in no_redis.stderr and "Traceback" not in no_redis.stderr
    assert ". The keeper continues a run" in no_redis.stderr and ".. A run" not in no_redis.stderr
    no_replica = manage_elsewhere("reconcile", DATABASE_URL=f"postgres://x@{nowhere}/x", FENCE_SECONDS="0.2")
    assert no_replica.returncode == 2 and "Connection refused" in no_replica.stdout


@pytest.mark.parametrize("missing", ["DATABASE_URL", "REDIS_URL"])
def test_a_missing_variable_is_named_in_one_line(missing):
    environment = {name: value for name, value in os.environ.items() if name != missing}
    said = subprocess.run(
        [sys.executable, "-m", "manage_service", "status"], env=environment, capture_output=True, text=True
    )
    assert said.returncode != 0 and missing in said.stderr and len(said.stderr.strip().splitlines()) == 1


def test_a_mistake_in_the_declarations_is_named_in_one_line(tmp_path):
    path = tmp_path / "rollcall.toml"
    path.write_text("")
    said = manage_elsewhere("status", ROLLCALL_FILE=str(path))
    assert (said.returncode, len(said.stderr.splitlines())) == (1, 1)
    assert f"{path}: there is no [counters.NAME]" in said.stderr


def test_a_python_without_the_packages_is_named_in_one_line():
    said = subprocess.run([sys.executable, "-S", "-m", "manage_service", "status"], capture_output=True, text=True)
    assert (said.returncode, len(said.stderr.splitlines())) == (1, 1)
    assert sys.executable in said.stderr and "make env" in said.stderr


def test_status_exits_0_only_where_all_is_well(world):
    cold = manage("status")
    assert cold.returncode == 1 and "cold" in cold.stdout and "state='not running'" in cold.stdout
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
            lambda: any(run.phase == "fence" for run in registry.latest(world.redis, 1)), "the run to wait at its fence"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=servers.DEADLINE_SECONDS) == 130
    assert registry.latest(world.redis, 1)[0].status == "cancelled" and registry.still_open(world.redis) == []
    assert not world.redis.exists(keys.of_lock("reconcile:users"))


def in_a_terminal(*arguments, columns=100):
    """Exit code, and all that a person would see of it, escape sequences too."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "manage_service", *arguments],
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                some = os.read(ours, 65_536)
            except OSError:  # Linux's way of saying that nobody writes any more
                break
            if not some:
                break
            seen += some
    os.close(ours)
    return process.returncode, seen.decode()


def test_in_a_terminal_a_person_sees_bars_and_a_table(world):
    world.post("ann")
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "gh[red]ost\x1b[2J")
    code, seen = in_a_terminal("reconcile", "users", "--check")
    assert code == 1
    assert "\x1b[?25l" in seen, "the bar hides the cursor while it moves"
    assert "1 extra" in seen and "run.started" not in seen
    # A member can hold anything: it is shown, and does nothing to the terminal.
    assert "gh[red]ost\\x1b[2J" in seen and "\x1b[2J" not in seen
    code, seen = in_a_terminal("status")
    assert code == 1 and "live" in seen and "not running" in seen and "counter" in seen


@pytest.mark.parametrize("columns", [40, 400])
def test_nothing_is_cut_however_narrow_the_terminal_is(world, columns):
    world.post("ann")
    world.replay()
    world.build()
    ghosts = [f"{letter * 63}." for letter in "abc"]
    world.redis.sadd(keys.of_counter("users").members, *ghosts)
    code, seen = in_a_terminal("reconcile", "--check", columns=columns)
    assert code == 1 and "3 extra" in seen and "…" not in seen
    assert all(ghost in seen for ghost in ghosts)
    code, seen = in_a_terminal("status", columns=columns)
    assert "…" not in seen and "complete to" in seen and "s ago" in seen


@pytest.mark.parametrize("columns", [60, 80])
def test_a_bar_that_finds_no_room_goes_on_in_the_next_line(world, columns):
    run = world.ask("users")
    run.counter, run.phase, run.status = "users", "extra", registry.Status.RUNNING
    run.read, run.expected = 123_456_789, 9_876_543_210
    follower = terminal.Follower(run, quiet=False)
    follower.show(run)
    shown = StringIO()
    console = Console(width=columns, file=shown)
    console.print(follower.bars.make_tasks_table(follower.bars.tasks))
    seen = shown.getvalue()
    assert "…" not in seen
    assert {"users", "looking", "members", "123,456,789", "about", "9,876,543,210"} <= set(seen.split())


def test_a_run_that_another_process_has_taken_is_watched_to_its_end_or_told_to_stop(world):
    world.post("ann")
    world.replay()
    world.build()
    run = world.ask("users")
    other = Lease(only(world.redis), f"run:{run.id}")
    assert other.acquire()
    told = reconcile.stop(run, only(world.redis))
    assert told.open and registry.cancel_requested(world.redis, run.id)
    list(world.steps(registry.get(world.redis, run.id)))
    seen = reconcile.carry_out(run, only(world.redis), quiet=True)
    assert seen.status == "cancelled"
    other.release()


def test_what_is_interrupted_before_anybody_took_it_is_closed(world):
    run = world.ask("users")
    assert reconcile.stop(run, only(world.redis)).detail == "interrupted"
    assert registry.still_open(world.redis) == []


@pytest.mark.parametrize("command", ["status", "reconcile"])
def test_help_says_what_the_exit_codes_mean(command):
    said = manage(command, "--help")
    assert said.returncode == 0 and "Exit codes: 0" in said.stdout


def test_check_compares_the_declarations_with_the_database_where_one_is_named(world, tmp_path):
    assert manage("check", "--database", "default").returncode == 0
    file = tmp_path / "rollcall.toml"
    file.write_text(
        '[tables.gone]\nname = "public.gone"\nfields = {a = "text"}\n[counters.gone]\ntable = "gone"\nmember = ["a"]\n'
        '[tables.message]\nname = "public.message"\nfields = {message = "text"}\n'
        '[counters.texts]\ntable = "message"\nmember = ["message"]\n'
    )
    said = manage_elsewhere("check", "--database", "default", ROLLCALL_FILE=str(file))
    assert said.returncode == 1 and "counter 'gone': relation \"public.gone\" does not exist" in said.stderr
    assert "counter 'texts': no index of public.message begins with (message)" in said.stderr
    file.write_text(
        '[tables.gone]\nname = "public.gone"\nfields = {a = "text", b = "text"}\n'
        '[counters.gone]\ntable = "gone"\nmember = ["a"]\nby = ["b"]\n'
    )
    said = manage_elsewhere("check", "--database", "default", ROLLCALL_FILE=str(file))
    assert said.stderr.count("does not exist") == 1 and "counters 'gone', 'gone:b': relation" in said.stderr
    assert manage_elsewhere("check", ROLLCALL_FILE=str(file)).returncode == 0, "no store is touched"
    nowhere = manage_elsewhere(
        "check", "--database", "default", DATABASE_URL=f"postgres://x@127.0.0.1:{servers.free_port()}/x"
    )
    assert nowhere.returncode == 1 and "the database cannot be read" in nowhere.stderr


def test_orphans_are_the_keys_of_counters_that_no_declaration_names_any_more(world):
    world.post("ann")
    world.replay()
    world.build()
    for old in ("users", "users.0badcafe", "gone.12345678"):
        world.redis.sadd(f"{keys.PREFIX}{{{old}}}:members", "ann", "bob")
        world.redis.hset(f"{keys.PREFIX}{{{old}}}:state", "cursor", 1)
    listed = manage("orphans")
    assert listed.returncode == 0 and listed.stdout.splitlines() == [
        f"{old} members=2 keys=2 done=left" for old in ("gone.12345678", "users", "users.0badcafe")
    ]
    assert "gone.12345678 members=2 keys=2 done=removed" in manage("orphans", "--remove").stdout
    assert manage("orphans").stdout == "" and world.exact() and not world.state().cold
