"""Load from outside: wrk if it is installed, otherwise a client of our own, which says when it is the limit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from compose.local.ordinary_user import CHECKOUT
from loadtest.bench.results import by_turns

POST_SCRIPT = Path(__file__).parent / "wrk" / "post.lua"
WITHOUT_WRK = (
    "wrk is not installed (Debian, Ubuntu: apt-get install wrk; macOS: brew install wrk): a client in Python was used; "
    "it takes about 3 times the processor time, and figures that it limits are marked"
)

UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class LoadFailed(Exception):
    """Some answers were wrong; the message says which."""


@dataclass(frozen=True, slots=True)
class Load:
    """The measurements of one run."""

    per_second: float
    p50_ms: float
    p99_ms: float
    # The client was fully busy: the figure is a lower bound.
    limited_by_client: bool = False


# Headers of each request, by their names.
Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """The target of the requests. `posting`: sends messages, otherwise a GET."""

    url: str
    headers: Headers = field(default_factory=dict)
    posting: bool = False


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def rates(
    targets: Mapping[str, Target], *, rounds: int, connections: int, seconds: float
) -> tuple[dict[str, list[float]], str]:
    """Requests a second of each, alternating, after a second to warm up; and a description of the client."""
    limited = set()

    def measure(name: str) -> float:
        measured = as_fast_as_possible(targets[name], connections=connections, seconds=seconds)
        if measured.limited_by_client:
            limited.add(name)
        return measured.per_second

    for target in targets.values():
        as_fast_as_possible(target, connections=connections, seconds=1)
    found = by_turns(rounds, {name: partial(measure, name) for name in targets})
    client = "wrk" if has_wrk() else "a client in Python"
    limits = f", which limits: {', '.join(sorted(limited))}" if limited else ""
    return found, f"{connections} connections of {client}{limits}"


def as_fast_as_possible(target: Target, *, connections: int, seconds: float) -> Load:
    """Each connection sends its next request when it has its answer."""
    if not has_wrk():
        return with_client(target, connections=connections, seconds=seconds)
    # A slow answer counts as an answer, and shows in the latency.
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "30s"]
    script = ["-s", str(POST_SCRIPT)] if target.posting else []
    said = run([*command, *script, *as_words("-H", target.headers), target.url])
    if "Non-2xx" in said or "Socket errors" in said:
        raise LoadFailed(f"{target.url}: {said}")
    return Load(
        per_second=float(found(r"Requests/sec:\s+(\S+)", said)),
        p50_ms=in_ms(found(r"\n +50% +(\S+)", said)),
        p99_ms=in_ms(found(r"\n +99% +(\S+)", said)),
    )


def at_rate(target: Target, *, rate: float, connections: int, seconds: float) -> Load:
    """This many requests a second, however slow the answers are. Latency counts from when a request was due.

    wrk cannot do that, so this is always the client in Python.
    """
    return with_client(target, connections=connections, seconds=seconds, rate=rate)


def with_client(target: Target, *, connections: int, seconds: float, rate: float = 0.0) -> Load:
    """The client of our own, in a process of its own."""
    words = [f"--connections={connections}", f"--seconds={seconds}", f"--rate={rate}"]
    words += [*(["--post"] if target.posting else []), *as_words("--header", target.headers), target.url]
    answer = json.loads(run([sys.executable, "-m", "loadtest.bench.client", *words]))
    if answer.pop("failed"):
        raise LoadFailed(f"{target.url}: some answers were not 2xx")
    return Load(**answer)


def as_words(option: str, headers: Headers) -> list[str]:
    """The headers as options of a command."""
    return [word for name, value in headers.items() for word in (option, f"{name}: {value}")]


def run(command: list[str]) -> str:
    """Its output; raises LoadFailed if it fails."""
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
