"""The door in front of all that a WSGI service answers, whoever answers it: Django, or something quicker before it.

It names the request for the log, asks for a token, and keeps a client from sending more than its share. Nothing behind it
is reached without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import structlog
from django.core.exceptions import ImproperlyConfigured

from shared_models.http.discarding import discard
from shared_models.web.problems import MEDIA_TYPE, Problem
from shared_models.web.rate_limits import Rates
from shared_models.web.request_log import HEADER, NO_ROUTE, id_of, note
from shared_models.web.security_headers import PLAIN
from shared_models.web.tokens import Tokens, needs_token, refusal_to_start, unauthorized

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


# Where what is behind the door finds the name of the token; no header can set it.
OWNER = "rollcall.owner"


class Door:
    """A WSGI application around another one."""

    def __init__(
        self,
        application: Any,
        *,
        auth: str,
        tokens: Tokens | None,
        metrics_public: bool,
        rates: Rates | None,
        also_open: frozenset[str] = frozenset(),
        open_folders: tuple[str, ...] = (),
    ) -> None:
        reason = refusal_to_start(auth, tokens)
        if reason:
            raise ImproperlyConfigured(reason)
        self.application, self.tokens, self.metrics_public = application, tokens, metrics_public
        self.rates, self.also_open, self.open_folders = rates, also_open, open_folders

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request_id = id_of(environ.get("HTTP_X_REQUEST_ID", ""))

        def start(status: str, headers: list[tuple[str, str]], *failure: Any) -> Any:
            return start_response(status, [*headers, (HEADER, request_id)], *failure)

        begun = time.perf_counter()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            name, problem = self.admit(environ)
            if name:
                structlog.contextvars.bind_contextvars(token=name)
            if problem is None:
                environ[OWNER] = name
                return self.application(environ, start)
            note(environ["REQUEST_METHOD"], NO_ROUTE, problem.status, time.perf_counter() - begun)
            discard(environ)
            return refuse(start, problem)
        finally:
            # The thread goes on with somebody else's request: what this one bound must not stay.
            structlog.contextvars.unbind_contextvars("request_id", "token")

    def needs_token(self, path: str) -> bool:
        """Whether this path is behind the door."""
        known = needs_token(path, metrics_public=self.metrics_public, also_open=self.also_open)
        return known and not path.startswith(self.open_folders)

    def admit(self, environ: Environ) -> tuple[str, Problem | None]:
        """Whose request this is (\"\" where nobody asks), and why it is not let in, if so."""
        path = environ.get("PATH_INFO", "")
        if not self.needs_token(path):
            return "", None
        name = ""
        if self.tokens is not None:
            authorization = environ.get("HTTP_AUTHORIZATION", "")
            name = self.tokens.find(authorization.encode("latin-1", "replace")) or ""
            if not name:
                return "", unauthorized(presented=bool(authorization))
        return name, None if self.rates is None else self.rates.refusal(name)


def refuse(start: StartResponse, problem: Problem) -> list[bytes]:
    """Answer a problem."""
    body = problem.body()
    headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), **PLAIN}
    start(f"{problem.status} {HTTPStatus(problem.status).phrase}", list({**headers, **problem.headers}.items()))
    return [body]


def put_door(
    application: Any, settings: Any, also_open: frozenset[str] = frozenset(), open_folders: tuple[str, ...] = ()
) -> Door:
    """The door by a service's settings. `also_open`: paths of this service that need no token. `open_folders`: pages behind
    it that ask by themselves who it is."""
    limit = settings.RATE_LIMIT_PER_SECOND
    return Door(
        application,
        auth=settings.AUTH,
        tokens=settings.TOKENS,
        metrics_public=settings.METRICS_PUBLIC,
        rates=Rates(settings.SERVICE, settings.REDIS_URL, limit) if limit else None,
        also_open=also_open,
        open_folders=open_folders,
    )
