"""structlog, set up the same way everywhere: JSON lines, or colours where a person is looking.

Event names are dotted and constant (`keeper.caught_up`), facts are key=value beside them. No usernames at info level.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(service: str, json: bool | None = None) -> None:
    """Send structlog's and Django's lines to stderr. `json=None`: JSON unless stderr is a terminal."""
    if json is None:
        json = not sys.stderr.isatty()

    def add_service(logger: Any, method: str, event: Any) -> Any:
        event["service"] = service  # not a contextvar: a thread begins with none
        return event

    shared: list[Any] = [
        add_service,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # A Host that is not allowed is a refusal, which is an answer; Django would log it as a fault, with a traceback.
    logging.getLogger("django.security.DisallowedHost").addFilter(lambda record: False)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
