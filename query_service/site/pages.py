"""The page: the present counts, in plain HTML; `live.js` updates them.

Each counter is a card: its count, its last hour, today and the last days, its largest groups, and a question about a member.
More than a few of them are rows of a table, with a search box.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import parse_qsl

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from query_service import memberships
from query_service.answers import DescribedCount
from query_service.problems import known_counter
from query_service.questions import Top, Window
from query_service.reads import read_samples
from query_service.site import charts
from query_service.trips import Unreadable
from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.protocol.samples import Sample
from shared_models.web.problems import Problem
from shared_models.wording import found_in_words

if TYPE_CHECKING:
    from query_service.asgi import Query

# The key of the application in the request.
QUERY = "rollcall.query"

# The page loads nothing from another host, and runs no inline script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# The button's name, which names the counter in a question without JavaScript. No field can have this name.
ASKED = "is-one-of"
# What the search box holds: a part of a name; or a whole one, in quotes. No field can be called like this either.
SEARCHED = "find-counters"
# More counters than this are rows of a table.
MOST_CARDS = 8

WINDOWS = ((1, "Today"), (7, "7 days"), (30, "30 days"))
# Of the groups of a counter that are shown: how many ways to group it, and how many groups of each.
MOST_GROUPINGS, MOST_BARS = 3, 5


async def page(request: HttpRequest) -> HttpResponse:
    """The counters that were searched for, all of them by default."""
    query: Query = request.scope[QUERY]  # type: ignore[attr-defined]
    counts, searched = query.counts, request.GET.get(SEARCHED, "")
    counters = search(searched)
    is_table = len(counters) > MOST_CARDS
    _, histories, question, windows, groups = await asyncio.gather(
        counts.read_anew(),
        read_histories(query, () if is_table else counters),
        answer(request, query),
        read_windows(query, counters),
        read_groups(query, () if is_table else counters),
    )
    described = counts.describe()
    now = described["as_of"] or datetime.now(UTC)
    shown = [
        present(counter, described["counters"][counter.name], histories.get(counter.name, []), now, question)
        | {"windows": windows.get(counter.name, ()), "groups": groups.get(counter.name, ())}
        for counter in counters
    ]
    context = {
        "counters": shown,
        "as_of": described["as_of"],
        "is_stale": any(counter["state"] in ("stale", "unavailable") for counter in described["counters"].values()),
        "is_table": is_table,
        "window_titles": [title for _, title in WINDOWS] if any(windows.values()) else [],
        "has_search": len(declarations.COUNTERS) > MOST_CARDS,
        "declared": len(declarations.COUNTERS),
        "searched": searched,
        "search": SEARCHED,
        "asked": ASKED,
    }
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return HttpResponse(render_to_string("query/page.html", context), headers=headers)


def search(text: str) -> list[Counter]:
    """The declared counters whose names have this text in them; or the one whose name it is, in quotes."""
    text = text.strip().lower().replace(" ", "_")
    if len(text) > 1 and text[0] == text[-1] == '"':
        return [counter for counter in declarations.COUNTERS if counter.name == text[1:-1]]
    return [counter for counter in declarations.COUNTERS if text in counter.name]


async def read_histories(query: Query, counters: Sequence[Counter]) -> dict[str, list[Sample]]:
    """The last hour of each counter. Without Redis there are no charts; the page says why."""
    try:
        return await read_samples(query.trips, counters, datetime.now(UTC))
    except Unreadable:
        return {}


async def read_windows(query: Query, counters: Sequence[Counter]) -> dict[str, list[dict[str, object]]]:
    """Today, and the last 7 and 30 days, of those counters that know it."""
    known = [counter for counter in counters if counter.last_seen is not None]
    documents = await asyncio.gather(*(read(query, Window(each, days)) for each in known for days, _ in WINDOWS))
    shown = (
        {"days": days, "title": title, **present_count(found)}
        for (days, title), found in zip([*WINDOWS] * len(known), documents, strict=True)
    )
    return {counter.name: [next(shown) for _ in WINDOWS] for counter in known}


async def read_groups(query: Query, counters: Sequence[Counter]) -> dict[str, list[dict[str, object]]]:
    """The largest groups of those counters that are counted by something else than days."""
    asked = [
        (counter, grouping)
        for counter in counters
        for grouping in [each for each in counter.groupings if all(term.type != "date" for term in each.by)][
            :MOST_GROUPINGS
        ]
    ]
    documents = await asyncio.gather(*(read(query, Top(grouping, MOST_BARS)) for _, grouping in asked))
    shown: dict[str, list[dict[str, object]]] = {}
    for (counter, grouping), found in zip(asked, documents, strict=True):
        shown.setdefault(counter.name, []).append(present_groups(grouping, found))
    return shown


async def read(query: Query, question: Window | Top) -> dict[str, Any] | None:
    """The answer to a question of the page; None if there is none now."""
    try:
        return (await query.shared.ask(question)).document
    except Problem:
        return None


def present_count(found: dict[str, Any] | None) -> dict[str, object]:
    """A count that may not be known now."""
    return {"shown": "—" if found is None else f"{found['count']:,}"}


def present_groups(grouping: Counter, found: dict[str, Any] | None) -> dict[str, object]:
    """The largest groups as bars; the largest one is 100 wide."""
    by = ", ".join(map(title, grouping.by_names))
    if found is None:
        return {"title": by, "note": "cannot be counted now"}
    largest = max((each["count"] for each in found["top"]), default=0)
    many, cold = found["groups"], len(found["cold_groups"])
    # A counter with several shards does not say how many it has if there are more than it has looked at.
    more = "more" if many is None else f"{many - len(found['top']):,} more"
    notes = [
        *([more] if many is None or many > len(found["top"]) else []),
        *([f"{cold:,} cannot be counted now"] if cold else []),
        *(["no groups yet"] if many == 0 else []),
    ]
    return {
        "title": by,
        "note": ", ".join(notes),
        "bars": [
            {
                "name": ", ".join(value or "(empty)" for value in each["group"]),
                "shown": f"{each['count']:,}",
                "width": f"{100 * each['count'] / largest:.1f}",
            }
            for each in found["top"]
        ],
    }


class Question(TypedDict, total=False):
    """The question of a counter's form, and the answer."""

    counter: str
    values: dict[str, str]
    kind: str
    words: str


async def answer(request: HttpRequest, query: Query) -> Question:
    """The question of a counter's form, and the answer. With JavaScript, `live.js` does this."""
    name = request.GET.get(ASKED)
    if name is None:
        return {}
    ours = (f"{ASKED}=", f"{SEARCHED}=")
    asked_by = "&".join(part for part in request.META["QUERY_STRING"].split("&") if not part.startswith(ours))
    values = dict(parse_qsl(asked_by, keep_blank_values=True, max_num_fields=None))
    said: Question = {"counter": name, "values": values}
    try:
        counter = known_counter(name)
        (is_member,) = await query.memberships.ask(counter, [memberships.read_query(counter, asked_by)])
    except Problem as problem:
        return {**said, "words": f"No answer: {problem.detail}."}
    asked = ", ".join(values[field] for field in counter.fields)
    if is_member:
        return {**said, "kind": "yes", "words": f"Yes, “{asked}” is counted."}
    return {**said, "kind": "no", "words": f"No, “{asked}” is not counted."}


def present(
    counter: Counter, described: DescribedCount, samples: list[Sample], now: datetime, question: Question
) -> dict[str, object]:
    """One counter for the template: in words and with separators, as `live.js` also writes it."""
    count = described["count"]
    samples = [sample for sample in samples if sample.at <= now]
    if count is not None and described["state"] == "live":
        samples.append(Sample(now, count))
    question = question if question.get("counter") == counter.name else {}
    values = question.get("values", {})
    return {
        **described,
        "name": counter.name,
        "title": title(counter.name),
        "fields": [{"name": field, "title": title(field), "value": values.get(field, "")} for field in counter.fields],
        "shown": "—" if count is None else f"{count:,}",
        "proof": present_proof(described),
        "cold_in_words": describe_cold(described),
        "chart": present_chart(charts.draw(samples, now)),
        "answer": question,
    }


def title(name: str) -> str:
    """A declared name, for people."""
    return name.replace("_", " ")


def present_chart(chart: charts.Chart | None) -> dict[str, object]:
    """The chart with its numbers in words; an empty drawing if there are no samples yet."""
    place = {"width": charts.WIDTH, "height": charts.HEIGHT}
    if chart is None:
        return {**place, "words": "The last hour: no samples yet"}
    low, high = f"{chart.low:,}", f"{chart.high:,}"
    words = f"{low} all the time" if low == high else f"between {low} and {high}"
    return {
        **place,
        "path": chart.path,
        "low": "" if low == high else low,
        "high": high,
        "words": f"The last hour: {words}",
    }


def present_proof(described: DescribedCount) -> dict[str, str]:
    """What was repaired, and what is still wrong: text before and after the time of the verification."""
    drift, repaired = described["drift"], described.get("repaired", True)
    if not drift:
        return {"before": "", "after": ""}
    words = found_in_words(drift.missing, drift.extra, repaired=repaired)
    if not drift.missing and not drift.extra:
        return {"before": "", "after": f", {words}"}
    return {"before": f"{words}, ", "after": ""} if repaired else {"before": "", "after": f", drift: {words}"}


def describe_cold(described: DescribedCount) -> str:
    """Why a counter has no count: the progress of its build, or another reason."""
    progress = described.get("progress")
    if progress:
        return f"Being built: {progress['read']:,} of about {progress['expected']:,} members"
    return f"Cannot be counted now: {described['reason']}" if described.get("reason") else "Being built"
