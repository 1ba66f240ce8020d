"""Django's entry for the service."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class IngestServiceConfig(AppConfig):
    name = "ingest_service"

    def ready(self) -> None:
        from ingest_service import checks  # noqa: F401  (importing registers them)
        from ingest_service.grants import grant

        post_migrate.connect(grant, sender=self)
