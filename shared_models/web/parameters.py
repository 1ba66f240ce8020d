"""Query parameters: an unknown one is refused, and so is one that is given twice.

The services ignore no part of a request: `/v1/counts?country=DE` does not answer with the total.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from urllib.parse import parse_qsl

from shared_models.web.problems import INVALID_QUERY, Problem

MOST_PARAMETERS = 100
# How much of an unknown name an error repeats.
NAME_CHARACTERS = 64


def check_parameters(query: str, known: Iterable[str]) -> None:
    """Raises Problem 400, which names the unknown parameters, and the known ones."""
    takes = f"this endpoint takes {' and '.join(known) or 'no query parameters'}"
    try:
        given = Tally(name for name, _ in parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS))
    except ValueError:
        raise not_understood(f"there are more than {MOST_PARAMETERS} query parameters; {takes}") from None
    unknown = [shortened(name) for name in given if name not in known]
    if unknown:
        raise not_understood(f"unknown query parameter {', '.join(map(repr, unknown))}; {takes}")
    for name, times in given.items():
        if times > 1:
            raise not_understood(f"the query parameter {name!r} is given {times} times; give it once")


def shortened(name: str) -> str:
    """The name, cut to a length that an error may repeat."""
    return name if len(name) <= NAME_CHARACTERS else name[:NAME_CHARACTERS] + "…"


def not_understood(detail: str) -> Problem:
    """The endpoint does not take this query string."""
    return Problem(INVALID_QUERY, detail)
