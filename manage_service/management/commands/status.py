"""`python -m manage_service status`: how everything stands."""

import sys
from datetime import datetime
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandParser
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from manage_service import stores
from manage_service.status import read_status


class Command(BaseCommand):
    help = "Show each counter, the replica and the keeper. Exit code: 0 all live, 1 something is not, 2 could not look."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON document, as GET /v1/status gives it")

    def handle(self, **options: Any) -> None:
        try:
            status = read_status(stores.connect_redis(), stores.connect_replica())
        except RedisError as error:
            sys.exit(self.failed(f"Redis cannot be reached: {error}"))
        if options["json"]:
            self.stdout.write(msgspec.json.encode(status).decode())
        else:
            show(status)
        healthy = all(counter["state"] == "live" for counter in status["counters"].values())
        if not (healthy and status["replica"]["reachable"] and status["keeper"]["alive"]):
            sys.exit(1)

    def failed(self, reason: str) -> int:
        self.stderr.write(reason)
        return 2


def show(status: dict[str, Any]) -> None:
    """As a table; rich leaves the colours away where nobody is looking."""
    console, now = Console(), status["as_of"]
    table = Table("counter", "state", "count", "complete to", "verified", "missing", "extra", "last run")
    for name, counter in status["counters"].items():
        drift = counter["drift"] or {"missing": "–", "extra": "–"}
        last = counter["last_run"]
        building = counter["building"]
        table.add_row(
            name,
            counter["state"] if building is None else f"building {building['read']:,}/{building['expected']:,}",
            "–" if counter["count"] is None else f"{counter['count']:,}",
            ago(counter["complete_through"], now),
            ago(counter["verified_at"], now),
            str(drift["missing"]),
            str(drift["extra"]),
            "–" if last is None else f"{last['id']} {last['status']}",
        )
    console.print(table)
    replica, keeper = status["replica"], status["keeper"]
    if replica["reachable"]:
        console.print(f"replica  {replica['lag_seconds']:.1f} s behind, all below xact {replica['horizon']}")
    else:
        console.print(f"replica  not reachable: {replica['detail']}")
    alive, doing = (
        ("alive" if keeper["alive"] else "NOT RUNNING"),
        (f", doing {keeper['job']}" if keeper["job"] else ""),
    )
    console.print(f"keeper   {alive}, last tick {ago(keeper['ticked_at'], now)}{doing}")


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago, in the unit that a person would use."""
    if at is None:
        return "never"
    seconds = max(0.0, (now - at).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.1f} s ago"
