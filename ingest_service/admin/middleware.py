"""The middleware for the views of Django's admin only: any other request costs one comparison.

CSRF needs no middleware: each view of the admin, and of signing in, checks it itself.
"""

from __future__ import annotations

from collections.abc import Awaitable

import structlog
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import PermissionDenied
from django.db import Error, connections
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from ingest_service.admin.routing import ALIAS
from shared_models.web.django import GetResponse, respond
from shared_models.web.problems import Problem, ProblemType

log = structlog.get_logger()

PREFIX = "/admin/"
# Scripts, styles and pictures from this host; nothing inline, nothing framed.
POLICY = "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"

FORBIDDEN = ProblemType(403, "forbidden", "Not allowed", "The user of the admin has no right to do this.")
ADMIN_UNAVAILABLE = ProblemType(
    503, "admin-unavailable", "The admin is unavailable", "The admin's database does not answer.", retry_seconds=2
)


class OnlyUnderAdmin(MiddlewareMixin):
    """Lets everything else pass."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if not request.path_info.startswith(PREFIX):
            return self.get_response(request)
        return super().__call__(request)


class ConnectionMiddleware:
    """Closes the admin's connection after each of its requests, and answers 503 if there was none.

    The service keeps a connection for each thread; a few operators do not need as many more.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith(PREFIX):
            return self.get_response(request)
        try:
            response = self.get_response(request)
        finally:
            connections[ALIAS].close()
        response.headers["Content-Security-Policy"] = POLICY
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not request.path_info.startswith(PREFIX):
            return None
        if isinstance(exception, PermissionDenied):
            return respond(Problem(FORBIDDEN, "this user may look at rows, but may not delete them"))
        if not isinstance(exception, Error):
            return None
        # The first line: those after it may quote rows.
        log.warning("admin.unavailable", reason=str(exception).strip().partition("\n")[0])
        return respond(
            Problem(
                ADMIN_UNAVAILABLE,
                "the database did not answer the admin, or not in time; ingest still stores and counts rows: try again",
            )
        )


class Sessions(OnlyUnderAdmin, SessionMiddleware):
    """request.session"""


class SignedIn(OnlyUnderAdmin, AuthenticationMiddleware):
    """request.user"""


class Notices(OnlyUnderAdmin, MessageMiddleware):
    """The result of the last page, shown on the next one."""
