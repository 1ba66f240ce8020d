"""structlog, set up the same way everywhere: JSON lines, or colours where a person is looking.

Event names are dotted and constant (`keeper.caught_up`), facts are key=value beside them. No usernames at info level.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec
import structlog

from shared_models.lines import DelayedLines


def configure(service: str, json: bool | None = None, *, delayed: bool = False) -> None:
    """Send structlog's and Django's lines to stderr. `json=None`: JSON unless stderr is a terminal.

    `delayed`: structlog's lines, of which there is one a request, are written by a thread (see `lines`).
    """
    if json is None:
        json = not sys.stderr.isatty()

    def add_service(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        # Not a context variable: those are empty in threads, where most lines are written.
        return {**event, "service": service}

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        add_service,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = structlog.processors.JSONRenderer(to_json) if json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=structlog.WriteLoggerFactory(DelayedLines(sys.stderr) if delayed else sys.stderr),  # type: ignore[arg-type]
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


def only_warnings() -> None:
    """From now on: for a command that shows its reader what happens."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def to_json(value: Any, default: Any, **options: Any) -> str:
    """A line as JSON, several times as fast as by Python's own encoder."""
    return msgspec.json.encode(value, enc_hook=default).decode()
