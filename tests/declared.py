"""The counters in the tests of a service: those of the first demo, whatever else is declared."""

from __future__ import annotations

from shared_models import declarations

OURS = ("cities", "users")


def declare_ours() -> None:
    """In this process. Those that it starts have all that is declared."""
    declarations.COUNTERS = tuple(counter for counter in declarations.COUNTERS if counter.name in OURS)
