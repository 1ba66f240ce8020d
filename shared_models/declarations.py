"""The counters: declared here, once. Everything that the three services do with a counter follows from its line.

Importing this module imports no model, so that query, which has no database, can read the declarations too:
a model is named, the way a foreign key names one, and `Counter.get_model` looks it up.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from shared_models.models import Countable

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")


class UnknownCounter(LookupError):
    """There is no counter of that name; the message names those that there are."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A named question over a table: how many different values do these fields have?

    `name` appears in URLs, metrics and Redis keys. `model` is the name of a model in `shared_models.models`.
    `fields` make a member, in this order; an index has to begin with them, in this order. `example` is a member that
    people recognise, for the descriptions of the APIs.
    """

    name: str
    model: str
    fields: tuple[str, ...]
    example: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.match(self.name):
            raise ValueError(f"counter name {self.name!r}: use lower-case letters, digits and _, 63 at most")
        if not self.fields:
            raise ValueError(f"counter {self.name!r}: name at least one field")
        if self.example and len(self.example) != len(self.fields):
            raise ValueError(f"counter {self.name!r}: the example needs one value for each field")

    @property
    def definition(self) -> str:
        """What it counts, in 8 hex digits."""
        return hashlib.sha256(repr((self.model, self.fields)).encode()).hexdigest()[:8]

    def example_member(self) -> dict[str, str | int]:
        """A member, field by field; made of the fields' names where the declaration gives none."""
        return dict(zip(self.fields, self.example or self.fields, strict=True))

    def get_model(self) -> type[Countable]:
        """The model class. Needs Django's app registry, with `shared_models` installed."""
        from django.apps import apps

        return cast("type[Countable]", apps.get_model("shared_models", self.model))


COUNTERS: tuple[Counter, ...] = (
    Counter("cities", model="Message", fields=("state", "city"), example=("NY", "Ithaca")),
    Counter("users", model="Message", fields=("username",), example=("ann",)),
)


def get_counter(name: str) -> Counter:
    """The counter of that name, or UnknownCounter."""
    for counter in COUNTERS:
        if counter.name == name:
            return counter
    known = ", ".join(counter.name for counter in COUNTERS)
    raise UnknownCounter(f"there is no counter {name!r}; there are: {known}")
