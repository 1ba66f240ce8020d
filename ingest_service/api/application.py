"""Ingest's application takes rows. Django answers /docs, /static/ and /admin/."""

from __future__ import annotations

from django.conf import settings

from ingest_service.api import health, openapi
from ingest_service.api.problems import problem_of
from ingest_service.api.rows import Rows, find_collection
from ingest_service.writing.pulse import Pulse
from shared_models.web.application import Application, Limits
from shared_models.web.asgi import ASGI, Answer, Request
from shared_models.web.health import Readiness
from shared_models.web.rate_limits import RateLimit

PREFIX = "/v1/"
# The names of the routes in log, metrics and description.
ROW_ROUTE, BATCH_ROUTE = "/v1/{collection}", "/v1/{collection}/batch"


def read_limits() -> Limits:
    """The rules of access, by the settings. The admin asks for a name and a password itself."""
    rate = settings.RATE_LIMIT_PER_SECOND
    return Limits(
        tokens=settings.TOKENS,
        metrics_public=settings.METRICS_PUBLIC,
        open_paths=frozenset({"/admin"} if settings.ADMIN_DATABASE_URL else ()),  # it leads to the folder
        open_folders=("/admin/",) if settings.ADMIN_DATABASE_URL else (),
        rate=RateLimit(settings.SERVICE, settings.REDIS_URL, rate) if rate else None,
    )


class Ingest(Application):
    """The application of one worker."""

    def __init__(self, django: ASGI, limits: Limits) -> None:
        super().__init__(django, limits)
        self.rows = Rows(self.bodies)

    async def handle(self, request: Request) -> Answer | None:
        if request.path.startswith(PREFIX):
            try:
                return await self.handle_rows(request)
            except Exception as error:
                if problem := problem_of(error):
                    raise problem from error
                raise
        return await super().handle(request)

    async def handle_rows(self, request: Request) -> Answer | None:
        """The endpoints below /v1/."""
        name, slash, more = request.path[len(PREFIX) :].partition("/")
        if not name or (slash and more != "batch"):
            return await super().handle(request)
        request.route = BATCH_ROUTE if slash else ROW_ROUTE
        collection = find_collection(name)
        if slash:
            self.takes(request, "POST", BATCH_ROUTE, ("strict",))
            return await self.rows.post_batch(request, collection)
        self.takes(request, "POST", ROW_ROUTE, ())
        return await self.rows.post_row(request, collection)

    def description(self) -> bytes:
        return openapi.describe_api()

    def readiness(self) -> Readiness:
        return health.read_readiness()

    async def start(self) -> None:
        Pulse(settings.PULSE_SECONDS, settings.IDEMPOTENCY_KEEP_HOURS).start()

    async def stop(self) -> None:
        self.rows.close()
