"""Django's entry for the package: its models, and the checks of the declarations."""

from django.apps import AppConfig


class SharedModelsConfig(AppConfig):
    name = "shared_models"
    verbose_name = "Counted tables"

    def ready(self) -> None:
        from shared_models import checks  # noqa: F401  (importing registers them)
