"""What went wrong, as the problem document that a producer is answered with: the one place where the two meet."""

from __future__ import annotations

from ingest_service.api.payloads import InvalidRow, NotJSON, TooManyRows
from ingest_service.writing.idempotency import KeyNotUsable, KeyReused
from ingest_service.writing.transactions import CommitUnknown, NotStored, RefusedByDatabase
from shared_models.web.problems import Problem

# Long enough for a failover in progress to get on, short enough that nobody is idle for it.
RETRY_AFTER = {"Retry-After": "2"}


def problem_of(error: Exception) -> Problem | None:
    """The problem; None for an error that no producer can do anything about."""
    match error:
        case Problem():
            return error
        case NotJSON():
            return Problem(400, "malformed-json", "The body is not JSON", f"{error}; nothing was stored")
        case InvalidRow():
            return Problem(
                422,
                "invalid-row",
                f"This is no row of {error.collection.name}",
                f"{error}; nothing was stored",
                errors=error.errors,
            )
        case TooManyRows():
            return Problem(
                413,
                "too-many-rows",
                "The batch has too many rows",
                f"{error}; nothing was stored: send it in parts",
                limit_rows=error.limit_rows,
            )
        case KeyNotUsable():
            return Problem(
                400,
                "invalid-idempotency-key",
                "The Idempotency-Key cannot be used",
                "the header Idempotency-Key takes 1 to 255 printable ASCII characters; a UUID is a good one",
            )
        case KeyReused():
            return Problem(
                422,
                "idempotency-key-reused",
                "The Idempotency-Key belongs to another request",
                "this Idempotency-Key has been used with another body, path or header; nothing was stored: send a new key "
                "with a new request, and the same request with an old key",
            )
        case NotStored():
            return Problem(
                503,
                "primary-unavailable",
                "The primary is unavailable",
                "the primary cannot be written to just now; nothing was stored and nothing was counted; try again",
                headers=RETRY_AFTER,
            )
        case CommitUnknown():
            return Problem(
                503,
                "commit-unknown",
                "It is unknown whether the commit took place",
                "the connection to the primary was lost during the commit: unknown, retry with the same Idempotency-Key "
                "(without one, look for the rows before sending them again)",
                headers=RETRY_AFTER,
            )
        case RefusedByDatabase():
            return Problem(
                422,
                "refused-by-database",
                "The database refused the rows",
                f"nothing was stored: {error.reason}",
                errors=[],
            )
    return None
