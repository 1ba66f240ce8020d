"""Django's entry for the service."""

from django.apps import AppConfig


class ManageServiceConfig(AppConfig):
    name = "manage_service"
