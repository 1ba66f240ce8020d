"""Django's entry for the service."""

from django.apps import AppConfig


class QueryServiceConfig(AppConfig):
    name = "query_service"
