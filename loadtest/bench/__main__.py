"""`python -m loadtest.bench [CASE …] [--rounds N] [--rows N]`: run cases, print the table, write results/bench.json.

A CASE is a name or the beginning of one ("ingest", "reconcile.users"). Sizes and rounds may also come from the
variables CASE, ROUNDS and ROWS. ROWS=5000000 is the full run: half an hour on two processors. Ctrl-C stops
everything.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from compose.local.processes import StackError
from loadtest.bench import (
    adopting,
    asking,
    clustering,
    grouping,
    growing,
    ingesting,
    keeping,
    partitioning,
    querying,
    reconciling,
    resharding,
    statements,
)
from loadtest.bench.load import LoadFailed
from loadtest.bench.reconciling import CommandFailed
from loadtest.bench.results import Report
from loadtest.bench.world import World, temporary_folder

ROUNDS, ROWS = 3, 500_000
RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench.json"

Case = Callable[[World, Report, int, int], None]
CASES: dict[str, Case] = {
    **ingesting.CASES,
    **querying.CASES,
    **reconciling.CASES,
    **adopting.CASES,
    **statements.CASES,
    **growing.CASES,
    **grouping.CASES,
    **resharding.CASES,
    **asking.CASES,
    **keeping.CASES,
    **partitioning.CASES,
    **clustering.CASES,
}


def main() -> int:
    options = read_options()
    names = [name for name in CASES if not options.cases or name.startswith(tuple(options.cases))]
    if not names:
        print(f"There is no case {' '.join(options.cases)}; there are: {', '.join(CASES)}.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 160)
    report, failed = Report(), False
    try:
        for name in names:
            console.print(f"{time.strftime('%H:%M:%S')} {name} …")
            # A world for each case, so that the caches and logs of one case do not affect the next one.
            with temporary_folder() as folder, World(folder) as world:
                report.begin(name)
                try:
                    CASES[name](world, report, options.rounds, options.rows)
                except (LoadFailed, CommandFailed, StackError) as error:
                    failed = True
                    console.print(f"[red]{name} failed:[/red] {error}")
    except KeyboardInterrupt:
        console.print("Interrupted; every process is ended.")
        return 130
    report.print(console)
    report.write(RESULTS)
    return 1 if failed else 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=os.environ.get("CASE", "").split())
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or ROUNDS))
    parser.add_argument("--rows", type=int, default=int(os.environ.get("ROWS") or ROWS))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
