"""`python -m manage_service reconcile [COUNTER …] [--check] [--json]`: run a reconcile here and now."""

import sys
import time
from typing import Any, NoReturn

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from redis import Redis
from redis.exceptions import RedisError

from manage_service import stores
from manage_service.leases import Lease, LeaseLost, held
from manage_service.management.terminal import Follower, one_line, show_run
from manage_service.runs import registry
from manage_service.runs.execution import execute
from manage_service.runs.registry import Mode, Run, Status, UnknownRun
from manage_service.runs.report import report
from shared_models import declarations, logs
from shared_models.nodes import Nodes
from shared_models.protocol import keys

INTERRUPTED = 130  # as in shells


class Command(BaseCommand):
    help = (
        "Make counters equal to their tables, and report the drift. Shows a bar for each counter in a terminal; "
        "elsewhere progress goes to stderr, and what was found to stdout, in plain lines."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        codes = (
            "Exit codes: 0 no drift, or repaired; 1 a check found drift; 2 a counter could not be reconciled, "
            "with the reason (the others were), or nothing could; "
            "130 interrupted, which ends the run."
        )
        return super().create_parser(prog_name, subcommand, epilog=codes, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        known = ", ".join(counter.name for counter in declarations.COUNTERS)
        parser.add_argument(
            "counters",
            nargs="*",
            metavar="COUNTER",
            help=f"{known}, each with its groupings; all of them if none is named",
        )
        parser.add_argument("--check", action="store_true", help="only compare: add nothing, remove nothing")
        parser.add_argument("--json", action="store_true", help="print the run as one JSON document at the end")

    def handle(self, **options: Any) -> None:
        logs.only_warnings()
        asked = options["counters"] or [counter.name for counter in declarations.COUNTERS]
        mode = Mode.CHECK if options["check"] else Mode.REPAIR
        control = stores.connect_nodes()
        interrupted = False
        try:
            run = registry.create(control.of(keys.RUNS), declarations.with_groupings(asked), mode, asked_by="cli")
            try:
                run = carry_out(run, control, quiet=options["json"])
            except KeyboardInterrupt:
                run, interrupted = stop(run, control), True
        except (declarations.UnknownCounter, UnknownRun, registry.TooManyRuns) as error:
            self.fail(str(error))
        except RedisError as error:
            self.fail(f"Redis failed: {one_line(str(error)).rstrip('.')}. The keeper continues a run that had begun.")
        except LeaseLost:
            self.fail("this process was stopped for so long that the keeper has taken the run over; see `status`")
        if options["json"]:
            self.stdout.write(msgspec.json.encode(report(run)).decode())
        else:
            show_run(run)
        if interrupted:
            sys.exit(INTERRUPTED)
        if run.status is not Status.DONE:
            sys.exit(2)
        sys.exit(1 if mode is Mode.CHECK and run.drifted else 0)

    def fail(self, reason: str) -> NoReturn:
        self.stderr.write(reason)
        sys.exit(2)


def carry_out(run: Run, control: Nodes[Redis], *, quiet: bool) -> Run:
    """Execute the run to its end: here, or wait for the keeper if it was quicker to take it."""
    lease = Lease(control, f"run:{run.id}")
    with held(lease) as ours, Follower(run, quiet=quiet) as follower:
        return work_off(run, lease, follower) if ours else watch(run, control, follower)


def work_off(run: Run, lease: Lease, follower: Follower) -> Run:
    """Run all steps in this process."""
    nodes, replica = stores.nodes_for_passes(), stores.connect_replica()
    try:
        for progress in execute(run, replica, nodes, wait_seconds=settings.FENCE_SECONDS):
            lease.renew()
            follower.show(run)
            if progress.waiting:
                time.sleep(0.1)
    finally:
        replica.close()
        for client in nodes.forget_all():
            client.close()
    follower.show(run)
    return run


def watch(run: Run, control: Nodes[Redis], follower: Follower) -> Run:
    """Wait while another process executes the run."""
    while run.open:
        follower.show(run)
        time.sleep(0.2)
        run = registry.get(control.of(keys.RUNS), run.id)
    follower.show(run)
    return run


def stop(run: Run, control: Nodes[Redis]) -> Run:
    """Ctrl-C ends the run and leaves nothing open: here, or through the process that executes it."""
    with held(Lease(control, f"run:{run.id}")) as ours:
        if not ours:
            return registry.request_cancel(control.of(keys.RUNS), run.id)
        run = registry.get(control.of(keys.RUNS), run.id)
        if run.open:
            run.end(Status.CANCELLED, "interrupted")
            registry.save(control.of(keys.RUNS), run)
        return run
