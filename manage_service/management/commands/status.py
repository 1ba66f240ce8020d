"""`python -m manage_service status`: how everything stands."""

import sys
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
    console = Console()
    table = Table("counter", "state", "count", "complete through", "verified", "missing", "extra", "last run")
    for name, counter in status["counters"].items():
        drift = counter["drift"] or {"missing": "–", "extra": "–"}
        last = counter["last_run"]
        building = counter["building"]
        table.add_row(
            name,
            counter["state"] if building is None else f"building {building['read']:,}/{building['expected']:,}",
            "–" if counter["count"] is None else f"{counter['count']:,}",
            moment(counter["complete_through"]),
            moment(counter["verified_at"]),
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
    console.print(f"keeper   {'alive' if keeper['alive'] else 'NOT RUNNING'}, last tick {moment(keeper['ticked_at'])}"
                  + (f", doing {keeper['job']}" if keeper["job"] else ""))  # fmt: skip


def moment(at: Any) -> str:
    """To the second, UTC."""
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
