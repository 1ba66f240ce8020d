"""structlog, set up the same way everywhere: JSON lines, or colours in a terminal.

Event names are dotted and constant (`keeper.caught_up`), facts follow as key=value. No usernames at info level.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from shared_models.lines import DelayedLines

# Facts that every line of this context has: the request that it belongs to.
bound: ContextVar[Mapping[str, object]] = ContextVar("bound", default={})  # noqa: B039  (nobody changes it)


def add_bound(logger: WrappedLogger, method: str, event: EventDict) -> Mapping[str, object]:
    """structlog's processor for `bound`."""
    return {**bound.get(), **event}


def configure(service: str, json: bool | None = None, *, delayed: bool = False) -> None:
    """Send structlog's and Django's lines to stderr. `json=None`: JSON unless stderr is a terminal.

    `delayed`: structlog's lines, of which there is one a request, are written by a thread (see `lines`).
    """
    global _write
    if json is None:
        json = not sys.stderr.isatty()
    file = DelayedLines(sys.stderr) if delayed else sys.stderr

    def add_service(logger: WrappedLogger, method: str, event: EventDict) -> Mapping[str, object]:
        # Not a context variable: those are empty in threads, where most lines are written.
        return {**event, "service": service}

    shared: list[Processor] = [
        add_bound,
        add_service,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = structlog.processors.JSONRenderer(to_json) if json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=structlog.WriteLoggerFactory(file),  # type: ignore[arg-type]
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
    # A Host that is not allowed gets a normal refusal; Django would log it as a fault, with a traceback.
    logging.getLogger("django.security.DisallowedHost").addFilter(lambda record: False)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)

    encoder = msgspec.json.Encoder()

    def write_json(event: str, facts: dict[str, object]) -> None:
        facts |= {"event": event, "service": service, "level": "info", "timestamp": datetime.now(UTC)}
        file.write(encoder.encode(facts).decode() + "\n")

    _write = write_json if json else write_with_structlog


def write_with_structlog(event: str, facts: dict[str, object]) -> None:
    structlog.get_logger().info(event, **facts)


_write: Callable[[str, dict[str, object]], None] = write_with_structlog


def write(event: str, facts: dict[str, object]) -> None:
    """Write the line that structlog would write at level info, in a fifth of the time: each request has one. Keeps `facts`."""
    _write(event, facts)


def only_warnings() -> None:
    """From now on: for a command that shows its reader what happens."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def to_json(value: object, default: Callable[[object], object], **options: object) -> str:
    """A line as JSON, several times as fast as by Python's own encoder."""
    return msgspec.json.encode(value, enc_hook=default).decode()
