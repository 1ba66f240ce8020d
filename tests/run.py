"""`python -m tests.run`: every folder of tests in a pytest process of its own, one more at a time than there are processors.

The one more because many tests wait, for a timer or for another process. Settings of Django are per process, so the tests
of two services cannot share one. Each folder's output is printed whole when it ends; the last line adds them up.
A chromium for the tests of the pages is found or installed first. Arguments are handed to pytest: `python -m tests.run -k cold`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from xml.etree import ElementTree

from tests.browser import chromium

ROOT = Path(__file__).resolve().parent.parent

# The longest first, so that the processors end together.
FOLDERS = (
    *("failures", "system", "manage", "query", "ingest", "browser"),
    *("admin", "protocol", "deploy", "contract", "unit"),
)

NOTHING_COLLECTED = 5  # pytest's exit status


def main() -> int:
    began = time.monotonic()
    try:
        chromium.provide()
    except chromium.NoChromium as error:
        print(error, flush=True)  # and the tests that want it fail
    tally: Counter[str] = Counter()
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="rollcall-reports-") as reports,
        ThreadPoolExecutor(max_workers=1 + (os.cpu_count() or 1)) as pool,
    ):
        running = {
            pool.submit(run_folder, folder, Path(reports) / f"{folder}.xml"): folder
            for folder in FOLDERS
            if any((ROOT / "tests" / folder).glob("test_*.py"))
        }
        for done in as_completed(running):
            folder, (status, output) = running[done], done.result()
            print(f"tests/{folder}\n{output}", flush=True)
            if status not in (0, NOTHING_COLLECTED):
                failed.append(f"tests/{folder}")
            tally += outcomes(Path(reports) / f"{folder}.xml")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"Took {minutes} min {seconds} s." + (f" Failed: {', '.join(sorted(failed))}." if failed else ""))
    if not tally["passed"]:
        print("No test ran.")
    # The last line, alone: what programs look for.
    print(", ".join(f"{tally[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")))
    return 1 if failed or not tally["passed"] else 0


def run_folder(folder: str, report: Path) -> tuple[int, str]:
    """pytest's exit status and output for one folder."""
    # A folder of its own for its tests' files, which goes with the reports: pytest's would be shared with whoever else
    # runs tests on this machine, and tidied up by them.
    options = ["-q", f"--junit-xml={report}", f"--basetemp={report.with_suffix('')}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/{folder}", *sys.argv[1:]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout


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


if __name__ == "__main__":
    sys.exit(main())
