"""The page: the present counts, in plain HTML; `live.js` updates them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import parse_qsl

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from query_service import memberships
from query_service.answers import DescribedCount
from query_service.problems import known_counter
from query_service.reads import Unreadable, read_samples
from query_service.site import charts
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


async def page(request: HttpRequest) -> HttpResponse:
    """All counters with their freshness and their last hour, and a question about a member for each."""
    query: Query = request.scope[QUERY]  # type: ignore[attr-defined]
    counts = query.counts
    _, histories, question = await asyncio.gather(counts.read_anew(), read_histories(query), answer(request, query))
    described = counts.describe()
    now = described["as_of"] or datetime.now(UTC)
    context = {
        "counters": [
            present(counter, described["counters"][counter.name], histories.get(counter.name, []), now, question)
            for counter in declarations.COUNTERS
        ],
        "as_of": described["as_of"],
        "is_stale": any(counter["state"] in ("stale", "unavailable") for counter in described["counters"].values()),
        "asked": ASKED,
    }
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return HttpResponse(render_to_string("query/page.html", context), headers=headers)


async def read_histories(query: Query) -> dict[str, list[Sample]]:
    """The last hour of each counter. Without Redis there are no charts; the page says why."""
    names = [counter.name for counter in declarations.COUNTERS]
    try:
        return await read_samples(query.memberships.client, names, datetime.now(UTC))
    except Unreadable:
        return {}


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
    asked_by = "&".join(part for part in request.META["QUERY_STRING"].split("&") if not part.startswith(f"{ASKED}="))
    values = dict(parse_qsl(asked_by, keep_blank_values=True, max_num_fields=None))
    said: Question = {"counter": name, "values": values}
    try:
        counter = known_counter(name)
        (is_member,) = await query.memberships.ask(counter.name, [memberships.read_query(counter, asked_by)])
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
