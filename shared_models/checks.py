"""System checks of the declarations: `manage.py check` reports counters that cannot work well."""

from __future__ import annotations

from collections.abc import Iterator

from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import FieldDoesNotExist
from django.db import models

from shared_models import declarations
from shared_models.declarations import Counter, Storage
from shared_models.models import model_of

# Types whose text is the same from a request in Python and from a row in Postgres.
COUNTABLE_FIELDS = (models.CharField, models.TextField, models.IntegerField)


@register()
def check_counters(**kwargs: object) -> list[CheckMessage]:
    """Every counter of a table that takes rows through ingest, in order. The file's own syntax was checked when it was
    read. For other tables see `manage_service.replica.catalog`, which compares them with the database."""
    return [found for counter in declarations.derived() if counter.table.ingest for found in check_counter(counter)]


def check_counter(counter: Counter) -> Iterator[CheckMessage]:
    """Check one counter: its model, its fields, their types, the index that supports it."""
    who = f"counter {counter.name!r}"
    model, table = model_of(counter.table), counter.table
    if model is None:
        yield Error(
            f"tables.{table.name}: ingest = true, and shared_models.models has no model of {table.schema}.{table.relation}",
            hint="set ingest = false: Rollcall also counts tables that other programs write",
            id="rollcall.E002",
        )
        return
    for name in counter.fields:
        try:
            field = model._meta.get_field(name)
        except FieldDoesNotExist:
            yield Error(f"{who}: {model.__name__} has no field {name!r}", id="rollcall.E003")
            return
        if not isinstance(field, COUNTABLE_FIELDS) or field.null:
            yield Error(
                f"{who}: field {name!r} cannot make a member",
                hint="a member is made of text and integer fields that are never null",
                id="rollcall.E004",
            )
        elif field not in model.sent_fields():
            yield Error(
                f"{who}: field {name!r} is written by the database; producers do not send it",
                hint="ingest makes members of the fields that it is sent, before the row is committed; "
                f"count one of: {', '.join(sent.name for sent in model.sent_fields())}",
                id="rollcall.E006",
            )
    for term in (each for each in counter.terms if each.unit and each.column != "create_time"):
        yield Error(
            f"{who}: {term.name} is of another column than create_time",
            hint="ingest knows no other time of a row before it is committed",
            id="rollcall.E007",
        )
    # Those of counters by group, and of days, are made by adopt.
    fields = [counter.fields] if counter.storage is Storage.SET else []
    for needed in (*fields, ("xact",)):
        if needed not in leading_fields(model, len(needed)):
            listed = ", ".join(needed)
            yield Error(
                f"{who}: no index of {model.__name__} begins with ({listed})",
                hint=f"add models.Index(fields={list(needed)}), and a migration with AddIndexOfPartitions",
                id="rollcall.E005",
            )


def leading_fields(model: type[models.Model], length: int) -> set[tuple[str, ...]]:
    """The first `length` fields of every full, ascending index of the model."""
    options = model._meta
    indexes = [tuple(i.fields) for i in options.indexes if i.condition is None and not i.expressions]
    singles = [(f.name,) for f in options.concrete_fields if f.unique or getattr(f, "db_index", False)]
    uniques = [
        tuple(c.fields) for c in options.constraints if isinstance(c, models.UniqueConstraint) and not c.condition
    ]
    return {fields[:length] for fields in (*indexes, *singles, *uniques)}
