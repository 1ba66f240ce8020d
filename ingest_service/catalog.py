"""The collections that producers may send to: one for each table with ingest = true, with its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from django.db import connection, models

from shared_models import declarations
from shared_models.declarations import Counter, Term
from shared_models.models import Countable, Field, model_of

TEXT_FIELDS = (models.CharField, models.TextField)
SENT_FIELDS = (*TEXT_FIELDS, models.IntegerField)
# For the description of the API. The decoder does not check this, because that would cost time: `payloads` does.
NO_NUL = {"pattern": "^[^\\u0000]*$"}


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """A model for producers: /v1/<name> and /v1/<name>/batch."""

    name: str
    model: type[Countable]
    counters: tuple[Counter, ...]
    # The days, weeks and months that counters use: of create_time, which is the same for all rows of a transaction.
    times: tuple[Term, ...]
    # The type of a row: a struct with the model's sent fields, in their order; decoding checks them.
    row: type[msgspec.Struct]
    decoder: msgspec.json.Decoder[msgspec.Struct]
    array_decoder: msgspec.json.Decoder[list[msgspec.Struct]]
    # INSERT …, up to the values of a row; the values of one row; what comes after the last row.
    insert_sql: tuple[str, str, str]
    own_sql: str
    copy_sql: str


def read_collections() -> Mapping[str, Collection]:
    """The collections by name, for the declared counters: {"messages": Collection}."""
    return _derive(declarations.kept())


def counted_models() -> tuple[type[Countable], ...]:
    """The models of the tables that take rows through ingest and are counted, in the order of their first counter."""
    found = (model_of(counter.table) for counter in declarations.COUNTERS)
    return tuple(dict.fromkeys(model for model in found if model is not None))


def name_of(model: type[models.Model]) -> str:
    """The model's name in URLs: "messages"."""
    return str(model._meta.verbose_name_plural).lower().replace(" ", "-")


@lru_cache(maxsize=4)
def _derive(declared: tuple[Counter, ...]) -> Mapping[str, Collection]:
    return {name_of(model): describe(model, declared) for model in counted_models()}


def describe(model: type[Countable], declared: tuple[Counter, ...]) -> Collection:
    """The collection of one model."""
    fields = model.sent_fields()
    row = msgspec.defstruct(
        model.__name__,
        [(field.name, type_of(field)) for field in fields],
        forbid_unknown_fields=True,
        frozen=True,
        gc=False,  # texts and numbers form no cycles
        namespace={"__doc__": f"A row of {name_of(model)}."},
    )
    quote = connection.ops.quote_name
    table = quote(model._meta.db_table)
    columns = ", ".join(quote(str(field.column)) for field in fields)
    counters = tuple(counter for counter in declared if model_of(counter.table) is model)
    times = tuple(dict.fromkeys(each for counter in counters for each in counter.terms if each.unit))
    return Collection(
        name=name_of(model),
        model=model,
        counters=counters,
        times=times,
        row=row,
        decoder=msgspec.json.Decoder(row),
        array_decoder=msgspec.json.Decoder(list[row]),  # type: ignore[valid-type]
        insert_sql=(
            f"INSERT INTO {table} ({columns}) VALUES ",
            f"({', '.join(['%s'] * len(fields))})",
            ", ".join([" RETURNING id, xact", *(f"({each.sql()})::text" for each in times)]),
        ),
        # The xact and the days (of create_time) of the rows that a transaction is about to write.
        own_sql=", ".join(["SELECT pg_current_xact_id()::text::bigint", *(f"({each.sql()})::text" for each in times)])
        + " FROM (SELECT now() AS create_time) AS own",
        copy_sql=f"COPY {table} ({columns}) FROM STDIN",
    )


def type_of(field: Field) -> Any:
    """The type of a sent value. Lengths are in characters, as Postgres counts them."""
    if isinstance(field, TEXT_FIELDS):
        least = 0 if field.blank else 1
        return Annotated[str, msgspec.Meta(min_length=least, max_length=field.max_length, extra_json_schema=NO_NUL)]
    low, high = range_of(field)
    return Annotated[int, msgspec.Meta(ge=low, le=high)]


def range_of(field: Field) -> tuple[int, int]:
    """The smallest and the largest number that the column of an integer field holds."""
    low, high = connection.ops.integer_field_range(field.get_internal_type())
    return low, high
