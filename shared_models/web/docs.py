"""The page at /docs, alike in all three services: Swagger UI, from this host, over the service's description."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """Needs the apps "shared_models.web" and "drf_spectacular_sidecar", which hold the template and the files."""
    return render(request, "web/docs.html", {"service": settings.SERVICE})
