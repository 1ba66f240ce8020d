"""The local stack, as `make` runs it: started, killed, started again, stopped; on ports and in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from compose.local.demo_adopt import QUESTIONS
from compose.local.logs import LOG_BYTES, Follower, aside, rotate
from compose.local.ordinary_user import own
from compose.local.ports import DEFAULTS, remember
from compose.local.processes import Process, kill
from compose.local.servers import Primary, Replica, Valkey, postgres_program
from compose.local.stack import Stack, alone, open_stack
from shared_models.declarations import COUNTERS
from shared_models.protocol import keys
from tests.contract.test_docs import ROOT, page
from tests.servers import FAST, free_port, sql, wait_for

NAMES = ["primary", "replica", "valkey", "ingest", "manage", "keeper", "query", "rotator"]


class Checkout:
    """A stack's folder and ports, and the commands over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chosen = {variable: free_port() for variable in DEFAULTS}
        self.ports = {variable: str(port) for variable, port in self.chosen.items()}
        self.stack = Stack(folder, self.chosen)

    def start(self, command: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "compose.local", "--folder", str(self.folder), *command.split()],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, **variables: str) -> tuple[int, str]:
        """Exit status and output."""
        with self.start(command, **variables) as process:
            output, _ = process.communicate()
        return process.returncode, output

    def up(self) -> None:
        """What the command does, here: a test that is about something else saves a Python of its own."""
        with alone(self.folder):
            remember(self.folder, self.chosen)
            self.stack.up()

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {process.name: process.pid for process in self.stack.processes if process.pid is not None}

    def is_well(self) -> bool:
        """All that runs is ready, and manage finds nothing wrong: the counters are built and verified."""
        return all(each.ok for each in self.stack.standing()) and not self.stack.findings()

    def processes(self) -> list[psutil.Process]:
        """Everything on this machine that belongs to this stack, whether or not it has a pid file."""

        def belongs(process: psutil.Process) -> bool:
            try:
                return str(self.folder) in " ".join([process.cwd(), *process.cmdline(), *process.environ().values()])
            except psutil.Error:
                return False

        return [process for process in psutil.process_iter() if process.pid != os.getpid() and belongs(process)]


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rollcall-stack-")).resolve()
    own(folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    """One stack for the tests below. Each begins with `up`, and leaves it as it likes."""
    folder = Path(tempfile.mkdtemp(prefix="rollcall-stack-")).resolve()
    own(folder)
    checkout = Checkout(folder)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WORKERS", "1")  # a second one takes another second to start, each time
        yield checkout
    checkout.stack.reset()  # here: some of its processes are children of this one, and have to be reaped
    left = checkout.processes()
    shutil.rmtree(folder, ignore_errors=True)
    assert not left


def test_up_starts_everything_and_status_shows_it(checkout: Checkout) -> None:
    status, output = checkout.run("up", **checkout.ports)
    assert status == 0, output
    wait_for(checkout.is_well, "all to be well", seconds=60)
    status, output = checkout.run("status")
    assert status == 0
    assert [line.split()[0] for line in output.splitlines()] == NAMES
    assert all(line.endswith(" ok") for line in output.splitlines())
    ports = [line.split()[4] for line in output.splitlines()]
    assert [port for port in ports if port != "-"] == list(checkout.ports.values())


def test_no_process_of_the_stack_is_root(checkout: Checkout) -> None:
    checkout.up()
    assert {psutil.Process(pid).uids().effective for pid in checkout.pids().values()}.isdisjoint({0})


def test_up_again_leaves_what_runs_alone(checkout: Checkout) -> None:
    checkout.up()
    before = checkout.pids()
    status, output = checkout.run("up", **checkout.ports)
    assert status == 0 and "Everything was running already." in output
    assert checkout.pids() == before


def test_up_on_other_ports_names_the_variable_while_the_stack_runs(checkout: Checkout) -> None:
    checkout.up()
    status, output = checkout.run("up", **checkout.ports | {"QUERY_PORT": str(free_port())})
    assert status == 1
    assert f"QUERY_PORT={checkout.ports['QUERY_PORT']}" in output
    assert len(checkout.pids()) == len(NAMES)


def test_the_demo_serves_the_counts_that_the_table_has(checkout: Checkout) -> None:
    status, output = checkout.run("demo", **checkout.ports, MESSAGES="7000")
    assert status == 0, output
    assert "7,000 messages" in output
    rows = [line for line in output.splitlines() if any(f" {counter.name} " in line for counter in COUNTERS)]
    assert [" yes " in row for row in rows] == [True] * len(COUNTERS)
    assert len(checkout.pids()) == len(NAMES)


@pytest.mark.parametrize("names", [["primary"], ["valkey"], NAMES])
def test_what_was_killed_comes_back_with_its_data(checkout: Checkout, names: list[str]) -> None:
    checkout.up()
    before = checkout.pids()
    database = Primary(checkout.folder / "primary", int(checkout.ports["PRIMARY_PORT"]))
    rows = sql(database, "SELECT count(*) FROM message")
    for name in names:
        kill(psutil.Process(before[name]))
    checkout.up()
    after = checkout.pids()
    assert {name for name in NAMES if after[name] != before[name]} == set(names)
    assert sql(database, "SELECT count(*) FROM message") == rows


@pytest.mark.parametrize("name", ["primary", "valkey", "ingest", "keeper"])
def test_what_was_told_to_end_a_moment_ago_is_waited_for_and_comes_back(checkout: Checkout, name: str) -> None:
    """Also Postgres, which would wait for its clients: they stay."""
    checkout.up()
    before = checkout.pids()
    os.kill(before[name], signal.SIGTERM)

    def is_back() -> bool:
        checkout.up()  # to the first one a keeper may still look ready
        return checkout.pids().get(name, before[name]) != before[name]  # while it ends it may have none

    wait_for(is_back, f"{name} to come back")
    after = checkout.pids()
    assert {each for each in NAMES if after.get(each) != before[each]} == {name}
    assert len(after) == len(NAMES)


def test_up_right_after_down_and_the_other_way_round(checkout: Checkout) -> None:
    checkout.up()
    with checkout.start("down") as down, checkout.start("up", **checkout.ports) as up:
        assert (down.wait(), up.wait()) == (0, 0)
    checkout.up()
    assert len(checkout.pids()) == len(NAMES)


def test_restart_replaces_the_services_and_leaves_the_stores_or_one_process(checkout: Checkout) -> None:
    checkout.up()
    before = checkout.pids()
    assert checkout.run("restart")[0] == 0
    after = checkout.pids()
    assert {name for name in NAMES if after[name] != before[name]} == {"ingest", "manage", "keeper", "query"}
    assert checkout.run("restart replica")[0] == 0
    assert {name for name in NAMES if checkout.pids()[name] != after[name]} == {"replica"}
    status, output = checkout.run("restart nobody")
    assert status == 1 and "there are: primary, replica" in output


def test_status_says_what_is_late_and_its_exit_code_says_so_too(checkout: Checkout) -> None:
    checkout.up()
    wait_for(checkout.is_well, "all to be well", seconds=60)
    kill(psutil.Process(checkout.pids()["keeper"]))
    with checkout.stack.valkey.client() as client:
        client.hset(keys.KEEPER, "ticked_at", 1_700_000_000_000_000)  # long ago: nobody has to wait until it is missed
    # The other processes are fine; the finding is manage's.
    status, output = checkout.run("status")
    assert status == 1 and "Wrong: no keeper" in output and "start one" in output


def test_logs_are_followed_with_the_name_of_the_process_and_end_at_ctrl_c(checkout: Checkout) -> None:
    checkout.up()
    with checkout.start("logs") as following:
        assert following.stdout is not None
        names: set[str] = set()
        while names != set(NAMES):
            names.add(following.stdout.readline().partition("|")[0].strip())
        log = checkout.folder / "log" / "query.log"
        with log.open("a") as writing:
            writing.write("one more line\n")
        while following.stdout.readline() != "query   | one more line\n":
            pass
        following.send_signal(signal.SIGINT)
        assert following.wait() == 0
    with checkout.start("logs query") as following:
        assert following.stdout is not None
        assert following.stdout.readline().startswith("query | ")
        following.send_signal(signal.SIGINT)


def test_a_log_that_has_grown_large_begins_anew_while_its_process_writes_on(checkout: Checkout) -> None:
    checkout.up()
    log = checkout.folder / "log" / "manage.log"
    with log.open("a") as writing:
        writing.write("long ago\n" + "x" * LOG_BYTES + "\n")
    wait_for(lambda: log.stat().st_size < LOG_BYTES, "the log to be put aside")
    assert "long ago" in aside(log).read_text()
    assert b"\0" not in log.read_bytes()  # what writes it appends; it does not go on where it was
    assert checkout.run("restart manage")[0] == 0
    assert "Shutting down" in log.read_text() and "Starting gunicorn" in log.read_text()


def test_whoever_follows_a_log_that_is_put_aside_sees_every_line(folder: Path) -> None:
    log = folder / "a.log"
    with log.open("ab", buffering=0) as writing:
        writing.write(b"one\n")
        follower = Follower(log)
        writing.write(b"x" * LOG_BYTES + b"\n")
        assert [line[:3] for line in follower.lines()] == ["one", "xxx"]
        writing.write(b"two\nhalf")
        rotate(log)
        assert log.stat().st_size == 0
        writing.write(b" of a line\nlast\n")
        assert list(follower.lines()) == ["two", "half of a line", "last"]
    aside(log).unlink()
    log.unlink()
    assert list(follower.lines()) == []
    log.write_bytes(b"anew\n")
    assert list(follower.lines()) == ["anew"]


def test_down_leaves_no_process_and_keeps_the_data(checkout: Checkout) -> None:
    checkout.up()
    assert len(checkout.processes()) > len(NAMES)
    status, output = checkout.run("down")
    assert status == 0
    assert "keeper" in output
    assert checkout.processes() == []
    assert checkout.run("status")[0] == 1
    assert (checkout.folder / "primary" / "complete").exists()


def test_the_adoption_demo_ends_with_equal_counts_and_can_be_run_again(checkout: Checkout) -> None:
    """It leaves declarations of its own in the folder; the reset below removes them."""
    for adopted in (False, True):
        assert (checkout.folder / "rollcall.toml").exists() is adopted
        status, output = checkout.run("demo-adopt", **checkout.ports, ORDERS="3000", SECONDS="1")
        assert status == 0, output
        rows = [
            line.split()
            for line in output.splitlines()
            if line.startswith(" ") and line.rstrip().endswith(("yes", "no"))
        ]
        assert [row[-1] for row in rows] == ["yes"] * len(QUESTIONS), output
        assert [row[0] for row in rows] == [
            "customers",
            "products",
            "customers:",
            "customers",
            "customers",
            "customers",
        ]
        assert not any("0" in row or "cold" in row for row in rows), output


TUTORIAL = page("tutorial")


class Reader:
    """Somebody who types what the tutorial says, at a stack with a folder and ports of its own."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.exported = ""
        programs = (Path(sys.executable).parent, Path(postgres_program("psql")).parent, os.environ["PATH"])
        # A second worker takes another second to start.
        self.environment = os.environ | checkout.ports | {"PATH": ":".join(map(str, programs)), "WORKERS": "1"}
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)

    def follow(self, block: str) -> str:
        """Run the lines, and if the page shows an answer of the API, again until it comes; what they print."""
        said = [""]
        answers = re.findall(r"^# (\{.*?)(?:, …)?$", block, re.MULTILINE)

        def is_answered() -> bool:
            said[0] = self.run(block)
            return all(answer in said[0] for answer in answers)

        wait_for(is_answered, f"the answer {answers}", seconds=60)
        self.exported += "".join(f"{line}\n" for line in block.splitlines() if line.startswith("export "))
        return said[0]

    def run(self, block: str) -> str:
        """What the lines print. The test fails if one of them does."""
        script = self.of_this_stack(f"set -eo pipefail\n{self.exported}{block}")
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def of_this_stack(self, text: str) -> str:
        for variable, port in DEFAULTS.items():
            text = re.sub(rf"\b{port}\b", self.checkout.ports[variable], text)
        command = f"python -m compose.local --folder {self.checkout.folder}"
        text = re.sub(r"^make (?=up|restart)", f"{command} ", text, flags=re.MULTILINE)
        text = text.replace("python -m compose.local variables", f"{command} variables")
        return text.replace(".local/", f"{self.checkout.folder}/")


@pytest.mark.long
def test_every_command_of_the_tutorial_works(checkout: Checkout) -> None:
    """In order. The lines for rollcall.toml are those that the command prints."""
    reader, declared = Reader(checkout), ""
    for block in re.findall(r"```sh\n(.*?)```", TUTORIAL, re.DOTALL):
        _, _, lines = reader.follow(block).partition("For rollcall.toml:\n")
        declared = declared or lines.strip()
    assert declared and f"\n{declared}\nTOML\n" in TUTORIAL


def test_reset_keeps_the_ports_and_nothing_else(checkout: Checkout) -> None:
    checkout.up()
    assert checkout.run("reset")[0] == 0
    assert checkout.processes() == []
    assert {path.name for path in checkout.folder.iterdir()} <= {"ports.json", "lock"}
    assert checkout.run("status") == (1, "There is no stack here; `make up` starts one.\n")
    # Where no variable says otherwise.
    assert open_stack(checkout.folder, to_start=True).query.port == checkout.stack.query.port


def test_a_taken_port_is_named_with_its_holder_and_its_variable(folder: Path) -> None:
    checkout = Checkout(folder)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(checkout.ports["QUERY_PORT"])))
        holder.listen()
        status, output = checkout.run("up", **checkout.ports)
    assert status == 1
    (sentence,) = [line for line in output.splitlines() if "in use" in line]
    assert checkout.ports["QUERY_PORT"] in sentence
    assert f"pid {os.getpid()}" in sentence
    assert "QUERY_PORT" in sentence
    assert checkout.processes() == []


def test_an_interrupted_up_ends_what_it_started(folder: Path) -> None:
    checkout = Checkout(folder)
    with checkout.start("up", **checkout.ports) as up:
        wait_for((folder / "replica" / "pid").exists, "the replica to be started")
        up.send_signal(signal.SIGINT)
        output, _ = up.communicate()
    assert up.returncode == 130, output
    assert checkout.processes() == []


def test_status_without_a_stack_says_so(folder: Path) -> None:
    assert Checkout(folder).run("status") == (1, "There is no stack here; `make up` starts one.\n")


def test_half_written_data_folders_are_made_anew(folder: Path) -> None:
    primary = Primary(folder / "primary", free_port(), settings=FAST, dies_with_parent=True)
    replica = Replica(folder / "replica", free_port(), primary, settings=FAST, dies_with_parent=True)
    half_write(primary)
    half_write(replica)
    try:
        primary.start()
        replica.start()
        assert sql(replica, "SELECT pg_is_in_recovery()") == [(True,)]
    finally:
        replica.stop()
        primary.stop()


def half_write(server: Process) -> None:
    """What an interrupted first start leaves: some files, and no word that they are all."""
    server.folder.mkdir()
    own(server.folder)
    data = server.folder / "data"
    data.mkdir()
    (data / "PG_VERSION").write_text("18\n")


def test_a_process_id_that_is_somebody_elses_now_is_neither_believed_nor_killed(folder: Path) -> None:
    valkey = Valkey(folder / "valkey", free_port(), dies_with_parent=True)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            valkey.create()
            (valkey.folder / "pid").write_text(f"{stranger.pid} {psutil.Process(stranger.pid).create_time() - 3600}\n")
            assert valkey.pid is None
            valkey.start()
            assert valkey.pid not in (None, stranger.pid)
            valkey.stop()
            assert stranger.poll() is None
        finally:
            valkey.stop()
            stranger.kill()
