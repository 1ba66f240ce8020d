"""`python -m compose.local up|demo|demo-adopt|status|logs|restart|down|reset`: what the Makefile's targets call."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compose.local.logs import follow
from compose.local.ordinary_user import CHECKOUT, CannotBecomeOrdinary
from compose.local.processes import StackError
from compose.local.services import Web
from compose.local.stack import Stack, Standing, alone, open_stack


def up(folder: Path) -> int:
    """Start the processes that do not run, and wait until they are ready."""
    stack, started = bring_up(folder)
    show(stack.standing())
    print(
        f"""
Live counts   {stack.query.url}/
Console       {stack.manage.url}/   (its token: {stack.manage.token_path})
API pages     {stack.ingest.url}/docs  {stack.manage.url}/docs  {stack.query.url}/docs
{admin(stack)}
Logs          {stack.folder / "log"}"""
    )
    if not started:
        print("Everything was running already.")
    return 0


def bring_up(folder: Path) -> tuple[Stack, list[str]]:
    """Start the stack; returns it, and the names of the started processes."""
    with alone(folder):
        stack = open_stack(folder, to_start=True)
        print("Starting the stack …", flush=True)
        return stack, stack.up()


def status(folder: Path) -> int:
    """Each process, its port, its health, and what is wrong. The exit code is 0 when nothing is."""
    stack = open_stack(folder)
    if not stack.exists():
        print("There is no stack here; `make up` starts one.")
        return 1
    standing = stack.standing()
    show(standing)
    findings = stack.findings()
    for finding in findings:
        print(f"Wrong: {finding}.")
    if sys.stdout.isatty():
        print("\n" + examples(stack) + "\n" + admin(stack))
    return 0 if all(each.ok for each in standing) and not findings else 1


def logs(folder: Path, service: str | None) -> int:
    """The end of every log, and new lines until Ctrl-C."""
    stack = existing_stack(folder)
    chosen = stack.chosen([service] if service else None)
    try:
        for line in follow({process.name: process.log for process in chosen}):
            print(line, flush=True)
    except KeyboardInterrupt:  # the normal end
        return 0
    except BrokenPipeError:  # a reader that wanted only the first lines has closed the pipe
        sys.stdout = None  # there is no reader left to flush to
    return 0


def restart(folder: Path, service: str | None) -> int:
    """Stop the services, or one process, and start them again; the data stays."""
    with alone(folder):
        existing_stack(folder)
        stack = open_stack(folder, to_start=True)
        chosen = stack.chosen([service]) if service else stack.services
        print(f"Restarting {', '.join(process.name for process in chosen)} …", flush=True)
        stack.restart(chosen)
    show(stack.standing())
    return 0


def existing_stack(folder: Path) -> Stack:
    """The stack that was started here."""
    stack = open_stack(folder)
    if not stack.exists():
        raise StackError("There is no stack here; `make up` starts one.")
    return stack


def examples(stack: Stack) -> str:
    """Commands that work in this shell: a message, the status, the counts."""

    def with_token(service: Web) -> str:
        return f'curl -H "Authorization: Bearer $(cat {shlex.quote(str(service.token_path))})"'

    message = '{"state": "NY", "city": "Ithaca", "username": "ann", "message": "hello"}'
    return "\n".join(
        [
            f"{with_token(stack.ingest)} -H 'Content-Type: application/json' -d '{message}' {stack.ingest.url}/v1/messages",
            f"{with_token(stack.manage)} {stack.manage.url}/v1/status",
            f"curl {stack.query.url}/v1/counts",
        ]
    )


def admin(stack: Stack) -> str:
    """The address of the admin, and its user."""
    ingest = stack.ingest
    return (
        f"Admin         {ingest.admin_url}  as {ingest.first_user}, with the password in {ingest.admin_password_path}"
    )


def down(folder: Path) -> int:
    """Stop every process."""
    with alone(folder):
        ended = open_stack(folder).down()
    print(f"Ended {', '.join(ended)}." if ended else "Nothing was running.")
    return 0


def reset(folder: Path) -> int:
    """Stop every process and remove the data; keep the chosen ports."""
    with alone(folder):
        open_stack(folder).reset()
    print("The stack's processes are ended and its data is removed.")
    return 0


def demo(folder: Path) -> int:
    """Start the stack, send messages from real cities, and compare the counts with COUNT(DISTINCT)."""
    stack, _ = bring_up(folder)
    # Imported here: only the demo needs Django and the cities.
    from compose.local import demo as demonstration

    return demonstration.run(stack)


def demo_adopt(folder: Path) -> int:
    """Start the stack, adopt a table while its application works, and compare its counts with COUNT(DISTINCT)."""
    stack, _ = bring_up(folder)
    from compose.local import demo_adopt as demonstration

    with alone(folder):
        return demonstration.run(stack)


def variables(folder: Path, service: str) -> int:
    """The environment of a service of this stack, for a shell: eval "$(python -m compose.local variables manage)".

    `owner` is ingest with the role that may migrate, and empty a table.
    """
    stack = existing_stack(folder)
    of_service = stack.owner_variables if service == "owner" else getattr(stack, service).variables
    for name, value in of_service().items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def show(standing: list[Standing]) -> None:
    """A table for people, plain lines for programs."""
    if not sys.stdout.isatty():
        for each in standing:
            print(f"{each.name:<8} pid {each.pid or '-':<8} port {each.port or '-':<6} {each.health}")
        return
    table = Table("process", "pid", "port", "health", box=box.SIMPLE_HEAD)
    for each in standing:
        health = Text(each.health, style="green" if each.ok else "red")
        table.add_row(each.name, str(each.pid or "–"), str(each.port or "–"), health)
    Console(highlight=False).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m compose.local", description="The local stack.")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / ".local", help="where its state lies")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for simple in (up, demo, demo_adopt, status, down, reset):
        commands.add_parser(simple.__name__.replace("_", "-"), help=simple.__doc__).set_defaults(command=simple)
    for choosing in (logs, restart):
        command = commands.add_parser(choosing.__name__, help=choosing.__doc__)
        command.add_argument("service", nargs="?", metavar="SERVICE", help="one process only")
        command.set_defaults(command=choosing)
    printing = commands.add_parser(variables.__name__, help=variables.__doc__)
    printing.add_argument("service", choices=["ingest", "manage", "query", "owner"])
    printing.set_defaults(command=variables)
    arguments = vars(parser.parse_args())
    run = arguments.pop("command")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(run(**arguments))
    except (StackError, CannotBecomeOrdinary) as error:
        print(error, file=sys.stderr)
    except PermissionError as error:
        print(f"{error.filename} belongs to another user: run this as the user who started the stack.", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
