"""The ASGI application for gunicorn: Django, inside the application that all services have (`shared_models.web.application`)."""

from __future__ import annotations

import asyncio
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "manage_service.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured

django = get_asgi_application()

from manage_service.site import console, health, openapi  # noqa: E402  (Django's apps have to be there first)
from shared_models.web.application import Application, Limits  # noqa: E402
from shared_models.web.health import Readiness  # noqa: E402
from shared_models.web.rate_limits import RateLimit  # noqa: E402
from shared_models.web.tokens import refusal_to_start  # noqa: E402


class Manage(Application):
    """Django answers everything that is special to manage. The console's page is open: it shows nothing until its
    reader enters a token, which it then sends with each request."""

    def description(self) -> bytes:
        return openapi.describe_api()

    def readiness(self) -> Readiness:
        return health.look()

    async def metrics(self) -> bytes:
        return await asyncio.to_thread(health.read_metrics)


def make_application() -> Manage:
    """The application, by the settings. Raises an error if it would be open by accident."""
    if reason := refusal_to_start(settings.AUTH, settings.TOKENS):
        raise ImproperlyConfigured(reason)
    limit = settings.RATE_LIMIT_PER_SECOND
    return Manage(
        django,
        Limits(
            tokens=settings.TOKENS,
            metrics_public=settings.METRICS_PUBLIC,
            open_paths=frozenset({console.PATH}),
            rate=RateLimit(settings.SERVICE, settings.REDIS_URL, limit) if limit else None,
        ),
    )


application = make_application()
