"""Ingest's answers as structs: `rows` writes them; here is their shape, for the description of the API."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ingest_service.api.payloads import RowError

COUNTED = "true: the members are in the sets. false: the keeper adds them within seconds"


class RowAnswer(msgspec.Struct):
    """The row is stored."""

    id: int
    counted: Annotated[bool, Meta(description=COUNTED)]


class BatchAnswer(msgspec.Struct):
    """The valid rows are stored; `errors` has the errors of the others."""

    accepted: Annotated[int, Meta(description="how many rows are stored")]
    rejected: Annotated[int, Meta(description="how many rows are not valid")]
    errors: list[RowError]
    counted: Annotated[bool, Meta(description=COUNTED)]
