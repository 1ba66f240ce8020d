"""`python -m manage_service status`: the state of everything."""

import sys
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from redis.exceptions import RedisError

from manage_service import stores
from manage_service.management.terminal import one_line, show_status
from manage_service.status.judging import Limits
from manage_service.status.report import read_status


class Command(BaseCommand):
    help = "Show the state of counters, replica and keeper: tables in a terminal, name=value lines elsewhere."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        codes = "Exit codes: 0 all is well; 1 something is wrong, and the output says what; 2 it could not be read."
        return super().create_parser(prog_name, subcommand, epilog=codes, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON document, as GET /v1/status answers it")

    def handle(self, **options: Any) -> None:
        replica = stores.connect_replica()
        try:
            limits = Limits.of(settings.CATCH_UP_SECONDS, settings.RECONCILE_SECONDS)
            status = read_status(stores.connect_nodes(), replica, limits)
        except RedisError as error:
            self.stderr.write(f"Redis cannot be reached: {one_line(str(error))}")
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            replica.close()
        if options["json"]:
            self.stdout.write(msgspec.json.encode(status).decode())
        else:
            show_status(status)
        if not status.healthy:
            sys.exit(1)
