"""docs/runbook.md for those who follow it: its commands as they stand, and what it shows of their output.

Only ports, and the folder of the stack, become those of a test. Shown and printed may differ in numbers, in ids of runs and in
how long ago something was. `…` stands for anything.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from compose.local import ports
from compose.local.ordinary_user import CHECKOUT, ordinary_user, own
from compose.local.processes import MARK, kill, make_folder
from compose.local.servers import postgres_program, redis_program
from compose.local.stack import Stack
from tests.contract.test_docs import page, section
from tests.servers import free_port, wait_for
from tests.system.test_examples import of_this_stack

RUNBOOK = page("runbook")

# What no test of the runbook runs: the command, or how it begins, and the reason.
NOT_RUN = {
    "docker compose": "there is no container engine where the tests run",
    "python3 -m compose.credentials": "for containers; tests/deploy/test_compose.py runs it",
    "python -m ingest_service adopt": "tests/adopt and the tutorial's test run it with tables of an application",
    "CREATE INDEX CONCURRENTLY": "a migration does it: `migrate`, which is run",
    "chown -R --reference": "for root alone; the tests follow the page as the user of the stack",
    "CHECKPOINT": "for servers without a function that roles.sql makes",
}
# How a command begins; other code in a sentence is a name, a setting, an answer.
PROGRAMS = (
    r"psql [\"-]|pg_\w+ -|redis-cli -u|python3? -m|docker compose|make |curl |kill |chown |touch |"
    "CREATE |DROP |ALTER |CHECKPOINT"
)

(VARIABLES,) = re.findall(r"`(eval .*variables manage\)\")`, then the command", RUNBOOK)
(POSTGRES,) = re.findall(r"`psql (\"postgres://[^\"]+\")`", RUNBOOK)
(REDIS,) = re.findall(r"`redis-cli -u (\"redis://[^\"]+\")`", RUNBOOK)
(TOKEN,) = re.findall(r"`(Authorization: Bearer \$\(cat \.local/ingest/token\))`", RUNBOOK)
(ROW,) = re.findall(r"`\$ROW` is `(\{.*?\})`", RUNBOOK)
PREAMBLE = f"""
set -o pipefail
PRIMARY={POSTGRES} REPLICA={POSTGRES.replace("15432", "15433")} REDIS={REDIS} SECRET=secret
INGEST=http://127.0.0.1:8001 MANAGE=http://127.0.0.1:8002 QUERY=http://127.0.0.1:8003 ROW='{ROW}'
PRODUCER="{TOKEN}" OPERATOR="{TOKEN.replace("ingest", "manage")}"
"""
# redis-cli is in no wheel.
REDIS_CLI = """
import sys, redis
_, _, url, *command = sys.argv
client = redis.Redis.from_url(url, decode_responses=True)
if not command:  # they would come from the terminal
    said = []
elif command[0] == "--scan":
    said = client.scan_iter(command[2])
else:
    said = client.execute_command(*command)
if isinstance(said, dict):
    said = [f"{name}:{value}" for name, value in said.items()]
for line in [said] if isinstance(said, (str, int, bool)) else said:
    print("OK" if line is True else line)
"""
UNITS = "s|min|h|d"


def commands(title: str) -> list[tuple[str, list[str]]]:
    """The commands of a section in their order, each with the lines that it shows.

    A comment is the same command, later, if it shows something.
    """
    found: list[tuple[str, list[str]]] = []
    text = section("runbook", title)
    for block in re.findall(r"(?m)^(?: +\$ .*\n)(?: {4}.*\n)*", text):
        margin = len(block) - len(block.lstrip())
        for part in block[margin + 2 :].split("\n" + margin * " " + "$ "):
            line, *shown = part.rstrip("\n").split("\n")
            if line.startswith("#"):
                line = found[-1][0] if shown else ""
            if line:
                found.append((re.sub(r" +# .*", "", line), [each[margin:] for each in shown]))
    for block in re.findall(r"(?ms)^```sh\n(.*?)^```", text):
        found += [(line, []) for line in block.splitlines()]
    return found


def commands_in_sentences(title: str) -> list[str]:
    """Those that stand between backticks."""
    return in_sentences(section("runbook", title))


def in_sentences(text: str) -> list[str]:
    prose = re.sub(r"(?m)^ {4}.*$", "", text)
    return [" ".join(found.split()) for found in re.findall(rf"`((?:{PROGRAMS})[^`]*)`", prose)]


def sections() -> list[str]:
    return re.findall(r"(?m)^## .+$", RUNBOOK)


BEGINNING = RUNBOOK.partition("\n## ")[0]
IN_BLOCKS = {command for title in sections() for command, _ in commands(title)}


class Shell:
    """Somebody's shell at the top of the checkout, with the variables that the runbook names, as the user of the stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.checkout = CHECKOUT
        self.backup = stack.folder / "backups"
        self.programs = stack.folder / "programs"
        self.second_port = free_port()  # of a second Redis
        self.answers = ""  # to what a command asks
        ports.remember(stack.folder, {each.port_variable: each.port for each in stack.processes if each.port})
        for folder in (self.backup, self.programs):
            make_folder(folder)
        self.provide("python", f'exec {sys.executable} "$@"')
        self.provide("redis-cli", f"exec {sys.executable} -c '{REDIS_CLI}' \"$@\"")
        # It writes its title over its environment, by which the stack finds what it has left.
        self.provide("valkey-server", f'echo $$ > {self.programs}/valkey.pid; exec {redis_program()} "$@"')
        self.provide("make", f'exec {sys.executable} -m compose.local --folder {stack.folder} "$@"')

    def close(self) -> None:
        """End the Redis that a command has started."""
        pid = self.programs / "valkey.pid"
        if pid.exists():
            kill(psutil.Process(int(pid.read_text())))
            pid.unlink()

    def provide(self, name: str, script: str) -> None:
        """A program that the page takes for granted."""
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        own(path)

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """What comes of it, in a wide terminal. What it leaves in the background counts as the stack's ingest, and ends with it."""
        # What begins with variables of its own begins in a shell of its own.
        variables = "" if command.startswith("eval ") else f"{VARIABLES}\n"
        script = of_this_stack(PREAMBLE + variables + command, self.stack).replace("16380", str(self.second_port))
        script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/").replace("/backup/", f"{self.backup}/")
        script = script.replace("-m compose.local ", f"-m compose.local --folder {self.stack.folder} ")
        output = self.stack.folder / "log" / "shell"
        if command.endswith("&"):
            script = script.removesuffix("&") + f">> {output} 2>&1 < /dev/null &"
        user, programs = ordinary_user(), Path(postgres_program("psql")).parent
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.checkout,
            env=os.environ
            | {"TTY_COMPATIBLE": "1", "COLUMNS": "200", "HOME": str(self.stack.folder), "PYTHONDONTWRITEBYTECODE": "1"}
            | {"TMPDIR": str(self.stack.folder)}  # what is killed leaves files there
            | {"PATH": f"{self.programs}:{programs}:{os.environ['PATH']}", "PGPASSWORD": self.password()}
            | ({MARK: str(self.stack.ingest.folder)} if command.endswith("&") else {}),
            preexec_fn=None if user is None else user.become,
            # There is no terminal, so what asks for a password reads it here.
            input=self.answers,
            start_new_session=True,
            capture_output=True,
            text=True,
        )

    def password(self) -> str:
        """Of rollcall_replica, which is in no URL of the page."""
        path = self.stack.primary.folder / "password-replica"
        return path.read_text().strip() if path.exists() else ""

    def run(self, command: str) -> list[str]:
        """The lines that it prints. A check that finds drift exits with 1, and so does a status."""
        done = self.attempt(command)
        assert is_well(done), f"{command}\n{done.stdout}{done.stderr}"
        return printed_by(done)

    def check(self, command: str, shown: list[str]) -> None:
        """Run it. If the page shows what it prints, again until it prints that: the stack may need a moment."""
        if not shown:
            self.run(command)
            return
        last: list[str] = []

        def looks_so() -> bool:
            done = self.attempt(command)
            last[:] = [*printed_by(done), *done.stderr.splitlines()]
            lines = iter(last)
            return is_well(done) and all(any(looks_like(line, printed) for printed in lines) for line in shown)

        try:
            wait_for(looks_so, command, seconds=60)
        except pytest.fail.Exception:
            pytest.fail("\n".join([command, "shown:", *shown, "printed:", *last]))


def is_well(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode in (0, 1) and re.search(r"Error|\berror:", done.stderr) is None


def printed_by(done: subprocess.CompletedProcess[str]) -> list[str]:
    return re.sub(r"\x1b\[[\d;]*m", "", done.stdout).splitlines()


class Walk:
    """Through the commands of a section, each of them in its turn."""

    def __init__(self, shell: Shell, title: str) -> None:
        self.shell = shell
        self.left = [each for each in commands(title) if not is_listed(each[0])]
        self.left_in_sentences = [
            each for each in commands_in_sentences(title) if each not in IN_BLOCKS and not is_listed(each)
        ]

    def on(self, *, until: str = "") -> None:
        """Do what comes next, before a command with these words: to the end, if none are named."""
        assert not until or any(until in command for command, _ in self.left), f"no command has {until}"
        while self.left and not (until and until in self.left[0][0]):
            self.shell.check(*self.left.pop(0))

    def skip(self) -> str:
        """The next command, which the test does in its own way."""
        return self.left.pop(0)[0]

    def pass_over(self, *, until: str) -> None:
        """Leave out what comes before a command with these words: another test does it."""
        while until not in self.left[0][0]:
            self.skip()

    def aside(self, words: str, before: str = "") -> list[str]:
        """Do the one with these words that stands in a sentence, at any time; what it prints."""
        command = next(each for each in self.left_in_sentences if words in each)
        self.left_in_sentences = [each for each in self.left_in_sentences if each != command]
        return self.shell.run(before + command)

    def end(self) -> None:
        """None is left."""
        assert (self.left, self.left_in_sentences) == ([], [])


def is_listed(command: str) -> bool:
    return command.startswith(tuple(NOT_RUN))


def looks_like(shown: str, printed: str) -> bool:
    """Whether a line that the page shows may stand for a line that was printed."""
    if shown.startswith("{") and printed.startswith("{"):
        return is_part(json.loads(shown), json.loads(printed))
    pattern = ""
    for piece in re.split(rf"(…|─+|\brun \w+|[\d.]+ (?:{UNITS})\b|\d/[\dA-F]+|\d[\d,.]*|\s+)", shown.strip()):
        if piece == "…":
            pattern += ".*"
        elif piece.startswith("─"):
            pattern += "─+"
        elif piece.startswith("run "):
            pattern += r"run \w+"
        elif re.fullmatch(rf"[\d.]+ (?:{UNITS})", piece):
            pattern += rf"[\d.]+ (?:{UNITS})"
        elif re.fullmatch(r"\d/[\dA-F]+", piece):  # a place in Postgres' log
            pattern += r"\d/[\dA-F]+"
        elif piece[:1].isdigit():
            pattern += r"\d[\d,.]*"
        else:
            pattern += re.escape(piece) if piece.strip() else r"\s+" * bool(piece)
    return re.fullmatch(pattern, printed.strip()) is not None


def is_part(shown: object, printed: object) -> bool:
    """Whether all that is shown of a JSON document was printed; numbers but the status, and moments, may be others."""
    if isinstance(shown, dict) and isinstance(printed, dict):
        return all(
            name in printed and (is_part(value, printed[name]) if name != "status" else value == printed[name])
            for name, value in shown.items()
        )
    if isinstance(shown, bool) or (isinstance(shown, str) and not shown[:1].isdigit()):
        return shown == printed
    if isinstance(shown, str) and isinstance(printed, str) and "/" in shown:  # a source: its timeline is meant
        return shown.rpartition("/")[2] == printed.rpartition("/")[2]
    return type(shown) is type(printed)
