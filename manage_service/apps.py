"""Django's entry for the service."""

from django.apps import AppConfig


class ManageServiceConfig(AppConfig):
    name = "manage_service"

    def ready(self) -> None:
        from manage_service import checks  # noqa: F401  (importing registers them)
