"""The description of ingest's API: what each operation takes, answers and refuses. The models describe the rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec
from django.conf import settings

from ingest_service.api import payloads
from ingest_service.api.problems import (
    BAD_GZIP,
    COMMIT_UNKNOWN,
    EMPTY_BODY,
    INVALID_KEY,
    INVALID_ROW,
    INVALID_ROWS,
    KEY_REUSED,
    MALFORMED_JSON,
    PRIMARY_UNAVAILABLE,
    REFUSED_BY_DATABASE,
    TOO_MANY_ROWS,
    UNSUPPORTED_ENCODING,
    UNSUPPORTED_TYPE,
)
from ingest_service.api.schemas import BatchAnswer, RowAnswer
from ingest_service.catalog import TEXT_FIELDS, Collection, read_collections
from shared_models import declarations
from shared_models.declarations import Counter
from shared_models.models import Field
from shared_models.web.openapi import Access, Answer, Json, Operation, describe, header, parameter, reference
from shared_models.web.problems import INVALID_QUERY

IDEMPOTENCY_KEY = parameter(
    "Idempotency-Key",
    "header",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "A retry of the same request with the same key stores nothing twice, and gets the first answer.",
)
CONTENT_ENCODING = parameter(
    "Content-Encoding", "header", {"type": "string", "enum": ["gzip", "identity"]}, "The compression of the body."
)
STRICT = parameter(
    "strict",
    "query",
    {"type": "string", "enum": ["0", "1"], "default": "0"},
    "1: all rows are stored or none; if a row is not valid, the answer is a 422.",
    example="0",
)
REPLAY = {
    "Idempotent-Replay": header(
        "The Idempotency-Key was known: this is the answer to the first request.", {"type": "string", "enum": ["true"]}
    )
}
REFUSALS = (
    *(INVALID_QUERY, EMPTY_BODY, BAD_GZIP, MALFORMED_JSON, INVALID_KEY, UNSUPPORTED_TYPE, UNSUPPORTED_ENCODING),
    *(KEY_REUSED, REFUSED_BY_DATABASE, PRIMARY_UNAVAILABLE, COMMIT_UNKNOWN),
)


def describe_api() -> bytes:
    """The OpenAPI document, for the counters that are declared now."""
    access = Access(
        tokens=settings.TOKENS is not None,
        metrics_public=settings.METRICS_PUBLIC,
        limited=bool(settings.RATE_LIMIT_PER_SECOND),
    )
    return _describe(declarations.COUNTERS, access)


@lru_cache(maxsize=4)
def _describe(counters: tuple[Counter, ...], access: Access) -> bytes:
    collections = read_collections().values()
    return describe(
        "Rollcall ingest",
        "Stores rows and counts them.",
        [each for collection in collections for each in (describe_row(collection), describe_batch(collection))],
        *(collection.row for collection in collections),
        access=access,
    )


def describe_row(collection: Collection) -> Operation:
    """POST of one row."""
    return Operation(
        method="POST",
        path=f"/v1/{collection.name}",
        id=f"create{collection.row.__name__}",
        tag=collection.name,
        summary=f"Store one row of {collection.name}",
        description=f"One JSON object of at most {settings.MAX_BODY_BYTES} bytes.",
        parameters=(IDEMPOTENCY_KEY, CONTENT_ENCODING),
        body={payloads.JSON: {"schema": reference(collection.row), "example": example_of(collection)}},
        answers={201: Answer(RowAnswer, headers=REPLAY)},
        refusals=(*REFUSALS, INVALID_ROW),
    )


def describe_batch(collection: Collection) -> Operation:
    """POST of many rows."""
    example = [example_of(collection)] * 2
    lines = "".join(msgspec.json.encode(each).decode() + "\n" for each in example)
    body: dict[str, Json] = {
        payloads.JSON: {"schema": {"type": "array", "items": reference(collection.row)}, "example": example}
    }
    body |= {accepted: {"schema": {"type": "string"}, "example": lines} for accepted in payloads.NDJSON}
    return Operation(
        method="POST",
        path=f"/v1/{collection.name}/batch",
        id=f"create{collection.row.__name__}Batch",
        tag=collection.name,
        summary=f"Store many rows of {collection.name}",
        description="A JSON array, or NDJSON with a row on each line. A row that is not valid is rejected by itself, and named. "
        f"{settings.MAX_BATCH_ROWS} rows and {settings.MAX_BATCH_BYTES} bytes at most.",
        parameters=(STRICT, IDEMPOTENCY_KEY, CONTENT_ENCODING),
        body=body,
        answers={200: Answer(BatchAnswer, headers=REPLAY)},
        refusals=(*REFUSALS, TOO_MANY_ROWS, INVALID_ROWS),
    )


def example_of(collection: Collection) -> Mapping[str, str | int]:
    """A valid row as an example: with the counters' example members, and some value for the other fields."""
    known: dict[str, str | int] = {}
    for counter in collection.counters:
        known |= dict(zip(counter.fields, counter.example, strict=False))
    return {field.name: known.get(field.name, any_value(field)) for field in collection.model.sent_fields()}


def any_value(field: Field) -> str | int:
    """A valid value for the field."""
    return "hello"[: field.max_length] if isinstance(field, TEXT_FIELDS) else 1
