"""Django's entry for the service."""

from django.apps import AppConfig


class IngestServiceConfig(AppConfig):
    name = "ingest_service"

    def ready(self) -> None:
        from ingest_service import checks  # noqa: F401  (importing registers them)
