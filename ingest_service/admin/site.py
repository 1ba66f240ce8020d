"""The admin's site: a page for each table with a counter, and the log of deletions."""

from __future__ import annotations

import time
from typing import Any

import structlog
from django.conf import settings
from django.contrib.admin import AdminSite
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.admin.models import LogEntry
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from redis.exceptions import RedisError

from ingest_service import stores
from ingest_service.admin.rows import LogAdmin, RowAdmin
from ingest_service.catalog import counted_models
from shared_models.protocol import keys
from shared_models.web.rate_limits import KEEP_SECONDS

log = structlog.get_logger()

# Attempts of all clients together, over all workers. A person needs longer than a second, and checking a password takes
# half a second of a processor.
SIGN_INS_PER_SECOND = 1
# No token can have this name.
RATE = "/admin/login/"


def count_sign_ins() -> int:
    """How many attempts to sign in there were in this second, with this one; 0 while Redis does not answer."""
    key = keys.of_rate(settings.SERVICE, RATE, int(time.time()))
    try:
        pipe = stores.redis_nodes().of(key).pipeline()
        pipe.incr(key)
        pipe.expire(key, KEEP_SECONDS)
        return int(pipe.execute()[0])
    except RedisError as error:
        log.warning("rate.not_limited", reason=str(error))
        return 0


class SignInForm(AdminAuthenticationForm):
    """Name and password, a limited number of times a second."""

    def clean(self) -> dict[str, Any]:
        if count_sign_ins() > SIGN_INS_PER_SECOND:
            log.warning("admin.sign_in_limited")
            raise ValidationError("Another user is signing in at this moment; try again in a second.")
        try:
            cleaned = super().clean()
        except ValidationError:
            log.warning("admin.sign_in_refused")
            raise
        # There is no user if a field was not valid; the form shows why.
        if self.get_user() is not None:
            log.info("admin.signed_in", who=self.get_user().pk)
        return cleaned


class Site(AdminSite):
    """Django's admin site, with the counted tables."""

    site_header = site_title = "Rollcall ingest"
    index_title = "Tables"
    site_url = "/docs"
    login_form = SignInForm

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Sign in, and remove expired sessions."""
        if request.method == "POST":
            SessionStore.clear_expired()
        return super().login(request, extra_context)


def make_site() -> Site:
    """The site for the declared tables."""
    site = Site()
    for model in counted_models():
        site.register(model, RowAdmin)
    site.register(LogEntry, LogAdmin)
    return site
