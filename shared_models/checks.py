"""System checks of the declarations: what `manage.py check` says of a counter that cannot work well."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import FieldDoesNotExist
from django.db import models

from shared_models import declarations
from shared_models.declarations import Counter

# Types whose text is the same wherever it is made: in Python from a request, in Postgres from a row.
COUNTABLE_FIELDS = (models.CharField, models.TextField, models.IntegerField)


@register()
def check_counters(**kwargs: object) -> list[CheckMessage]:
    """Every declared counter, in order."""
    names = Tally(counter.name for counter in declarations.COUNTERS)
    found: list[CheckMessage] = [
        Error(f"two counters are named {name!r}", hint="a name is the counter's key in Redis", id="rollcall.E001")
        for name, times in names.items()
        if times > 1
    ]
    for counter in declarations.COUNTERS:
        found += check_counter(counter)
    return found


def check_counter(counter: Counter) -> Iterator[CheckMessage]:
    """One counter: its model, its fields, their types, the index that supports it."""
    who = f"counter {counter.name!r}"
    try:
        model = counter.get_model()
    except LookupError:
        yield Error(f"{who}: there is no model {counter.model!r} in shared_models.models", id="rollcall.E002")
        return
    for name in counter.fields:
        try:
            field = model._meta.get_field(name)
        except FieldDoesNotExist:
            yield Error(f"{who}: {counter.model} has no field {name!r}", id="rollcall.E003")
            return
        if not isinstance(field, COUNTABLE_FIELDS) or field.null:
            yield Error(
                f"{who}: field {name!r} cannot make a member",
                hint="a member is made of text and integer fields that are never null",
                id="rollcall.E004",
            )
        elif field not in model.sent_fields():
            yield Error(
                f"{who}: field {name!r} is written by the database, and producers do not send it",
                hint="ingest makes members of what it is sent, before the row is committed; "
                f"count one of: {', '.join(sent.name for sent in model.sent_fields())}",
                id="rollcall.E006",
            )
    for needed in (counter.fields, ("xact",)):
        if needed not in leading_fields(model, len(needed)):
            listed = ", ".join(needed)
            yield Error(
                f"{who}: no index of {counter.model} begins with ({listed})",
                hint=f"add models.Index(fields={list(needed)}) and a migration with AddIndexConcurrently",
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
