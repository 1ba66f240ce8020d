"""Chooses one of the two connections for a model."""

from __future__ import annotations

from django.db import models

ALIAS = "admin"
# What the admin needs of Django's own, and the tables that it shows.
LABELS = {"admin", "auth", "contenttypes", "sessions", "shared_models"}


class AdminRouter:
    """The ORM uses the admin's connection: the role of the other one may neither read rows nor delete them.

    Ingest itself stores and reads with SQL of its own, and does not use this. The owner makes tables over the other
    connection.
    """

    def db_for_read(self, model: type[models.Model], **hints: object) -> str | None:
        return ALIAS if model._meta.app_label in LABELS else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool | None:
        return False if db == ALIAS else None
