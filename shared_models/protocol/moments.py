"""Moments in Redis: whole microseconds since 1970, exactly what Postgres keeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeAlias

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# In a document: RFC 3339, with its offset from UTC.
Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


def to_microseconds(moment: datetime) -> int:
    """An aware datetime as microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


def from_microseconds(microseconds: bytes | int | None) -> datetime | None:
    """The aware datetime; None stays None. Raises ValueError or OverflowError for a number that is not a moment."""
    return None if microseconds is None else EPOCH + int(microseconds) * MICROSECOND
