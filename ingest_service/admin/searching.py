"""Searches that an index answers, however large the table: by a counter's leading fields, the last one as a prefix.

Each is one range of the counter's index, read in the order of that index, without counting, sorting or
scanning. Each counter adds a form.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from django import forms
from django.core.exceptions import ValidationError
from django.db import models
from django.http import QueryDict

from shared_models.declarations import Counter
from shared_models.models import Countable, Field

Rows: TypeAlias = "models.QuerySet[Countable]"

EXACTLY = "exactly"


class Search(forms.Form):
    """A search by one counter. The form is bound if the request has any of its fields."""

    def __init__(self, counter: Counter, model: type[models.Model], data: QueryDict) -> None:
        self.counter = counter
        asked = any(value for name, value in data.items() if name.startswith(f"{counter.name}-"))
        super().__init__(data if asked else None, prefix=counter.name)
        columns = {column.name: column for column in model._meta.concrete_fields}
        self.columns = {name: columns[name] for name in counter.fields}
        for name, column in self.columns.items():
            self.fields[name] = input_of(column)
        self.fields[EXACTLY] = forms.BooleanField(required=False)

    def clean(self) -> dict[str, Any]:
        """Leading fields only: an index cannot find rows by later ones alone."""
        cleaned = super().clean() or {}
        self.given = [name for name in self.columns if cleaned.get(name) not in (None, "")]
        wanted = list(self.columns)[: max(1, len(self.given))]
        if not self.errors and self.given != wanted:
            raise ValidationError(f"fill in {' and '.join(wanted)}, too: the search needs it first")
        return cleaned

    def narrow(self, rows: Rows) -> Rows:
        """The rows that match, in the order of the index."""
        if not self.is_valid():
            return rows.none()
        last = self.given[-1]
        by_beginning = not self.cleaned_data[EXACTLY] and isinstance(
            self.columns[last], models.CharField | models.TextField
        )
        conditions = {name: self.cleaned_data[name] for name in self.given}
        if by_beginning:
            conditions[f"{last}__startswith"] = conditions.pop(last)
        return rows.filter(**conditions).order_by(*self.columns)


def input_of(column: Field) -> forms.Field:
    """The input for a column. Values are stored unchanged, so spaces count."""
    if isinstance(column, models.IntegerField):
        return forms.IntegerField(required=False)
    return forms.CharField(required=False, strip=False, max_length=column.max_length)
