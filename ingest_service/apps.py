"""Django's entry for the service."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class IngestServiceConfig(AppConfig):
    name = "ingest_service"

    def ready(self) -> None:
        from django import db
        from django.core.signals import request_finished, request_started

        from ingest_service import checks  # noqa: F401  (importing registers them)
        from ingest_service.grants import grant

        post_migrate.connect(grant, sender=self)

        # Code that uses a connection checks whether it is still good (stores.open_primary): another request's thread
        # carries out most requests, and they do not use their own connection.
        for signal in (request_started, request_finished):
            signal.disconnect(db.close_old_connections)
        request_started.disconnect(db.reset_queries)
