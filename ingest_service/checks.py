"""System checks of the collections: `python -m ingest_service check` reports models whose rows ingest cannot take."""

from __future__ import annotations

from collections.abc import Iterator

from django.core.checks import CheckMessage, Error, register

from ingest_service import catalog
from shared_models.models import Countable


@register()
def check_collections(**kwargs: object) -> list[CheckMessage]:
    """Check that producers can send rows of every model with a counter."""
    models = catalog.counted_models()
    found = list(check_fields(models))
    names = [catalog.name_of(model) for model in models]
    found += [
        Error(
            f"two models have the endpoint /v1/{name}",
            hint="give one of them another verbose_name_plural",
            id="rollcall.E102",
        )
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    return found


def check_fields(models: tuple[type[Countable], ...]) -> Iterator[CheckMessage]:
    """Check that each field that a producer sends is text or a whole number, and never null."""
    for model in models:
        for field in model.sent_fields():
            if not isinstance(field, catalog.SENT_FIELDS) or field.null:
                yield Error(
                    f"{model.__name__}.{field.name} cannot be sent",
                    hint="rows are made of text and integer fields that are never null; "
                    "a field that only the database writes belongs in Countable",
                    id="rollcall.E101",
                )
