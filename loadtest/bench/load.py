"""Load from outside: wrk where it is installed, else a client of our own, which says when it is itself the limit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from compose.local.ordinary_user import CHECKOUT

POST_SCRIPT = Path(__file__).parent / "wrk" / "post.lua"
WITHOUT_WRK = (
    "wrk is not installed (Debian, Ubuntu: apt-get install wrk; macOS: brew install wrk): a client in Python was used; "
    "it takes some 3 times the processor time, and figures that it limits are marked"
)

UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class LoadFailed(Exception):
    """The answers were not what they should have been; the message says which."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run has measured."""

    per_second: float
    p50_ms: float
    p99_ms: float
    # The client was as busy as it can be: the figure is a lower bound.
    limited_by_client: bool = False


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def as_fast_as_possible(url: str, *, connections: int, seconds: float, posting: bool = False) -> Load:
    """Each connection sends its next request when it has its answer. `posting`: messages, else GET."""
    if not has_wrk():
        return with_client(url, connections=connections, seconds=seconds, posting=posting)
    # A slow answer is an answer, and shows in the latency.
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "30s"]
    said = run([*command, *(["-s", str(POST_SCRIPT)] if posting else []), url])
    if "Non-2xx" in said or "Socket errors" in said:
        raise LoadFailed(f"{url}: {said}")
    return Load(
        per_second=float(found(r"Requests/sec:\s+(\S+)", said)),
        p50_ms=in_ms(found(r"\n +50% +(\S+)", said)),
        p99_ms=in_ms(found(r"\n +99% +(\S+)", said)),
    )


def at_rate(url: str, *, rate: float, connections: int, seconds: float, posting: bool = False) -> Load:
    """So many requests a second, whatever the answers take. Latency counts from when a request was due."""
    return with_client(url, connections=connections, seconds=seconds, posting=posting, rate=rate)


def with_client(url: str, *, connections: int, seconds: float, posting: bool, rate: float = 0.0) -> Load:
    """The client of our own, in a process of its own."""
    words = [f"--connections={connections}", f"--seconds={seconds}", f"--rate={rate}", *(["--post"] if posting else [])]
    answer = json.loads(run([sys.executable, "-m", "loadtest.bench.client", *words, url]))
    if answer.pop("failed"):
        raise LoadFailed(f"{url}: some answers were not 2xx")
    return Load(**answer)


def run(command: list[str]) -> str:
    """Its output; LoadFailed where it fails."""
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode != 0:
        raise LoadFailed(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise LoadFailed(f"cannot find {pattern} in: {text}")
    return match[1]


def in_ms(text: str) -> float:
    """wrk's "1.25ms"."""
    match = re.fullmatch(r"([0-9.]+)([a-z]+)", text)
    if match is None:
        raise LoadFailed(f"cannot read the time {text}")
    return float(match[1]) * UNITS_MS[match[2]]
