"""A table that is not declared yet: its declaration, made from the catalog, and the lines for rollcall.toml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from ingest_service.adoption import fitness
from ingest_service.adoption.catalog import Relation
from shared_models.declarations import Counter, Field, Table


def declare(
    relation: Relation, declared: Table | None, fields_by_counter: Mapping[str, Sequence[str]]
) -> tuple[Table, list[Counter]]:
    """The table and these counters of it, with the types that the catalog has."""
    wanted = dict.fromkeys(field for fields in fields_by_counter.values() for field in fields)
    for counter, fields in fields_by_counter.items():
        for field in fields:
            fitness.check_field(f"counter {counter}", relation, field, None)
    known = declared.fields if declared else ()
    more = tuple(
        Field(name, relation.columns[name].declared) for name in wanted if name not in {field.name for field in known}
    )
    name = declared.name if declared else re.sub(r"[^a-z0-9_]", "_", relation.name.lower())
    table = Table(name, relation.schema, relation.name, (*known, *more), declared.ingest if declared else False)
    return table, [Counter(counter, table, tuple(fields)) for counter, fields in fields_by_counter.items()]


def lines(table: Table, counters: Sequence[Counter], *, with_table: bool) -> Iterator[str]:
    """What to put into rollcall.toml. A text of JSON is one of TOML, too."""
    if with_table:
        fields = ", ".join(f"{toml_key(field.name)} = {json.dumps(field.type)}" for field in table.fields)
        yield f"[tables.{table.name}]"
        yield f"name = {json.dumps(f'{table.schema}.{table.relation}', ensure_ascii=False)}"
        yield f"fields = {{{fields}}}"
    for counter in counters:
        yield ""
        yield f"[counters.{counter.name}]"
        yield f"table = {json.dumps(table.name)}"
        yield f"member = {json.dumps(list(counter.fields), ensure_ascii=False)}"


def toml_key(name: str) -> str:
    """A key as TOML wants it."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
