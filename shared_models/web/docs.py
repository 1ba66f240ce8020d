"""/docs: the API for people, as Swagger UI shows /openapi.json. Its files come from a package: no other host is asked."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """The same page in every service."""
    return render(request, "web/docs.html", {"title": f"Rollcall {settings.SERVICE}"})
