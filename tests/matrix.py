"""`python -m tests.matrix`: the tests that depend on a store, with other versions of it than the wheels'.

It runs what is installed, one version after the other, and says what is missing. Postgres is looked for where Debian and
Ubuntu put it. Of Redis and Valkey only one version each can be installed by a package: the one in PATH is taken. A server that
POSTGRES_BIN or REDIS_SERVER names, of whatever version, is run in place of all these.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tests.run import in_words, run_parts

# The versions of Postgres that adopted tables may have, without the wheel's (18), which `make test` runs.
POSTGRES = (15, 16, 17)
POSTGRES_FOLDER = Path("/usr/lib/postgresql")
# Program, and the versions to test in addition to the wheel's (Valkey 9).
REDIS = (("redis-server", (7, 8)), ("valkey-server", (8,)))

# What reads catalogs, snapshots and types. Each part is a process, and starts its own servers.
WITH_POSTGRES = (
    "manage/test_departures.py manage/test_types*.py manage/test_written_by_others.py manage/test_copied.py",
    "manage/test_partitions.py manage/test_several_replicas.py",
    "ingest/test_partitions.py",
    "adopt",
)
# Scripts, transactions, rights, and what a server says when it refuses or starts.
WITH_REDIS = (
    "ingest",
    "manage/test_build.py manage/test_catch_up.py manage/test_reconcile.py manage/test_stores.py manage/test_departures.py",
    "query",
    "system/test_stores_locked.py system/test_whole.py",
    "deploy/test_stores.py",
)


@dataclass(frozen=True)
class Member:
    """One version of one server: the variable that leads to it, or None if it is not installed."""

    name: str
    variable: tuple[str, str] | None
    parts: tuple[str, ...]


def named() -> Iterator[Member]:
    """Those that a variable names."""
    for variable, program, parts in (("POSTGRES_BIN", "postgres", WITH_POSTGRES), ("REDIS_SERVER", "", WITH_REDIS)):
        if value := os.environ.get(variable):
            yield Member(version_of(str(Path(value) / program)), (variable, value), parts)


def installed() -> Iterator[Member]:
    """Those that are looked for."""
    for version in POSTGRES:
        folder = POSTGRES_FOLDER / str(version) / "bin"
        found = ("POSTGRES_BIN", str(folder)) if (folder / "postgres").exists() else None
        yield Member(f"Postgres {version}", found, WITH_POSTGRES)
    for program, versions in REDIS:
        path = shutil.which(program)
        for version in versions:
            name = f"{program.partition('-')[0].capitalize()} {version}"
            found = ("REDIS_SERVER", path) if path and version_of(path).startswith(f"{name}.") else None
            yield Member(name, found, WITH_REDIS)


def version_of(program: str) -> str:
    """Of "Redis server v=7.0.15 sha=…": Redis 7.0.15; of "postgres (PostgreSQL) 17.10": Postgres 17.10."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.findall(r"(?:v=|PostgreSQL\) )([\d.]+)", said)[0]
    return f"{said.split()[0].capitalize()} {version}"


def main() -> int:
    results: list[str] = []
    missing: list[str] = []
    all_well = True
    for member in list(named()) or installed():
        if member.variable is None:
            missing.append(member.name)
            continue
        name, value = member.variable
        print(f"{member.name} ({name}={value}): tests/{', tests/'.join(' '.join(member.parts).split())}", flush=True)
        with mock.patch.dict(os.environ, {name: value}):
            tally, failed = run_parts(member.parts, ["-m", "not long", *sys.argv[1:]])
        results.append(f"{member.name}: {in_words(tally)}." + (f" Failed: {', '.join(failed)}." if failed else ""))
        all_well = all_well and not failed and tally["passed"] > 0
    print(*results, *([f"Not installed, so not run: {', '.join(missing)}."] if missing else []), sep="\n")
    if not results:
        print(
            "Nothing was run. On Debian 12: apt install postgresql-15 redis-server. The servers that apt starts may be ended."
        )
    return 0 if results and all_well else 1


if __name__ == "__main__":
    sys.exit(main())
