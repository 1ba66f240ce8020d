"""A table that is not declared yet: its declaration, made from the catalog, and the lines for rollcall.toml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count

from ingest_service.adoption import fitness
from ingest_service.adoption.catalog import Relation
from shared_models import declarations
from shared_models.declarations import BadDeclaration, Counter, Field, Table


def declare(
    relation: Relation, declared: Table | None, fields_by_counter: Mapping[str, tuple[str, ...]]
) -> tuple[Table, list[Counter], list[str]]:
    """The table with the types that the catalog has, those of these counters that are not in the file, and their lines.

    Raises CannotAdopt if no file can declare that.
    """
    there = {counter.name: (counter.table, counter.fields) for counter in declarations.COUNTERS}
    new = {name: fields for name, fields in fields_by_counter.items() if there.get(name) != (declared, fields)}
    for counter, fields in new.items():
        if counter in there:
            raise fitness.CannotAdopt(f"the counter {counter} is declared already, and differently")
        for field in fields:
            fitness.check_field(f"counter {counter}", relation, field, None)
    table = declared or Table(free_name(relation), relation.schema, relation.name, ())
    known = {field.name: field for field in table.fields}
    for name in (name for fields in new.values() for name in fields):
        known.setdefault(name, Field(name, relation.columns[name].declared))
    table = replace(table, fields=tuple(known.values()))
    counters = [Counter(counter, table, fields) for counter, fields in new.items()]
    if new:
        check_lines(table, counters)
    return table, counters, list(lines(table, counters, with_table=table != declared)) if new else []


def free_name(relation: Relation) -> str:
    """What the file can call the table: a name of its own, made of the table's."""

    def plain(text: str) -> str:
        made = re.sub(r"[^a-z0-9_]", "_", text.lower())
        return (made if made[0].isalpha() else f"table_{made}")[:50]

    taken = {table.name for table in declarations.TABLES}
    first = (plain(relation.name), plain(f"{relation.schema}_{relation.name}"))
    return next(name for name in chain(first, (f"{first[0]}_{number}" for number in count(2))) if name not in taken)


def check_lines(table: Table, counters: Sequence[Counter]) -> None:
    """The services will read the lines as this table."""
    try:
        ((read,), _) = declarations.parse("\n".join(lines(table, counters, with_table=True)))
    except BadDeclaration as error:
        raise fitness.CannotAdopt(str(error)) from error
    if (read.schema, read.relation) != (table.schema, table.relation):
        raise fitness.CannotAdopt(
            f"the schema {table.schema} has a dot in its name, and rollcall.toml cannot name it: rename the schema"
        )


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
