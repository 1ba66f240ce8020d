"""The output of the command line for runs and counters: tables and bars in a terminal, plain lines for programs.

Results go to stdout, progress to stderr; each of the two may be a terminal or not.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from manage_service.protocol.findings import Findings
from manage_service.runs.registry import Mode, Run
from manage_service.status.judging import one_line as without_line_ends
from manage_service.status.judging import span
from manage_service.status.schemas import CounterStatus, KeeperStatus, StatusReport
from shared_models.wording import found_in_words

# The text for each phase of a run (`Progress.phase`).
PHASES = {
    "": "waiting for its turn",
    "queued": "waiting for another run",
    "build": "building",
    "missing": "reading the table",
    "extra": "looking for extra members",
    "mark": "marking the suspects",
    "fence": "waiting for the replica",
    "sweep": "going through the suspects",
    "waiting": "waiting for the replica",
}
SHOWN_MEMBERS = 3
# A run of more counters shows only the bar of the present one: a terminal has no room for all.
MOST_BARS = 12
# Before the name of a grouping, below its total.
INDENT = "  "
# No table is as wide as this.
WIDEST_COLUMNS = 10_000


class Follower:
    """Draws the progress of a run: a bar for each counter, or a line for each new phase."""

    def __init__(self, run: Run, *, quiet: bool) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.said = ("", "", False)
        self.bars = Progress(
            # A text that is too long continues on the next line: rich would cut it.
            TextColumn("{task.fields[name]}", style="bold", table_column=Column(overflow="fold")),
            TextColumn("{task.description}", table_column=Column(overflow="fold")),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[amount]}", table_column=Column(overflow="fold")),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self.tasks: dict[str, TaskID] = {
            name: self.bars.add_task(
                PHASES[""], name=name, amount="", start=False, total=None, visible=len(run.counters) <= MOST_BARS
            )
            for name in run.counters
        }

    def __enter__(self) -> Follower:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def show(self, run: Run) -> None:
        """Show where the run is now."""
        for name, found in run.by_counter.items():
            if found.verified_at is not None or found.failure:
                self.bars.update(
                    self.tasks[name],
                    description=drift_words(found, run.mode),
                    total=1,
                    completed=1,
                    amount="",
                    visible=len(self.tasks) <= MOST_BARS,
                )
        if run.counter and run.open:
            amount = f"{run.read:,} of about {run.expected:,}" if run.expected else ""
            doing = PHASES.get(run.phase, run.phase)
            self.bars.start_task(self.tasks[run.counter])
            self.bars.update(
                self.tasks[run.counter],
                description=doing,
                total=run.expected or None,
                completed=run.read,
                amount=amount,
                visible=True,
            )
            # The numbers in a reason change all the time. So print that it waits, and the first reason, once.
            said = (run.counter, run.phase, bool(run.detail))
            if said != self.said and (run.detail or not self.console.is_terminal):
                reason = f": {one_line(run.detail)}" if run.detail else ""
                self.console.print(Text(f"{run.counter}: {doing}{reason}"), soft_wrap=True)
            self.said = said


def show_run(run: Run) -> None:
    """Print what a run has found, with a few members of each kind, and how it ended."""
    console = Console(highlight=False)
    end = f"run {run.id}: {run.mode} {run.status}" + (f": {one_line(run.detail)}" if run.detail else "")
    if not console.is_terminal:
        for name, found in run.by_counter.items():
            drift = {"missing": found.missing, "extra": found.extra, "verified_at": found.verified_at}
            print(shlex.quote(name), fields(drift | {"failure": one_line(found.failure)}))
            for kind, members in (("missing", found.missing_sample), ("extra", found.extra_sample)):
                for member in members:
                    print(shlex.quote(name), kind, fields(member))
        print(end)
        return
    table = Table("counter", "found", "for example", box=box.SIMPLE_HEAD)
    for name, found in run.by_counter.items():
        table.add_row(
            Text(spelled(name)),
            Text(drift_words(found, run.mode), style=style_of(found)),
            examples(name, found, run.mode),
        )
    if run.findings:
        print_whole(console, table)
    console.print(Text(end, style="" if run.status == "done" else "yellow"), soft_wrap=True)


def print_whole(console: Console, table: Table) -> None:
    """The table if the terminal is wide enough; otherwise its rows as lists, a value on each line. It cuts nothing.

    A grouping is one line then.
    """
    natural = console.measure(table, options=console.options.update_width(WIDEST_COLUMNS)).maximum
    if natural <= console.width:
        console.print(table)
        return
    _, *labels = (str(column.header) for column in table.columns)
    for name, *values in zip(*(column.cells for column in table.columns), strict=True):
        if str(name).startswith(INDENT):
            state, *others = zip(labels, values, strict=True)
            told = [Text(f"{label} ").append(value) for label, value in others if str(value)]
            console.print(Text(f"{name}: ").append(Text(", ").join([Text("").append(state[1]), *told])), soft_wrap=True)
            continue
        console.print(Text(str(name), style="bold"), soft_wrap=True)
        for label, value in zip(labels, values, strict=True):
            for line in () if not str(value) else value.split("\n") if isinstance(value, Text) else [Text(str(value))]:
                console.print(Text(f"  {label:<{max(map(len, labels))}}  ").append(line), soft_wrap=True)
                label = ""


def examples(name: str, found: Findings, mode: Mode) -> Text:
    """A few members of each kind, a line for each kind; by field if they have a group or a day."""
    lines = []
    missing, extra = ("missing", "extra") if mode is Mode.CHECK else ("added", "left")
    for kind, members, many in (
        (missing, found.missing_sample, found.missing),
        (extra, found.extra_sample, found.extra),
    ):
        if members:
            few = " · ".join(spelled(in_words(name, member)) for member in members[:SHOWN_MEMBERS])
            lines.append(f"{kind}: {few}" + (" …" if many > SHOWN_MEMBERS else ""))
    return Text("\n".join(lines) or "–")


def in_words(name: str, member: Mapping[str, str]) -> str:
    """A member; one of a group or a day with the names of its fields: "country BE, email ann@example.org"."""
    if ":" in name or any("(" in field for field in member):
        return ", ".join(f"{field} {value}" for field, value in member.items())
    return ", ".join(member.values())


def show_status(status: StatusReport) -> None:
    """Counters, replica, keeper."""
    console, now = Console(highlight=False), status.as_of
    replica = status.replica
    if not console.is_terminal:
        for name, counter in status.counters.items():
            print(shlex.quote(name), fields(flat(counter)))
        print("replica", fields(flat(replica)))
        print("keeper", fields(flat(status.keeper)))
        for finding in status.findings:
            print("finding", fields(flat(finding)))
        return
    print_whole(console, table_of_counters(status.counters, now))
    if replica.reachable:
        which = f"{replica.host}: " if replica.host else ""
        said = Text(f"{which}{replica.lag_seconds:.1f} s behind, all below xact {replica.horizon}")
        if replica.retiring:
            said.append(f"; being retired: {', '.join(replica.retiring)}")
    else:
        said = Text(f"not reachable: {one_line(replica.detail)}", style="red")
    console.print(" replica ", said, soft_wrap=True)
    console.print(" keeper  ", keeper_words(status.keeper, now), soft_wrap=True)
    for finding in status.findings:
        console.print(Text.assemble((" ! ", "yellow"), spelled(finding.detail)), soft_wrap=True)
    if status.healthy:
        console.print(Text(" All is well.", style="green"))


def table_of_counters(counters: Mapping[str, CounterStatus], now: datetime) -> Table:
    """A row for each total, and one below it for each grouping: "298,000 in 10 groups"."""
    many = {name: spread(counter) for name, counter in counters.items()}
    spread_over = ["in"] if any(many.values()) else []
    headers = ("counter", "state", "count", *spread_over, "complete to", "verified", "found then", "last run")
    table = Table(*headers, box=box.SIMPLE_HEAD)
    table.columns[2].justify = "right"
    for name, counter in counters.items():
        last, building, drift = counter.last_run, counter.building, counter.drift
        _, is_grouping, by = name.partition(":")
        table.add_row(
            Text(f"{INDENT}by {spelled(by)}" if is_grouping else name),
            Text(counter.state, style="green" if counter.state == "live" else "yellow")
            if building is None
            else Text(f"building, {building.read:,} of about {building.expected:,}", style="yellow"),
            "–" if counter.count is None else f"{counter.count:,}",
            *([many[name]] if spread_over else []),
            ago(counter.complete_through, now),
            ago(counter.verified_at, now),
            "–" if drift is None else Text(found_in_words(drift.missing, drift.extra, repaired=counter.repaired)),
            "–" if last is None else f"{last.status}",
        )
    return table


def spread(counter: CounterStatus) -> str:
    """In how many groups its members are, and how many of these are being read again; or on how many days."""
    if isinstance(counter.groups, int):
        cold = f", {counter.broken_groups:,} cold" if counter.broken_groups else ""
        return f"{counter.groups:,} group{'s' * (counter.groups != 1)}{cold}"
    return f"{counter.days:,} day{'s' * (counter.days != 1)}" if isinstance(counter.days, int) else ""


def keeper_words(keeper: KeeperStatus, now: datetime) -> Text:
    """Whether it works, when it last caught up, what it does, its process, and what blocks it."""
    holder = keeper.holder
    words = [
        f"caught up {ago(keeper.ticked_at, now)}",
        f"doing {keeper.job}" if keeper.job else "",
        f"process {holder.pid} on {holder.host}" if holder else "nobody holds its lock",
        one_line(keeper.failure),
    ]
    return Text.assemble((keeper.state, "green" if keeper.alive else "red"), ", ", ", ".join(filter(None, words)))


def drift_words(found: Findings, mode: Mode) -> str:
    """The drift of one counter; the drift so far if the run did not end; or why the counter could not be
    reconciled."""
    if found.failure:
        return f"failed: {one_line(found.failure)}"
    if not (found.verified_at or found.missing or found.extra):
        return "not known"
    return found_in_words(found.missing, found.extra, repaired=mode is Mode.REPAIR)


def style_of(found: Findings) -> str:
    return "yellow" if found.failure or found.missing or found.extra else "green" if found.verified_at else ""


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago, in a readable unit: "8.4 s ago", "2 min ago"."""
    if at is None:
        return "never"
    return f"{span(now - at)} ago"


def fields(values: Mapping[str, object]) -> str:
    """name=value, separated by spaces; a value that a shell would split is quoted, an unknown one is empty."""
    return " ".join(
        f"{name}={shlex.quote(spelled(text(value))) if text(value) else ''}" for name, value in values.items()
    )


def text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {each}" for name, each in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def flat(document: msgspec.Struct) -> dict[str, object]:
    """Its fields by name, nested ones as outer_inner."""
    found: dict[str, object] = {}
    for name, value in msgspec.structs.asdict(document).items():
        if value is msgspec.UNSET:
            continue
        if isinstance(value, msgspec.Struct):
            found |= {f"{name}_{inner}": each for inner, each in msgspec.structs.asdict(value).items()}
        else:
            found[name] = value
    return found


def one_line(reason: str) -> str:
    """A store's error without its line ends."""
    return spelled(without_line_ends(reason))


def spelled(member: str) -> str:
    """A text with invisible characters, and those that move the terminal's cursor, as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in member)
