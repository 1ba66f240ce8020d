"""The API described: OpenAPI for programs and a page for people, both made from the models' fields."""

from __future__ import annotations

from typing import Any

import msgspec
from django.conf import settings

from ingest_service.api import payloads
from ingest_service.catalog import TEXT_FIELDS, Collection, read_collections
from shared_models.models import Field
from shared_models.web.openapi import HEALTH, Operation, describe, parameter, reference

TITLE = "Rollcall ingest"

# A rule that the decoder does not know, because it would cost time: `payloads` looks for NUL by itself.
NO_NUL = "^[^\\u0000]*$"

# What goes wrong, by status. The type of the problem says which of them it was.
REFUSALS = {
    400: "Not JSON, not gzip, an empty body, an Idempotency-Key that cannot be used, a query parameter that is not known.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or the batch has too many rows; the limit is named.",
    415: "A Content-Type or Content-Encoding that is not understood; what is accepted is named.",
    422: "Not valid, with a list of errors; or the Idempotency-Key belongs to another request.",
    503: "The primary is unavailable: nothing was stored. Or, with type urn:rollcall:commit-unknown, the connection was "
    "lost during the commit: retry with the same Idempotency-Key.",
}

IDEMPOTENCY_KEY = parameter(
    "Idempotency-Key",
    "header",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "A retry of the same request with the same key stores nothing twice and gets the first answer, with the header "
    "Idempotent-Replay: true.",
)
STRICT = parameter(
    "strict",
    "query",
    {"enum": ["0", "1"], "default": "0"},
    "1: all rows or none; a row that is not valid is a 422.",
)


class RowAnswer(msgspec.Struct):
    """A row that has been stored. counted: its members are in the sets, too; false: they will be within seconds."""

    id: int
    counted: bool


class BatchAnswer(msgspec.Struct):
    """What has become of a batch. counted: the members of the accepted rows are in the sets, too."""

    accepted: int
    rejected: int
    errors: list[payloads.RowError]
    counted: bool


def describe_api() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    collections = read_collections().values()
    document = describe(
        TITLE,
        "Rows come in, are stored, and are counted.",
        [each for collection in collections for each in (describe_row(collection), describe_batch(collection))]
        + [*HEALTH],
        *(collection.row for collection in collections),
        tokens=settings.TOKENS is not None,
        limited=bool(settings.RATE_LIMIT_PER_SECOND),
    )
    for collection in collections:
        for schema in document["components"]["schemas"][collection.row.__name__]["properties"].values():
            if schema.get("type") == "string":
                schema["pattern"] = NO_NUL
    return document


def describe_row(collection: Collection) -> Operation:
    """POST of one row."""
    return Operation(
        method="POST",
        path=f"/v1/{collection.name}",
        id=f"post_{collection.name}",
        summary=f"Store one row of {collection.name}",
        description=f"One JSON object, {settings.MAX_BODY_BYTES} bytes at most; gzip is welcome.",
        tag=collection.name,
        parameters=(IDEMPOTENCY_KEY,),
        body={payloads.JSON: {"schema": reference(collection.row), "example": example_of(collection)}},
        answers={201: RowAnswer},
        refusals=REFUSALS,
    )


def describe_batch(collection: Collection) -> Operation:
    """POST of many rows."""
    # What is no row is rejected by itself, and named; the batch it stands in is not refused.
    row = {"anyOf": [reference(collection.row), {}]}
    example = [example_of(collection)] * 2
    lines = "".join(msgspec.json.encode(each).decode() + "\n" for each in example)
    body: dict[str, Any] = {payloads.JSON: {"schema": {"type": "array", "items": row}, "example": example}}
    body |= {accepted: {"schema": row, "example": lines} for accepted in payloads.NDJSON}
    return Operation(
        method="POST",
        path=f"/v1/{collection.name}/batch",
        id=f"post_{collection.name}_batch",
        summary=f"Store many rows of {collection.name}",
        description="A JSON array, or NDJSON: a row on each line. "
        f"{settings.MAX_BATCH_ROWS} rows and {settings.MAX_BATCH_BYTES} bytes at most; gzip is welcome.",
        tag=collection.name,
        parameters=(STRICT, IDEMPOTENCY_KEY),
        body=body,
        answers={200: BatchAnswer},
        refusals=REFUSALS,
    )


def example_of(collection: Collection) -> dict[str, Any]:
    """A row that is taken as it stands: the members that the counters give as examples, and something for the rest."""
    known: dict[str, Any] = {}
    for counter in collection.counters:
        known |= dict(zip(counter.fields, counter.example, strict=False))
    return {field.name: known.get(field.name, any_value(field)) for field in collection.model.sent_fields()}


def any_value(field: Field) -> str | int:
    """A value that the field takes."""
    return "hello"[: field.max_length] if isinstance(field, TEXT_FIELDS) else 1
