"""The command line of a service: `python -m manage_service <command>`.

Django finds and runs the commands. Django's help lists forty commands of its own, and its `--version` prints Django's.
Here both are Rollcall's, and need no settings. Django's other commands still work.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from shared_models import __version__

INDENT_COLUMNS = 4


def run(service: str, commands: Mapping[str, str], arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name. `commands`: the commands in the help, and what each does."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    program = f"python -m {service}"
    if "--version" in given or given == ["version"]:
        print(f"rollcall {__version__}")
    elif given in ([], ["help"], ["--help"], ["-h"]):
        print(describe(program, commands))
    elif given == ["help", "--commands"]:
        print("\n".join(commands))
    else:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", f"{service}.settings")
        try:
            from django.core.management import execute_from_command_line
        except ModuleNotFoundError:
            without = f"{service}: {sys.executable} does not have its packages"
            sys.exit(f"{without}. In a checkout use .venv/bin/python, which `make env` makes.")
        execute_from_command_line([program, *given])


def describe(program: str, commands: Mapping[str, str]) -> str:
    """The help: each command on a line, and below it what it does."""
    indent = " " * INDENT_COLUMNS
    width = max(40, shutil.get_terminal_size().columns)
    lines = [f"usage: {program} COMMAND …", "", "commands:"]
    for name, does in commands.items():
        lines += [f"  {name}", *textwrap.wrap(does, width, initial_indent=indent, subsequent_indent=indent)]
    return "\n".join(
        [*lines, "", f"{program} COMMAND --help", f"{indent}says what a command takes", f"{program} --version"]
    )
