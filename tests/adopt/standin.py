from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    schema: str
    relation: str
    fields: tuple[Field, ...]
    ingest: bool = False


@dataclass(frozen=True, slots=True)
class Counter:
    name: str
    table: Table
    fields: tuple[str, ...]
    where: str = ""
    example: tuple = ()

    @property
    def definition(self) -> str:
        return hashlib.sha256(
            repr((self.table.schema, self.table.relation, self.fields, self.where)).encode()
        ).hexdigest()[:8]
