"""The problems in ingest's answers: their types, and which error becomes which problem."""

from __future__ import annotations

import msgspec

from ingest_service.api.payloads import FieldError, InvalidRow, NotJSON, RowError, TooManyRows
from ingest_service.writing.idempotency import KeyNotUsable, KeyReused
from ingest_service.writing.transactions import CommitUnknown, NotStored, RefusedByDatabase
from shared_models.web.problems import Problem, ProblemType

# Long enough for a failover to make progress, and short enough that clients do not wait for nothing.
RETRY_SECONDS = 2


class WrongFields(msgspec.Struct):
    """The errors of the row, field by field."""

    errors: list[FieldError]


class WrongRows(msgspec.Struct):
    """The errors of the batch, row by row."""

    errors: list[RowError]


class LimitRows(msgspec.Struct):
    """The limit, by number."""

    limit_rows: int


class Accepted(msgspec.Struct):
    """The types that are accepted."""

    accepted: list[str]


EMPTY_BODY = ProblemType(400, "empty-body", "The body is empty", "The body has no bytes.")
BAD_GZIP = ProblemType(400, "bad-gzip", "The body is not gzip", "Content-Encoding says gzip, and the body is not.")
MALFORMED_JSON = ProblemType(
    400, "malformed-json", "The body is not JSON", "The body is not JSON; the detail says where."
)
INVALID_KEY = ProblemType(
    400,
    "invalid-idempotency-key",
    "The Idempotency-Key cannot be used",
    "The Idempotency-Key is empty, too long, or not printable ASCII.",
)
UNKNOWN_COLLECTION = ProblemType(
    404,
    "unknown-collection",
    "There is no such collection",
    "There is no collection of this name; the detail names the known ones.",
)
TOO_MANY_ROWS = ProblemType(
    413,
    "too-many-rows",
    "The batch has too many rows",
    "The batch has more rows than the limit; nothing was stored.",
    members=LimitRows,
)
UNSUPPORTED_TYPE = ProblemType(
    415,
    "unsupported-content-type",
    "This Content-Type is not understood",
    "The Content-Type is not one of the described ones, or its charset is not UTF-8.",
    members=Accepted,
)
UNSUPPORTED_ENCODING = ProblemType(
    415,
    "unsupported-content-encoding",
    "This Content-Encoding is not understood",
    "The Content-Encoding is not gzip.",
)
INVALID_ROW = ProblemType(
    422,
    "invalid-row",
    "The row is not valid",
    "The row is not valid; each wrong field is named, and nothing was stored.",
    members=WrongFields,
)
INVALID_ROWS = ProblemType(
    422,
    "invalid-rows",
    "Some rows are not valid",
    "With strict=1: some rows are not valid; each is named, and nothing was stored.",
    members=WrongRows,
)
KEY_REUSED = ProblemType(
    422,
    "idempotency-key-reused",
    "The Idempotency-Key belongs to another request",
    "The Idempotency-Key was used with another body, path or header; nothing was stored.",
)
REFUSED_BY_DATABASE = ProblemType(
    422,
    "refused-by-database",
    "The database refused the rows",
    "A rule of the table forbids the rows; nothing was stored.",
    members=WrongFields,
)
PRIMARY_UNAVAILABLE = ProblemType(
    503,
    "primary-unavailable",
    "The primary is unavailable",
    "The primary cannot be written to at present; nothing was stored.",
    retry_seconds=RETRY_SECONDS,
)
COMMIT_UNKNOWN = ProblemType(
    503,
    "commit-unknown",
    "It is unknown whether the commit took place",
    "The connection to the primary was lost during the commit. Retry with the same Idempotency-Key: nothing is stored twice.",
    retry_seconds=RETRY_SECONDS,
)


def problem_of(error: Exception) -> Problem | None:
    """The problem for an error; None if it is not an error that a producer can handle."""
    match error:
        case Problem():
            return error
        case NotJSON():
            return Problem(MALFORMED_JSON, f"{error}; nothing was stored")
        case InvalidRow():
            return Problem(INVALID_ROW, f"{error}; nothing was stored", errors=error.errors)
        case TooManyRows():
            return Problem(TOO_MANY_ROWS, f"{error}; nothing was stored: send it in parts", limit_rows=error.limit_rows)
        case KeyNotUsable():
            return Problem(
                INVALID_KEY,
                "the header Idempotency-Key takes 1 to 255 printable ASCII characters; a UUID is a good one",
            )
        case KeyReused():
            return Problem(
                KEY_REUSED,
                "this Idempotency-Key has been used with another body, path or header; nothing was stored: use a new key "
                "for a new request, and repeat an old key only with the same request",
            )
        case NotStored():
            return Problem(
                PRIMARY_UNAVAILABLE,
                "the primary cannot be written to at present; nothing was stored and nothing was counted; try again",
            )
        case CommitUnknown():
            return Problem(
                COMMIT_UNKNOWN,
                "the connection to the primary was lost during the commit: unknown, retry with the same Idempotency-Key "
                "(without one, look for the rows before sending them again)",
            )
        case RefusedByDatabase():
            return Problem(REFUSED_BY_DATABASE, f"nothing was stored: {error.reason}", errors=[])
    return None
