"""The results of a benchmark: figures and what they are compared with, round by round; as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# If the rounds of a ratio differ by more than this, it says more about other work on the machine than about the case.
NOISY = 1.5


@dataclass(slots=True)
class Result:
    """One figure of one case. `ratio` is value / against_value, the median over the rounds."""

    case: str
    unit: str
    against: str
    rounds: list[tuple[float, float]]  # value, against_value
    # The goal of the ratio: at least (positive), at most (negative); 0: there is no goal.
    goal: float = 0.0
    peak_mb: float | None = None
    note: str = ""
    run: str = ""  # the name that runs it

    @property
    def value(self) -> float:
        return statistics.median(value for value, _ in self.rounds)

    @property
    def against_value(self) -> float:
        return statistics.median(against for _, against in self.rounds)

    @property
    def ratios(self) -> list[float]:
        return sorted(value / against for value, against in self.rounds if against)

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None if there is none."""
        if not self.goal or self.ratio is None:
            return None
        return self.ratio >= self.goal if self.goal > 0 else self.ratio <= -self.goal

    def as_json(self) -> dict[str, Any]:
        """For bench.json."""
        return {
            "case": self.case,
            "run": self.run,
            "value": round(self.value, 4),
            "unit": self.unit,
            "against": self.against,
            "against_value": round(self.against_value, 4),
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "rounds": [[round(value, 4), round(against, 4)] for value, against in self.rounds],
            "goal": goal_of(self),
            "reached": self.reached,
            "peak_mb": None if self.peak_mb is None else round(self.peak_mb, 1),
            "note": self.note,
        }


@dataclass(slots=True)
class Report:
    """All results, and the skipped peers."""

    results: list[Result] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def begin(self, name: str) -> None:
        """Results that are added after this belong to the case of this name."""
        self.ran.append(name)

    def add(self, *results: Result) -> None:
        for result in results:
            result.run = self.ran[-1]
        self.results += results

    def skip(self, reason: str) -> None:
        """Note a missing peer, and how to install it."""
        if reason not in self.skipped:
            self.skipped.append(reason)

    def print(self, console: Console) -> None:
        """The table."""
        table = Table(title=machine(), title_justify="left")
        for column in ("case", "figure", "against", "ratio (min to max)", "goal", "peak"):
            table.add_column(column, justify="left" if column in ("case", "against") else "right")
        for result in self.results:
            table.add_row(
                result.case + (f"\n[dim]{result.note}" if result.note else ""),
                f"{number(result.value)} {result.unit}",
                f"{result.against}: {number(result.against_value)}",
                ratio_of(result),
                goal_of(result) + {True: " ✓", False: " ✗", None: ""}[result.reached],
                "" if result.peak_mb is None else f"{result.peak_mb:.0f} MB",
            )
        console.print(table)
        for reason in self.skipped:
            console.print(f"Skipped: {reason}")

    def write(self, path: Path) -> None:
        """Write bench.json. Cases that did not run keep the results of an earlier run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(path.read_text()) if path.exists() else []
        kept = [entry for entry in earlier if entry["run"] not in self.ran]
        found = kept + [result.as_json() for result in self.results]
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def ratio_of(result: Result) -> str:
    """The ratio with its spread, and a mark if the spread is too wide."""
    if result.ratio is None:
        return ""
    lowest, highest = result.ratios[0], result.ratios[-1]
    noisy = " noisy" if highest > NOISY * lowest else ""
    return f"{number(result.ratio)} ({number(lowest)} to {number(highest)}){noisy}"


def goal_of(result: Result) -> str:
    """In words."""
    if not result.goal:
        return ""
    return f"≥ {result.goal:g}" if result.goal > 0 else f"≤ {-result.goal:g}"


def number(value: float) -> str:
    """As many digits as a reader can use."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> str:
    """The machine."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} × {model}, {memory_gb:.0f} GB, {system}; load average {load:.1f}"


def by_turns(rounds: int, measure: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure each, `rounds` times, alternating; every other round backwards, so that none is always the first."""
    found: dict[str, list[float]] = {name: [] for name in measure}
    for turn in range(rounds):
        names = list(measure)
        for name in reversed(names) if turn % 2 else names:
            found[name].append(measure[name]())
    return found


def paired(found: Mapping[str, list[float]], name: str, against: str) -> list[tuple[float, float]]:
    """The rounds of two of them, side by side."""
    return list(zip(found[name], found[against], strict=True))
