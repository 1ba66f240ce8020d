"""Commands of docs/runbook.md, run as they stand with this stack's ports and folder; what they print looks as the page shows it.

Shown and printed may differ in numbers, in ids of runs and in how long ago something was. `…` stands for anything.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.local import ports
from compose.local.servers import postgres_program
from compose.local.stack import Stack
from shared_models.protocol import keys
from tests.contract.test_docs import ROOT, page, section
from tests.servers import replay_paused, sql, wait_for
from tests.system.asking import mend
from tests.system.test_examples import of_this_stack

RUNBOOK = page("runbook")
(VARIABLES,) = re.findall(r"`(eval .*variables manage\)\")`, then the command", RUNBOOK)
(POSTGRES,) = re.findall(r"`psql (\"postgres://[^\"]+\")`", RUNBOOK)
(REDIS,) = re.findall(r"`redis-cli -u (\"redis://[^\"]+\")`", RUNBOOK)
# redis-cli is in no wheel.
REDIS_CLI = """
import sys, redis
_, _, url, *command = sys.argv
said = redis.Redis.from_url(url).execute_command(*command)
print("OK" if said is True else said)
"""
PREAMBLE = f"""
set -o pipefail
redis-cli() {{ {sys.executable} -c '{REDIS_CLI}' "$@"; }}
python() {{ {sys.executable} "$@"; }}
PRIMARY={POSTGRES} REPLICA={POSTGRES.replace("15432", "15433")} REDIS={REDIS} QUERY=http://127.0.0.1:8003
{VARIABLES.replace(".venv/bin/python", sys.executable)}
"""
UNITS = "s|min|h|d"


class Shell:
    """Somebody's shell at the top of the checkout, with the variables that the runbook names."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        ports.remember(stack.folder, {each.port_variable: each.port for each in stack.processes if each.port})

    def run(self, command: str) -> list[str]:
        """The lines that it prints, as in a wide terminal. A check that finds drift exits with 1, and so does a status."""
        script = of_this_stack(PREAMBLE + command, self.stack)
        script = script.replace("-m compose.local ", f"-m compose.local --folder {self.stack.folder} ")
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=os.environ
            | {
                "TTY_COMPATIBLE": "1",
                "COLUMNS": "200",
                "PATH": f"{Path(postgres_program('psql')).parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1) and "Error" not in done.stderr, f"{command}\n{done.stdout}{done.stderr}"
        return re.sub(r"\x1b\[[\d;]*m", "", done.stdout).splitlines()

    def check(self, command: str, shown: list[str]) -> None:
        """Run it until it prints what the page shows: the stack may need a moment."""
        last: list[list[str]] = []

        def looks_so() -> bool:
            last[:] = [self.run(command)]
            lines = iter(last[0])
            return all(any(looks_like(line, printed) for printed in lines) for line in shown)

        try:
            wait_for(looks_so, command, seconds=60)
        except pytest.fail.Exception:
            pytest.fail("\n".join([command, "shown:", *shown, "printed:", *last[0]]))


def looks_like(shown: str, printed: str) -> bool:
    """Whether a line that the page shows may stand for a line that was printed."""
    if shown.startswith("{") and printed.startswith("{"):
        return is_part(json.loads(shown), json.loads(printed))
    pattern = ""
    for piece in re.split(rf"(…|─+|\brun \w+|[\d.]+ (?:{UNITS})\b|\d[\d,.]*|\s+)", shown.strip()):
        if piece == "…":
            pattern += ".*"
        elif piece.startswith("─"):
            pattern += "─+"
        elif piece.startswith("run "):
            pattern += r"run \w+"
        elif re.fullmatch(rf"[\d.]+ (?:{UNITS})", piece):
            pattern += rf"[\d.]+ (?:{UNITS})"
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
    if isinstance(shown, str) and not shown[:1].isdigit():
        return shown == printed
    return type(shown) is type(printed)


def commands(title: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a section in their order, each with the lines that it shows. A comment is the same command, later."""
    command = ""
    for block in re.findall(r"(?m)^(?: {4}\$ .*\n)(?: {4}.*\n)*", section("runbook", title)):
        for part in re.split(r"(?m)^ {4}\$ ", block)[1:]:
            line, *shown = part.rstrip("\n").split("\n")
            command = command if line.startswith("#") else line
            yield command, [each[4:] for each in shown]


@pytest.fixture
def shell(live: Stack) -> Shell:
    return Shell(live)


def test_drift_is_found_and_repaired_by_the_commands_of_the_runbook(live: Stack, shell: Shell) -> None:
    mend(live)
    users = keys.of_counter("users")
    with live.valkey.client() as client:
        pipe = client.pipeline(transaction=True)
        pipe.sadd(users.members, "ghost")
        pipe.hincrby(users.intake, "size", 1)  # as if its row had been deleted since
        pipe.execute()
    ran = list(commands("## Drift found"))
    assert len(ran) == 3
    for command, shown in ran:
        shell.check(command, shown)


def test_replica_lag_is_found_by_the_commands_of_the_runbook(live: Stack, shell: Shell) -> None:
    mend(live)
    with replay_paused(live.replica):
        sql(live.primary, "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Rome', 'lagging', '')")
        ((command, shown),) = commands("## Replica lag")
        shell.check(command, shown)
        (block,) = re.findall(r"```sh\n(.*?)```", section("runbook", "## Replica lag"), re.DOTALL)
        lines = block.splitlines()
        streams, slots, _, replay = ("\n".join(shell.run(line)) for line in lines)
        assert "streaming" in streams and "(1 row)" in slots and "paused" in replay
    # Tables of other sections have the columns that `status` has today.
    for row in re.findall(r"(?m)^ +(?:users|states) +live .*$", RUNBOOK):
        shell.check("python -m manage_service status", [row.replace("states", "users ")])
    assert "│" not in RUNBOOK


def test_a_lost_redis_looks_and_is_rebuilt_as_the_runbook_says(live: Stack, shell: Shell) -> None:
    mend(live)
    live.keeper.stop()
    assert shell.run('redis-cli -u "$REDIS" FLUSHDB') == ["OK"]
    assert 'redis-cli -u "$REDIS" FLUSHDB' in RUNBOOK
    (cold, shown), (live_again, shown_again) = commands("## Redis lost")
    shell.check(cold, shown)
    live.keeper.begin()
    shell.check(live_again, shown_again)


def test_a_backup_is_made_and_verified_by_the_commands_of_the_runbook(shell: Shell, tmp_path: Path) -> None:
    make, verify, *_ = commands("## Backup and restore")
    for command, shown in (make, verify):
        assert "/backup/monday" in command
        command = command.replace("/backup/monday", str(tmp_path / "monday"))
        lines = shell.run(f"export PGPASSWORD=$(cat .local/primary/password-replica)\n{command}")
        assert [line for line in shown if line not in lines] == []
