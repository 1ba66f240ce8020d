"""The settings of all services at once, for mypy: what is in tests and loadtest looks into every service."""

from __future__ import annotations

from ingest_service.settings import *  # noqa: F403
from manage_service.settings import *  # type: ignore[misc]  # noqa: F403
from query_service.settings import *  # type: ignore[misc]  # noqa: F403

INSTALLED_APPS = ["shared_models", "ingest_service", "manage_service", "query_service"]
