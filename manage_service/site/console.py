"""The console: a page without data, the same for everybody. `console.js` asks the API for all that it shows, with the token
that its reader gives it."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.views.decorators.http import require_safe

from shared_models.declarations import COUNTERS

PATH = "/"
# The page loads nothing from another host, runs no script in the HTML, and sends no form: the token goes into a header,
# never into an address. The script may not make HTML out of text (trusted types), because members are text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """The frame: the names of the counters, and whether a token is asked for. Both stand in /openapi.json too."""
    context = {
        "counters": [{"name": counter.name, "title": counter.name.replace("_", " ")} for counter in COUNTERS],
        "asks_token": settings.TOKENS is not None,
    }
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return HttpResponse(render_to_string("manage/console.html", context), headers=headers)
