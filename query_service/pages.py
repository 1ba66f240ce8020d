"""The page: the counts as they are, in plain HTML; `live.js` keeps them moving."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from query_service.scope import get_board
from shared_models import counters

# Nothing is loaded from another host, and nothing runs that stands in the HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


async def page(request: HttpRequest) -> HttpResponse:
    """All counters with their freshness, and a question about a member for each."""
    board = get_board(request)
    await board.read_anew()
    described = board.describe()
    context = {
        "counters": [present(counter, described["counters"][counter.name]) for counter in counters.COUNTERS],
        "as_of": described["as_of"],
        "is_stale": any(counter["state"] in ("stale", "unavailable") for counter in described["counters"].values()),
    }
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return HttpResponse(render_to_string("query/page.html", context), headers=headers)


def present(counter: counters.Counter, described: dict[str, Any]) -> dict[str, Any]:
    """One counter as the template wants it: in words and with separators, as `live.js` writes it too."""
    count, drift, progress = described["count"], described["drift"], described.get("progress")
    return {
        **described,
        "name": counter.name,
        "title": counter.name.replace("_", " "),
        "fields": [{"name": field, "title": field.replace("_", " ")} for field in counter.fields],
        "shown": "—" if count is None else f"{count:,}",
        "drift_in_words": describe_drift(drift.missing, drift.extra) if drift else "",
        "progress_in_words": f"{progress['read']:,} of about {progress['expected']:,} members" if progress else "",
    }


def describe_drift(missing: int, extra: int) -> str:
    """The drift of a reconcile, as a person says it."""
    if not missing and not extra:
        return "no drift"
    return f"drift then: {missing:,} missing, {extra:,} extra"
