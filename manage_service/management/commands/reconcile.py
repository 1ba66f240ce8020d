"""`python -m manage_service reconcile [COUNTER …] [--check] [--json]`: run a reconcile here and now."""

import sys
import time
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from manage_service import runs, stores
from manage_service.executing import execute
from manage_service.leases import Lease, LeaseLost, held
from manage_service.runs import Mode, Run, Status
from shared_models import counters


class Command(BaseCommand):
    help = (
        "Make counters equal the table, both ways, and report the drift. "
        "Exit code: 0 done (a check: no drift), 1 a check found drift, 2 could not run to its end."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("counters", nargs="*", metavar="COUNTER", help="all of them where none is named")
        parser.add_argument("--check", action="store_true", help="only look: add nothing, take nothing out")
        parser.add_argument("--json", action="store_true", help="print the run as one JSON document at the end")

    def handle(self, **options: Any) -> None:
        names = options["counters"] or [counter.name for counter in counters.COUNTERS]
        mode = Mode.CHECK if options["check"] else Mode.REPAIR
        control = stores.connect_redis()
        try:
            run = runs.create(control, names, mode, asked_by="cli")
            lease = Lease(control, f"run:{run.id}")
            with held(lease) as ours:
                run = work_off(run, control, lease, quiet=options["json"]) if ours else watch(run, control)
        except counters.UnknownCounter as error:
            self.fail(str(error))
        except RedisError as error:
            self.fail(f"Redis failed: {error}")
        except LeaseLost:
            self.fail("this process was stopped for so long that the keeper has taken the run over; see `status`")
        if options["json"]:
            self.stdout.write(msgspec.json.encode(run.as_json()).decode())
        else:
            show(run)
        if run.status is not Status.DONE:
            sys.exit(2)
        sys.exit(1 if mode is Mode.CHECK and run.drifted else 0)

    def fail(self, reason: str) -> None:
        self.stderr.write(reason)
        sys.exit(2)


def work_off(run: Run, control: Redis, lease: Lease, *, quiet: bool) -> Run:
    """All steps, here. Ctrl-C ends the run, and leaves nothing open."""
    redis, replica = stores.connect_for_passes(), stores.connect_replica()
    try:
        with bars(quiet) as shown:
            task = shown.add_task("starting", total=None)
            for progress in execute(run, replica, redis, wait_seconds=settings.FENCE_SECONDS):
                lease.renew()
                text = f"{run.counter} {progress.phase}" + (f": {progress.waiting}" if progress.waiting else "")
                shown.update(task, description=text, completed=progress.read, total=progress.expected or None)
                if progress.waiting:
                    time.sleep(0.1)
    except KeyboardInterrupt:
        run.end(Status.CANCELLED, "interrupted")
        runs.save(control, run)
        show(run)
        sys.exit(130)
    finally:
        replica.close()
        redis.close()
    return run


def watch(run: Run, control: Redis) -> Run:
    """The keeper was quicker to take it: wait for its end."""
    while run.open:
        time.sleep(0.2)
        run = runs.get(control, run.id)
    return run


def bars(quiet: bool) -> Bars:
    """A bar a counter and phase; nothing where no person is looking."""
    console = Console(stderr=True)
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )


def show(run: Run) -> None:
    """The drift that was found, with a few members of each."""
    console = Console()
    table = Table("counter", "missing", "extra", "for example")
    for name, found in run.findings.items():
        examples = [", ".join(member.values()) for member in (*found.missing_sample[:3], *found.extra_sample[:3])]
        table.add_row(name, f"{found.missing:,}", f"{found.extra:,}", " · ".join(examples) or "–")
    console.print(table)
    console.print(f"run {run.id}: {run.mode} {run.status}" + (f", {run.detail}" if run.detail else ""))
