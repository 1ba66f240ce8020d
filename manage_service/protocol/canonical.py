"""The text of each type's values, as Postgres writes them. A member with another text was never in a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
DATE = re.compile(r"([0-9]{4,7})-([0-9]{2})-([0-9]{2})( BC)?")
BIGINT = range(-(2**63), 2**63)
# Postgres' dates: the last day is the end of a year, the first is within one.
LAST_YEAR, FIRST_DAY_BC = 5_874_897, (4_714, 11, 24)


def is_text(text: str) -> bool:
    """Postgres cannot store U+0000."""
    return "\0" not in text


def is_number(text: str) -> bool:
    """A 64-bit number."""
    try:
        return str(int(text)) == text and int(text) in BIGINT
    except ValueError:
        return False


def is_date(text: str) -> bool:
    """A date of Postgres, in ISO's style."""
    found = DATE.fullmatch(text)
    if found is None:
        return text in ("infinity", "-infinity")
    year, month, day, is_bc = int(found[1]), int(found[2]), int(found[3]), found[4] is not None
    if (len(found[1]) > 4 and found[1][0] == "0") or not 0 < year <= (FIRST_DAY_BC[0] if is_bc else LAST_YEAR):
        return False
    try:
        date((1 - year if is_bc else year) % 400 + 2000, month, day)  # the calendar repeats
    except ValueError:
        return False
    return not is_bc or year < FIRST_DAY_BC[0] or (month, day) >= FIRST_DAY_BC[1:]


# By the type of a field. For an enum's labels, the query for the rows asks Postgres.
IS_CANONICAL: Mapping[str, Callable[[str], bool]] = {
    "text": is_text,
    "varchar": is_text,
    "smallint": is_number,
    "integer": is_number,
    "bigint": is_number,
    "uuid": lambda text: UUID.fullmatch(text) is not None,
    "boolean": lambda text: text in ("true", "false"),
    "date": is_date,
    "enum": is_text,
}
