"""The command line of each service: its version is Rollcall's, and its help lists all of Rollcall's commands."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import django.core.management.commands
import pytest

from shared_models import __version__

ROOT = Path(__file__).resolve().parent.parent.parent
SERVICES = ("ingest_service", "manage_service", "query_service")


def run(service: str, *arguments: str, **environment: str) -> str:
    """The output of a command, without any setting of the service."""
    command = [sys.executable, "-m", service, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def modules(folder: Path) -> set[str]:
    """The commands in a folder."""
    return {path.stem for path in folder.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("arguments", [["--version"], ["version"], ["check", "--version"]])
def test_the_version_is_rollcalls(service: str, arguments: list[str]) -> None:
    assert run(service, *arguments) == f"rollcall {__version__}\n"


def test_the_version_is_declared_once() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert document["project"]["dynamic"] == ["version"] and "version" not in document["project"]
    assert document["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "shared_models.__version__"}


@pytest.mark.parametrize("service", SERVICES)
def test_the_help_lists_our_commands_and_few_of_djangos(service: str) -> None:
    listed = set(import_module(f"{service}.__main__").COMMANDS)
    ours = modules(ROOT / service / "management" / "commands")
    assert listed >= ours and "check" in listed
    assert listed - ours <= modules(Path(django.core.management.commands.__path__[0]))
    for arguments in ((), ("help",), ("--help",), ("-h",)):
        said = run(service, *arguments)
        assert {line.strip() for line in said.splitlines() if line.startswith("  ") and line[2] != " "} == listed
    assert run(service, "help", "--commands").split() == list(import_module(f"{service}.__main__").COMMANDS)


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("service", SERVICES)
def test_the_help_is_whole_at_any_width(service: str, columns: int) -> None:
    said = run(service, "help", COLUMNS=str(columns))
    assert max(map(len, said.splitlines())) <= columns
    for does in import_module(f"{service}.__main__").COMMANDS.values():
        assert does in " ".join(said.split())
