"""The questions about a counter in addition to its standing count, read from the query string: one group, the largest groups,
the groups of some days, all groups page by page, a window.

Equal questions have the same answer: see `shared_answers`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TypeAlias
from urllib.parse import parse_qsl

from query_service import problems
from query_service.answers import COUNTER
from query_service.problems import quoted
from shared_models.declarations import UNITS, Counter, Term
from shared_models.web.parameters import MOST_PARAMETERS, check_parameters, not_understood, shortened

GROUPS = f"{COUNTER}/groups"
# The parameters of the two endpoints.
OF_A_COUNT = ("by", "group", "top", "from", "to", "window")
OF_A_LIST = ("by", "prefix", "limit", "cursor")

MOST_TOP, MOST_LISTED, LISTED = 1_000, 1_000, 100
# Groups of one answer by day, week or month.
MOST_PERIODS = 400
MOST_DAYS = 3_660
WINDOW = re.compile(r"today|([1-9]\d{0,8})d")
DATE = re.compile(r"\d{4}-\d\d-\d\d")
NUMBER = re.compile(r"0|-?[1-9]\d*")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Days that Postgres has and Python does not.
FAR_DATE = re.compile(r"-?infinity|\d{5,}-\d\d-\d\d|\d{4,}-\d\d-\d\d BC")

Group: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OneGroup:
    """How many members does this group have?"""

    counter: Counter = field(hash=False)  # by group; slow to hash, and there are few of them
    group: Group
    kind = "group"
    route = COUNTER


@dataclass(frozen=True, slots=True)
class Top:
    """Which groups are the largest?"""

    counter: Counter = field(hash=False)
    most: int
    kind = "top"
    route = COUNTER


@dataclass(frozen=True, slots=True)
class Periods:
    """How many members do the groups of these days (weeks, months) have? `groups` are in the order of time."""

    counter: Counter = field(hash=False)
    fixed: Group  # the values of the other terms
    days: tuple[str, ...]
    groups: tuple[Group, ...] = field(hash=False)
    kind = "days"
    route = COUNTER


@dataclass(frozen=True, slots=True)
class Listing:
    """Which groups are there? `after` is the last name of the page before; None at the beginning."""

    counter: Counter = field(hash=False)
    prefix: str
    limit: int
    after: bytes | None
    kind = "list"
    route = GROUPS


@dataclass(frozen=True, slots=True)
class Window:
    """How many members have a row in the last days?"""

    counter: Counter = field(hash=False)
    days: int
    kind = "window"
    route = COUNTER


OfACount: TypeAlias = OneGroup | Top | Periods | Window


def read_count(total: Counter, query: str) -> OfACount | None:
    """What `?by=…&group=…`, `?by=…&top=…`, `?by=…&from=…&to=…` or `?window=…` asks; None if it has no parameters. Raises
    Problem."""
    values, groups = split(query, OF_A_COUNT)
    if not values and not groups:
        return None
    if "window" in values:
        if len(values) > 1 or groups:
            raise problems.wrong_question("window", "window goes alone: a window is of the counter as a whole")
        return Window(total, read_window(total, values["window"]))
    if "by" not in values:
        given = next((name for name in ("top", "from", "to") if name in values), "group")
        raise problems.wrong_question("by", f"{given} needs by, too; {declared_by(total)}", declared=names_of(total))
    counter = read_by(total, values["by"])
    if "from" in values or "to" in values:
        if "top" in values:
            raise problems.wrong_question("top", "top goes without from and to")
        return read_periods(counter, values, groups)
    if "top" in values:
        if groups:
            raise problems.wrong_question("group", "group goes without top")
        return Top(counter, read_number("top", values["top"], MOST_TOP))
    if not groups:
        raise problems.wrong_question(
            "group",
            f"say which groups: {asked_for(counter.by)}, or top=10; for days from= and to=; {GROUPS} lists all",
        )
    return OneGroup(counter, read_group(counter, groups))


def read_listing(total: Counter, query: str) -> Listing:
    """What `/groups?by=…` asks. Raises Problem."""
    values, _ = split(query, OF_A_LIST)
    if "by" not in values:
        raise problems.wrong_question("by", f"say by what; {declared_by(total)}", declared=names_of(total))
    return Listing(
        read_by(total, values["by"]),
        values.get("prefix", ""),
        read_number("limit", values.get("limit", str(LISTED)), MOST_LISTED),
        read_cursor(values["cursor"]) if "cursor" in values else None,
    )


def split(query: str, known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The parameters, each given once; and the values of `group`, one for each term. Raises Problem."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS)
    except UnicodeDecodeError:
        raise not_understood("a value is not UTF-8") from None
    except ValueError:
        pairs = []
        check_parameters(query, known)
    times = Tally(name for name, _ in pairs if name != "group" or "group" not in known)
    if set(times) - set(known) or any(many > 1 for many in times.values()):
        may_repeat = "group=" if "group" in known else "&"
        check_parameters("&".join(part for part in query.split("&") if not part.startswith(may_repeat)), known)
        raise not_understood(f"this endpoint takes {' and '.join(known)}, each once")
    return {name: value for name, value in pairs if name != "group"}, [
        value for name, value in pairs if name == "group"
    ]


def read_by(total: Counter, text: str) -> Counter:
    """The counter by these terms, written as declared, with commas between; `day` means the only term that is a day."""
    by_name = {",".join(each.by_names): each for each in total.groupings}
    terms = {term.name: term for each in total.groupings for term in each.by}
    found = by_name.get(text) or by_name.get(",".join(full_name(terms, part) for part in text.split(",")))
    if found is None:
        raise problems.wrong_question(
            "by", f"counter {total.name!r} is not counted by {shortened(text)!r}; {declared_by(total)}",
            declared=names_of(total),
        )  # fmt: skip
    return found


def full_name(terms: dict[str, Term], part: str) -> str:
    """The term that a part of `by` names. Raises Problem if several fit."""
    if part in terms or part not in UNITS:
        return part
    meant = [name for name, term in terms.items() if term.unit == part]
    if len(meant) > 1:
        raise problems.wrong_question("by", f"{part!r} may be {' or '.join(meant)}: say which", declared=meant)
    return meant[0] if meant else part


def names_of(total: Counter) -> list[str]:
    """What a counter is counted by."""
    return [",".join(each.by_names) for each in total.groupings]


def declared_by(total: Counter) -> str:
    """The same, for people."""
    return f"it is declared by {' and by '.join(names_of(total))}" if total.groupings else "it has no groups (`by`)"


def asked_for(terms: Sequence[Term]) -> str:
    """How to name a group."""
    return "&".join(f"group=<{term.name}>" for term in terms)


def read_group(counter: Counter, values: Sequence[str], terms: Sequence[Term] | None = None) -> Group:
    """A group: a value for each term, as Postgres writes it. Raises Problem."""
    terms = counter.by if terms is None else terms
    if len(values) != len(terms):
        raise problems.wrong_question(
            "group",
            f"{len(values)} given, and {len(terms)} needed here: {asked_for(terms) or 'no group'}",
            declared=[term.name for term in terms],
        )
    for term, value in zip(terms, values, strict=True):
        wrong = wrong_value(term, value)
        if wrong:
            raise problems.wrong_question("group", f"{term.name}: {quoted([value])} {wrong}")
    return tuple(values)


def wrong_value(term: Term, value: str) -> str:
    """Why no row can have this value; "" if one can. A group without members has count 0; an impossible group is a mistake."""
    if term.type == "date":
        day = day_of(value)
        if day is None:
            return "" if FAR_DATE.fullmatch(value) else "is no date: write it as 2026-11-30"
        begin = begin_of(day, term.unit)
        named = {"week": "a week is named by its Monday", "month": "a month is named by its first day"}
        return "" if begin == day else f"lies in the {term.unit} {begin}: {named[term.unit]}"
    if term.type in ("smallint", "integer", "bigint"):
        return "" if NUMBER.fullmatch(value) else "is no whole number in its shortest form"
    if term.type == "uuid":
        return "" if UUID.fullmatch(value) else "is no UUID in lower case, with its four hyphens"
    if term.type == "boolean":
        return "" if value in ("true", "false") else "is neither true nor false"
    return ""


def day_of(text: str) -> date | None:
    """The day as Python's date; None if Python has no such day."""
    try:
        return date.fromisoformat(text) if DATE.fullmatch(text) else None
    except ValueError:
        return None


def begin_of(day: date, unit: str) -> date:
    """The first day of its week or month; for a day the day itself."""
    if unit == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if unit == "month" else day


def read_periods(counter: Counter, values: dict[str, str], groups: Sequence[str]) -> Periods:
    """The days, weeks or months that have a day in the range. Raises Problem."""
    places = [place for place, term in enumerate(counter.by) if term.type == "date"]
    if not places:
        raise problems.wrong_question(
            "from", f"from and to are for days, weeks and months, and not for {', '.join(counter.by_names)}"
        )
    place = places[-1]
    fixed = read_group(counter, groups, [*counter.by[:place], *counter.by[place + 1 :]])
    first, last = (read_day(name, values.get(name)) for name in ("from", "to"))
    if last < first:
        raise problems.wrong_question("to", f"to ({last}) lies before from ({first})")
    days = [str(day) for day in periods(first, last, counter.by[place].unit)]
    return Periods(counter, fixed, tuple(days), tuple((*fixed[:place], day, *fixed[place:]) for day in days))


def periods(first: date, last: date, unit: str) -> list[date]:
    """The first days of the periods. Raises Problem if there are too many."""
    found = [begin_of(first, unit)]
    while len(found) <= MOST_PERIODS:
        try:
            following = begin_of(found[-1] + timedelta(days={"week": 7, "month": 32}.get(unit, 1)), unit)
        except OverflowError:
            return found
        if following > last:
            return found
        found.append(following)
    raise problems.wrong_question(
        "from",
        f"from and to have at most {MOST_PERIODS} {unit or 'day'}s between them: ask in parts",
        limit=MOST_PERIODS,
    )


def read_day(name: str, text: str | None) -> date:
    """A day of the query string. Raises Problem."""
    day = day_of(text or "")
    if day is None:
        said = "is missing" if text is None else f"is {shortened(text)!r}, and no date"
        raise problems.wrong_question(name, f"{name} {said}: write {name}=2026-11-30")
    return day


def read_window(total: Counter, text: str) -> int:
    """Of "7d": 7. Raises Problem."""
    if total.last_seen is None:
        raise problems.wrong_question(
            "window",
            f"counter {total.name!r} does not know when a member was last seen: its declaration has no last_seen",
        )
    found = WINDOW.fullmatch(text)
    days = int(found[1] or 1) if found else 0
    if not 0 < days <= MOST_DAYS:
        raise problems.wrong_question(
            "window",
            f"window is {shortened(text)!r}: write today, or a number of days from 1d to {MOST_DAYS}d",
            limit=MOST_DAYS,
        )
    return days


def read_number(name: str, text: str, most: int) -> int:
    """A number from 1. Raises Problem."""
    number = int(text) if re.fullmatch(r"[1-9]\d{0,8}", text) else 0
    if not 0 < number <= most:
        raise problems.wrong_question(
            name, f"{name} is {shortened(text)!r}: write a number from 1 to {most}", limit=most
        )
    return number


def read_cursor(text: str) -> bytes:
    """The name in a cursor. Raises Problem."""
    try:
        name = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)[1:]
        if text == cursor_of(name):
            return name
    except (binascii.Error, UnicodeEncodeError):
        pass
    raise problems.wrong_question("cursor", "cursor is none that was given: begin again without one")


def cursor_of(name: bytes) -> str:
    """A cursor that continues after this name, which may be empty."""
    return base64.urlsafe_b64encode(b"=" + name).rstrip(b"=").decode()
