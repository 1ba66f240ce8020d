"""The console: a page without data, the same for everybody. `console.js` reads all data from the API, with the token
that its reader enters."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.views.decorators.http import require_safe

from shared_models import declarations
from shared_models.declarations import Counter

PATH = "/"
# Up to so many groupings on the page are shown unfolded.
UNFOLDED = 8
# The page loads nothing from another host, runs no inline script, and sends no form: the token goes into a header,
# never into a URL. The script may not make HTML from text (trusted types), because members are text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """The page: the names of the counters, and whether a token is required. /openapi.json says both, too."""
    context = {
        "counters": [describe(counter) for counter in declarations.totals()],
        "unfold": sum(len(counter.groupings) for counter in declarations.totals()) <= UNFOLDED,
        "asks_token": settings.TOKENS is not None,
    }
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return HttpResponse(render_to_string("manage/console.html", context), headers=headers)


def describe(counter: Counter) -> dict[str, object]:
    """What the page is told of a counter: names."""
    groupings = [{"name": each.name, "by": ", ".join(each.by_names)} for each in counter.groupings]
    title = counter.key_name.replace("_", " ")
    if counter.next_of:
        title = f"{title}, next: {counter.shards} shard{'s' * (counter.shards != 1)}"
    return {"name": counter.name, "title": title, "last_seen": bool(counter.last_seen), "groupings": groupings}
