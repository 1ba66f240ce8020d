"""The tables whose distinct members are counted."""

from __future__ import annotations

from typing import Any, TypeAlias

from django.apps import apps
from django.db import models
from django.db.models.functions import Cast

from shared_models.declarations import Table

Field: TypeAlias = "models.Field[Any, Any]"


class Countable(models.Model):
    """A table that can be counted, with the columns that every row has and only the database writes.

    `xact` is the id of the transaction that wrote the row. The default writes it on insert, a trigger on update
    (`operations.StampXactOnUpdate`). So catch-up finds every change by it.
    """

    id = models.BigAutoField(primary_key=True)
    create_time = models.DateTimeField(
        db_default=models.Func(function="now", output_field=models.DateTimeField()), editable=False
    )
    xact = models.BigIntegerField(
        db_default=Cast(
            Cast(models.Func(function="pg_current_xact_id"), output_field=models.TextField()),
            output_field=models.BigIntegerField(),
        ),
        editable=False,
    )

    class Meta:
        abstract = True

    @classmethod
    def sent_fields(cls) -> tuple[Field, ...]:
        """The fields that a producer sends: all that the database does not write itself."""
        own = {field.name for field in Countable._meta.get_fields()}
        return tuple(field for field in cls._meta.concrete_fields if field.name not in own)


def model_of(table: Table) -> type[Countable] | None:
    """The model through which ingest writes to this table; None for other tables."""
    found = [model for model in apps.get_app_config("shared_models").get_models() if issubclass(model, Countable)]
    places = {model._meta.db_table: model for model in found}
    return places.get(table.relation) if table.ingest and table.schema == "public" else None


def table_of(model: type[Countable]) -> Table:
    """The model's table, without its declared fields."""
    name = model._meta.db_table
    return Table(name, "public", name, (), ingest=True)


class Message(Countable):
    """One message. The "C" collation orders by bytes: the same on every server and after every upgrade."""

    state = models.CharField(max_length=64, db_collation="C")
    city = models.CharField(max_length=64, db_collation="C")
    username = models.CharField(max_length=64, db_collation="C")
    message = models.TextField(max_length=65_536, blank=True)

    class Meta:
        db_table = "message"
        indexes = [
            models.Index(fields=["state", "city"], name="message_state_city"),
            models.Index(fields=["username"], name="message_username"),
            models.Index(fields=["xact"], name="message_xact"),
        ]

    def __str__(self) -> str:
        return f"message {self.pk}"
