"""`python -m loadtest.scale [--rows N …] [--members M …]`: measure large tables, next to what the formulas say.

Two small tables are measured first: they give the costs of a row and of a member on this machine (`formulas`). The full table
has 50 million rows and 10 million members, and needs 40 GB of disk and half an hour. Prints a table of figures for each, and adds
them to results/scale.json. Several numbers of rows and of members are several tables. Ctrl-C stops everything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

from compose.local.processes import StackError
from loadtest.bench.reconciling import CommandFailed
from loadtest.bench.results import Report, Result, number
from loadtest.bench.world import World, temporary_folder
from loadtest.scale import formulas
from loadtest.scale.measuring import CATCH_UP, SHARDS, Measured, measure

ROWS, MEMBERS = 50_000_000, 10_000_000
# The small tables: as many rows for a member as the full one, and fewer. Both are read in the same way (`jumping_pays`).
SMALL = ((2_000_000, 400_000), (2_000_000, 1_000_000))
# Two copies of the table, and the log meanwhile.
DISK_BYTES_A_ROW, DISK_BYTES = 400, 16 << 30
SETTINGS = {"shared_buffers": "2GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min", "autovacuum": "off"}
RESULTS = Path(__file__).resolve().parent.parent / "results" / "scale.json"


def main() -> int:
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        with temporary_folder() as folder:
            check_space(folder, max(options.rows))
            # A world for each table, so that caches and logs of one do not affect the next one.
            small, other = (measure_in(folder / f"small-{n}", *size) for n, size in enumerate(SMALL))
            for rows, members in zip(options.rows, options.members, strict=True):
                report = Report()
                report.begin(f"scale, {rows:,} rows, {members:,} members")
                compare(report, small, other, measure_in(folder / f"large-{rows}", rows, members))
                report.print(console)
                report.write(RESULTS)
    except (CommandFailed, StackError, NoSpace) as error:
        console.print(f"[red]failed:[/red] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; every process is ended.")
        return 130
    return 0


class NoSpace(Exception):
    """The disk is too small for so many rows."""


def check_space(folder: Path, rows: int) -> None:
    """Raises NoSpace."""
    needed, free = DISK_BYTES + rows * DISK_BYTES_A_ROW, shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpace(
            f"{rows:,} rows need {needed / 2**30:.0f} GB in {folder.parent}, and {free / 2**30:.0f} GB are free. "
            "Take fewer ROWS, or another folder (TMPDIR)."
        )


def measure_in(folder: Path, rows: int, members: int) -> Measured:
    """One table, in servers of its own."""
    with World(folder) as world:
        world.primary_settings = SETTINGS
        found = measure(world, rows, members)
    shutil.rmtree(folder)
    return found


def compare(report: Report, small: Measured, other: Measured, large: Measured) -> None:
    """What was measured, next to what the formulas say by the small tables."""
    rows, members = large.rows, large.members

    def solved(name: str, of_small: float, of_other: float, scale: float) -> tuple[float, str]:
        """What the formula says of the large table, and the costs in it."""
        costs = formulas.solve(
            (small.rows, small.members, of_small),
            (other.rows, other.members, of_other),
        )
        said = f"{number(costs.row * scale)} a row, {number(costs.member * scale)} a member"
        return costs.of(rows, members), said

    for name, size in large.disk_bytes.items():
        says, costs = solved(name, small.disk_bytes[name], other.disk_bytes[name], 1)
        report.add(
            Result(f"scale.disk: {name}", "MB", "formula, MB", [(size / 1e6, says / 1e6)], note=f"bytes: {costs}")
        )
    for shards, size in large.redis_bytes.items():
        buckets = shards * formulas.bucket_bytes(small.members // shards)
        entry = (small.redis_bytes[shards] - buckets) / small.members
        says = formulas.redis_bytes(members, entry, shards)
        report.add(
            Result(f"scale.redis: {shards} {'shards' if shards == SHARDS else 'shard'}", "bytes a member",
                   "formula, bytes a member", [(size / members, says / members)],
                   note=f"{size / 1e6:,.0f} MB; a member {entry:.1f} bytes, and its share of the buckets"),
        )  # fmt: skip
    for name, seconds in large.processor_seconds.items():
        says, costs = solved(name, small.processor_seconds[name], other.processor_seconds[name], 1e6)
        if name == CATCH_UP:
            row = small.processor_seconds[name] / small.new_rows
            says, costs = row * large.new_rows, f"{row * 1e6:.1f} a new row, {large.new_rows:,} rows"
        report.add(
            Result(f"scale.time: {name}", "s of processors", "formula, s", [(seconds, says)],
                   note=f"µs: {costs}; it took {large.seconds[name]:.1f} s")
        )  # fmt: skip
    note = f"{rows:,} rows, {members:,} members"
    counts = [(large.count_ms, small.count_ms)]
    report.add(Result("scale.time: a count", "ms", f"with {small.rows:,} rows, ms", counts, note=note))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.scale", description=__doc__)
    for name, default in (("rows", ROWS), ("members", MEMBERS)):
        given = list(map(int, os.environ.get(name.upper(), "").split()))
        parser.add_argument(f"--{name}", type=int, nargs="+", default=given or [default])
    options = parser.parse_args()
    if len(options.rows) != len(options.members):
        parser.error("as many numbers of rows as of members")
    return options


if __name__ == "__main__":
    sys.exit(main())
