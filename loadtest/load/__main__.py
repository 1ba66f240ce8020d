"""`python -m loadtest.load`: locust against a stack of its own, and then the verdict; exits with 1 if anything is wrong.

The stack is the one of `make up`, with its roles, tokens and fsync, in a folder and on ports of its own; it ends
in any case.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg2
import redis

from compose.local.ordinary_user import CHECKOUT, own
from compose.local.ports import DEFAULTS, free_port
from compose.local.processes import StackError
from compose.local.servers import read_secret
from compose.local.stack import Stack
from loadtest.load.settling import StillUnequal, served_counts, wait_until_settled
from loadtest.load.verdict import COUNTED, judge_counter, judge_messages

RESULTS = CHECKOUT / "loadtest" / "results"
USERS, SECONDS, PROFILE = 50, 60.0, "mixed"
# How long a request may take at the end of the load: its attempts with a key, while the stores work.
STOP_SECONDS = 30
# Above this share the client is the limit.
BUSY = 0.85


def main() -> int:
    options = read_options()
    signal.signal(signal.SIGTERM, interrupt)
    folder = Path(tempfile.mkdtemp(prefix="rollcall-load-")).resolve()
    own(folder)
    try:
        with standing(folder) as stack:
            findings = run(stack, options, folder / "ledger")
    except KeyboardInterrupt:
        print("Interrupted; every process is ended.", file=sys.stderr)
        return 130
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Report: {options.results / 'load.html'}")
    if not findings:
        print("Nothing is wrong.")
        return 0
    print("\nWRONG:", *findings, sep="\n    ")
    return 1


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.load", description="Load, and then the verdict.")
    parser.add_argument("--users", type=int, default=USERS, help="how many clients, all of one process of locust")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long they work")
    parser.add_argument("--profile", choices=("ingest", "query", "mixed"), default=PROFILE, help="who takes part")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where locust's reports go")
    options = parser.parse_args()
    if options.users < 1 or options.seconds < 1:
        parser.error("--users and --seconds are 1 at least")
    return options


@contextlib.contextmanager
def standing(folder: Path) -> Iterator[Stack]:
    """A running stack with live counters; it ends in any case."""
    stack = Stack(folder, {variable: free_port() for variable in DEFAULTS})
    try:
        print("Starting a stack …", flush=True)
        stack.up()
        wait_until_settled(stack)
        yield stack
    finally:
        # A second Ctrl-C would leave half of it behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # Nobody needs what they would tidy up: the folder goes next.
        for service in stack.services:
            service.kill()
        stack.down()


def run(stack: Stack, options: argparse.Namespace, path: Path) -> list[str]:
    """The load, the wait for the keeper, the verdict; returns the errors."""
    print(f"{options.users} clients for {options.seconds:g} s ({options.profile}) …", flush=True)
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    status = run_locust(stack, options, path)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = (after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime) / seconds
    if status not in (0, 1):
        return [f"locust ended with status {status}"]
    findings = failures(options.results)
    if status and not findings:
        findings.append("locust says that something failed; see above")
    findings += [f"{standing.name}: {standing.health}" for standing in stack.standing() if not standing.ok]

    quiet = time.monotonic()
    try:
        wait_until_settled(stack)
    except StillUnequal as error:
        findings.append(str(error))
    settled_seconds = time.monotonic() - quiet
    findings += judge(stack, path, options.seconds)
    print(f"Counters were complete {settled_seconds:.1f} s after the last request.")
    limit = "; the client was the limit, not the stack: the figures do not measure the stack" if busy > BUSY else ""
    print(f"The client (one process of locust) used {busy:.0%} of a processor{limit}.")
    return findings


def run_locust(stack: Stack, options: argparse.Namespace, path: Path) -> int:
    """Its exit status: 1 if a request failed."""
    options.results.mkdir(parents=True, exist_ok=True)
    for old in options.results.glob("load[._]*"):
        old.unlink()
    variables = {}
    for name in ("ingest", "manage", "query"):
        service = getattr(stack, name)
        variables[f"{name.upper()}_URL"] = service.url
        variables[f"{name.upper()}_TOKEN"] = read_secret(service.token_path) if service.token_path.exists() else ""
    command = [
        *(sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"),
        *("-u", str(options.users), "-r", str(options.users), "-t", f"{options.seconds:g}s"),
        *("--stop-timeout", str(STOP_SECONDS), "--loglevel", "WARNING", "--mix", options.profile),
        *("--html", str(options.results / "load.html"), "--csv", str(options.results / "load"), "--ledger", str(path)),
    ]
    # In a session of its own: this process handles Ctrl-C.
    locust = subprocess.Popen(command, cwd=CHECKOUT, env={**os.environ, **variables}, start_new_session=True)
    try:
        return locust.wait(options.seconds + 2 * STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print("locust does not end", file=sys.stderr)
        return -1
    finally:
        locust.kill()
        locust.wait()


def failures(results: Path) -> list[str]:
    """Failed requests and clients, from locust's tables."""
    return [
        *(
            f"{row['Occurrences']} times {row['Method']} {row['Name']}: {row['Error']}"
            for row in read_table(results / "load_failures.csv")
        ),
        *(
            f"{row['Count']} times a client failed: {row['Message']}"
            for row in read_table(results / "load_exceptions.csv")
        ),
    ]


def read_table(path: Path) -> list[dict[str, str]]:
    """One of locust's tables."""
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def judge(stack: Stack, path: Path, seconds: float) -> list[str]:
    """Compare messages with the ledger, and counters with the table; prints the figures."""
    with contextlib.closing(psycopg2.connect(stack.primary.url)) as database:
        messages = judge_messages(path, streamed(database, "SELECT id, state, city, username, message FROM message"))
        rate = messages.acknowledged / seconds
        print(f"{messages.acknowledged:,} rows acknowledged ({rate:,.0f}/s), {messages.unknown:,} of unknown outcome.")
        findings = messages.findings.lines()
        with redis.Redis.from_url(stack.valkey.url) as client:
            served = served_counts(stack)
            for counter in COUNTED:
                rows = streamed(database, f"SELECT DISTINCT {', '.join(counter.fields)} FROM message")
                number, wrong = judge_counter(counter, rows, client, served[counter.name]["count"])
                print(f"{counter.name}: {number:,} in the table, {'not ' if wrong else ''}equal member by member.")
                findings += wrong
    return findings


def streamed(database: Any, statement: str) -> Iterator[tuple[Any, ...]]:
    """All rows, one at a time."""
    with database.cursor("streamed") as cursor:
        cursor.itersize = 10_000
        cursor.execute(statement)
        yield from cursor


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
