"""`python -m manage_service keeper`: keep the counters equal to their tables, until SIGTERM or Ctrl-C."""

import signal
from threading import Event

from django.conf import settings
from django.core.management.base import BaseCommand

from manage_service.keeper.loop import Keeper, Timing


class Command(BaseCommand):
    help = "Build cold counters, catch up, and reconcile on schedule and when asked, until SIGTERM."

    def handle(self, **options: object) -> None:
        stop = Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stop.set())
        Keeper(
            Timing(
                catch_up_seconds=settings.CATCH_UP_SECONDS,
                reconcile_seconds=settings.RECONCILE_SECONDS,
                wait_seconds=settings.FENCE_SECONDS,
            )
        ).run(stop)
