"""`python -m loadtest.chaos`: the whole stack under faults from a seed; exits with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from compose.local.ordinary_user import own
from loadtest.chaos import report
from loadtest.chaos.journal import Journal
from loadtest.chaos.rounds import Result, run_round
from loadtest.chaos.rules import RULES
from loadtest.chaos.schedule import NAMES, SHARDS
from loadtest.chaos.stack import ChaosStack

ROUND_SECONDS = 20.0
SHOWN_VIOLATIONS = 20


def main() -> int:
    options = read_options()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    rounds = options.rounds or max(1, round(options.seconds / ROUND_SECONDS))
    again = f".venv/bin/python -m loadtest.chaos --seed {seed} --seconds {options.seconds:g} --rounds {rounds}"
    again += "".join(f" --kind '{kind}'" for kind in options.kind or ())
    again += f" --without '{options.without}'" if options.without else ""
    again += " --single" if options.single else ""
    again += f" --cluster {options.cluster}" if options.cluster else ""
    print(f"Seed {seed}. The same again: {again}", flush=True)
    signal.signal(signal.SIGTERM, interrupt)
    folder = Path(tempfile.mkdtemp(prefix="rollcall-chaos-")).resolve()
    own(folder)
    results: list[Result] = []
    kept = options.keep
    try:
        with standing(
            ChaosStack(folder, options.without, single=options.single, cluster=bool(options.cluster))
        ) as stack:
            path = folder / "journal.jsonl"
            journal = Journal(path)
            began = time.monotonic()

            def say(line: str) -> None:
                if options.verbose:
                    print(f"[{time.monotonic() - began:6.1f}] {line}", flush=True)

            for number in range(1, rounds + 1):
                seconds = options.seconds / rounds
                result = run_round(stack, journal, path, seed, number, seconds, options.kind or NAMES, say)
                results.append(result)
                show(number, rounds, result)
                if result.verdict.violations:
                    kept = True
                    break
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BaseException:
        kept = True
        raise
    finally:
        tidy(folder, kept)
    print("\n".join(report.lines(results)))
    if not any(result.verdict.violations for result in results):
        return 0
    print(f"\nBROKEN. Logs and journal: {folder}\nThe same again: {again}")
    return 1


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description="The whole stack under faults.")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long faults are injected, in all rounds together"
    )
    parser.add_argument("--seed", type=int, help="which faults; random by default")
    parser.add_argument("--rounds", type=int, help=f"one for each {ROUND_SECONDS:.0f} s by default")
    parser.add_argument("--kind", action="append", choices=NAMES, help="only faults of this kind; may be repeated")
    parser.add_argument(
        "--without", default="", choices=["", *RULES], help="leave out a rule of the protocol: must fail"
    )
    parser.add_argument("--single", action="store_true", help="no replica: manage reads the primary")
    parser.add_argument(
        "--cluster", type=int, default=0, choices=(0, len(SHARDS)), help="how many primaries Redis has; 0: one server"
    )
    parser.add_argument("--keep", action="store_true", help="keep logs and journal also if nothing is wrong")
    parser.add_argument("--quiet", dest="verbose", action="store_false", help="do not print the faults")
    return parser.parse_args()


@contextlib.contextmanager
def standing(stack: ChaosStack) -> Iterator[ChaosStack]:
    """The running stack; it ends in any case."""
    try:
        stack.up()
        yield stack
    finally:
        # A second Ctrl-C would leave processes behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        stack.down()


def show(number: int, rounds: int, result: Result) -> None:
    """A line for each round, and the errors, if there are any."""
    verdict, seconds = result.verdict, result.rest.exact_seconds
    print(
        f"Round {number} of {rounds}: {len(result.faults)} faults, {len(result.history.requests)} requests, "
        f"{verdict.counts} counts and {verdict.memberships} memberships judged, {len(verdict.violations)} wrong; "
        f"{'never exact' if seconds is None else f'exact after {seconds:.1f} s'}",
        flush=True,
    )
    for violation in verdict.violations[:SHOWN_VIOLATIONS]:
        print(f"    {violation}", flush=True)


def tidy(folder: Path, kept: bool) -> None:
    """Remove everything, or keep the logs and the journal."""
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path.is_dir() and path.name != "log":
            shutil.rmtree(path, ignore_errors=True)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
