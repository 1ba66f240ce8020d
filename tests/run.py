"""`python -m tests.run`: every folder of tests in a pytest process of its own, two more at a time than there are processors.

The two more because many tests wait, for a timer or for another process. Settings of Django are per process, so the tests
of two services cannot share one. Each folder's output is printed whole when it ends; the last line adds them up.
A chromium for the tests of the pages is found or installed first. Arguments are handed to pytest: `python -m tests.run -k cold`.
With `--fast` as the first one: what needs no server, without the deep worlds of the search. With `--long`: the tests that are
marked so, and no others.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from xml.etree import ElementTree

from tests.browser import chromium

ROOT = Path(__file__).resolve().parent.parent

# The longest first, so that the processors end together; the longest folder in two, of about the same length.
FOLDERS = (
    *("system", "manage/test_[a-k]*.py", "manage/test_[l-z]*.py", "browser", "failures", "local", "ingest"),
    *("protocol", "edge", "adopt", "deploy", "admin", "query", "hostile", "contract", "unit"),
)

# Parts that two processors end at about the same time.
FAST: tuple[str, ...] = ("protocol/test_worlds.py", "protocol/test_rules.py", "contract", "unit")

# What the tests start, hundreds of times.
PROGRAMS = ("ingest_service", "manage_service", "query_service", "shared_models", "compose")

# Those with tests that are marked as long.
LONG = ("failures", "protocol", "system", "local", "manage", "query", "ingest", "browser")

NOTHING_COLLECTED = 5  # pytest's exit status


def main() -> int:
    began = time.monotonic()
    tier, options = sys.argv[1:2], sys.argv[2:]
    if tier == ["--fast"]:
        parts, options = FAST, ["-m", "not deep", *options]
    elif tier == ["--long"]:
        parts, options = LONG, ["-m", "long", *options]
    else:
        parts, options = FOLDERS, ["-m", "not long", *sys.argv[1:]]
    if "browser" in parts:
        try:
            chromium.provide()
        except chromium.NoChromium as error:
            print(error, flush=True)  # and the tests that want it fail
    tally, failed = run_parts(parts, options)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"Took {minutes} min {seconds} s." + (f" Failed: {', '.join(sorted(failed))}." if failed else ""))
    if not tally["passed"]:
        print("No test ran.")
    # The last line, alone: what programs look for.
    print(in_words(tally))
    return 1 if failed or not tally["passed"] else 0


def run_parts(parts: Sequence[str], options: list[str]) -> tuple[Counter[str], list[str]]:
    """How many tests passed, failed and were skipped, and the parts that failed. Prints each part when it ends."""
    for program in PROGRAMS:
        # Once, here: services run as an ordinary user, who cannot write what it has compiled, and some people have told
        # Python not to write any (PYTHONDONTWRITEBYTECODE).
        compileall.compile_dir(ROOT / program, quiet=2)
    tally: Counter[str] = Counter()
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="rollcall-reports-") as reports,
        ThreadPoolExecutor(max_workers=2 + (os.cpu_count() or 1)) as pool,
    ):
        running = {
            pool.submit(run_part, part, options, report := Path(reports) / f"{number}.xml"): (part, report)
            for number, part in enumerate(parts)
        }
        for done in as_completed(running):
            (part, report), (status, output) = running[done], done.result()
            print(f"tests/{part}\n{output}", flush=True)
            if status not in (0, NOTHING_COLLECTED):
                failed.append(f"tests/{part}")
            tally += outcomes(report)
    return tally, failed


def run_part(part: str, options: list[str], report: Path) -> tuple[int, str]:
    """pytest's exit status and output for one folder, or some files."""
    # A folder of its own for its tests' files, which goes with the reports: pytest's would be shared with whoever else
    # runs tests on this machine, and tidied up by them.
    for_us = ["-q", f"--junit-xml={report}", f"--basetemp={report.with_suffix('')}"]
    paths = map(str, paths_of(part))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *for_us, *paths, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout


def paths_of(part: str) -> list[Path]:
    """A part is a pattern below tests/, or several with blanks between. Each names something: pytest would run everything."""
    paths = []
    for pattern in part.split():
        found = sorted(ROOT.glob(f"tests/{pattern}"))
        assert found, f"there is no tests/{pattern}"
        paths += found
    return paths


def outcomes(report: Path) -> Counter[str]:
    """How many tests passed, failed and were skipped, from the report in JUnit's format."""
    tally: Counter[str] = Counter()
    if not report.exists():  # pytest did not get that far
        return tally
    for suite in ElementTree.parse(report).iter("testsuite"):
        tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        tally.update(passed=tests - bad - skipped, failed=bad, skipped=skipped)
    return tally


def in_words(tally: Counter[str]) -> str:
    return ", ".join(f"{tally[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))


if __name__ == "__main__":
    sys.exit(main())
