"""What ingest answers, as structs: `rows` writes it; here is its shape, for the description of the API."""

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
    """The valid rows are stored; what is wrong with the others is named."""

    accepted: Annotated[int, Meta(description="how many rows are stored")]
    rejected: Annotated[int, Meta(description="how many rows are not valid")]
    errors: list[RowError]
    counted: Annotated[bool, Meta(description=COUNTED)]
