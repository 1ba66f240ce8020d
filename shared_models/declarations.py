"""The counters, as one file declares them. The three services derive everything about a counter from its lines.

The file is `rollcall.toml` beside this module, or the one that ROLLCALL_FILE names:

    [tables.orders]
    name = "shop.orders"                    # schema and table
    fields = {email = "text", shop = "uuid"}  # the columns that make members, and their types (TYPES)
    ingest = false                          # true: rows come in through ingest, too; needs a model in shared_models.models

    [counters.customers]
    table = "orders"
    member = ["email"]                      # a row with NULL in any of them does not count
    where = "deleted_at IS NULL"            # an SQL condition: only rows for which it is true count
    example = ["ann@example.org"]           # a member that people recognise, for the descriptions of the APIs

It is read when this module is imported, which needs neither a database nor Django: query has no database. A service that was
started with another file counts other counters: see `Counter.definition`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
FILE = Path(__file__).with_name("rollcall.toml")
NUMBERS = ("smallint", "integer", "bigint")
# Column types that members can have: their text is the same in Python and in Postgres.
TYPES = ("text", "varchar", *NUMBERS, "uuid", "boolean", "date", "enum")
# Postgres' own names of these types, where they differ (pg_type.typname).
TYPE_NAMES = {"int2": "smallint", "int4": "integer", "int8": "bigint", "bool": "boolean"}
# Words of planned features: refused by name, and not silently ignored.
NOT_YET = ("by", "last_seen", "time_zone", "shards", "tag")


class UnknownCounter(LookupError):
    """There is no counter of that name; the message names the declared ones."""


class BadDeclaration(ValueError):
    """The file cannot be used; the message names the key, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column that members are made of, and its type: one of TYPES."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows are counted. `name` is what the file calls it, `schema` and `relation` are what the database does.

    `ingest`: ingest takes rows for it. It has no endpoint for other tables.
    """

    name: str
    schema: str
    relation: str
    fields: tuple[Field, ...]
    ingest: bool = False

    def type_of(self, name: str) -> str:
        """The declared type of a column."""
        return next(each.type for each in self.fields if each.name == name)


@dataclass(frozen=True, slots=True)
class Counter:
    """A named question over a table: how many different values do these fields have, in the rows for which `where` is true?

    `name` appears in URLs, metrics and Redis keys. `fields` make a member, in this order; an index has to begin with them,
    in this order. `example` is a member that people recognise.
    """

    name: str
    table: Table
    fields: tuple[str, ...]
    where: str = ""
    example: tuple[str | int, ...] = ()
    # A hash of what it counts, in 8 hex digits. It is part of the counter's keys. So after an edit the counter is cold,
    # and never live with the old meaning, however long other services keep the old file.
    definition: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not NAME.match(self.name):
            raise BadDeclaration(f"counter name {self.name!r}: use lower-case letters, digits and _, 63 at most")
        if not self.fields:
            raise BadDeclaration(f"counter {self.name!r}: name at least one field")
        if self.example and len(self.example) != len(self.fields):
            raise BadDeclaration(f"counter {self.name!r}: the example needs one value for each field")
        meaning = (self.table.schema, self.table.relation, self.fields, self.types, self.where)
        object.__setattr__(self, "definition", hashlib.sha256(repr(meaning).encode()).hexdigest()[:8])

    @property
    def types(self) -> tuple[str, ...]:
        """The types of its fields."""
        return tuple(map(self.table.type_of, self.fields))

    def example_member(self) -> dict[str, str | int]:
        """A member, field by field, for example ("NY", "Ithaca"). Without one in the declaration: the fields' names."""
        return dict(zip(self.fields, self.example or self.fields, strict=True))


class TableLines(msgspec.Struct, forbid_unknown_fields=True):
    """[tables.NAME]"""

    name: str
    fields: dict[str, str]
    ingest: bool = False


class CounterLines(msgspec.Struct, forbid_unknown_fields=True):
    """[counters.NAME]"""

    table: str
    member: list[str]
    where: str = ""
    example: list[str | int] = []


class Lines(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    tables: dict[str, dict[str, Any]] = {}
    counters: dict[str, dict[str, Any]] = {}


def read_file(path: Path) -> tuple[tuple[Table, ...], tuple[Counter, ...]]:
    """The tables and the counters that the file declares. Raises BadDeclaration, which names the file and the key."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadDeclaration(f"ROLLCALL_FILE={path} cannot be read: {error}") from error
    except (BadDeclaration, tomllib.TOMLDecodeError) as error:
        raise BadDeclaration(f"{path}: {error}") from error


def parse(text: str) -> tuple[tuple[Table, ...], tuple[Counter, ...]]:
    """The declarations in the text of a file. Raises BadDeclaration, tomllib.TOMLDecodeError."""
    if "\\u0000" in text or "\\U00000000" in text:
        raise BadDeclaration("\\u0000: no name and no condition of Postgres has this character")
    lines = convert(tomllib.loads(text), Lines, "")
    tables = {name: read_table(name, found) for name, found in lines.tables.items()}
    places: dict[tuple[str, str], str] = {}
    for table in tables.values():
        other = places.setdefault((table.schema, table.relation), table.name)
        if other != table.name:
            raise BadDeclaration(f"tables.{table.name}: tables.{other} is the same table; declare it once")
    counters = tuple(read_counter(name, found, tables) for name, found in lines.counters.items())
    if not counters:
        raise BadDeclaration("there is no [counters.NAME]: declare at least one counter")
    return tuple(tables.values()), counters


def read_table(name: str, found: dict[str, Any]) -> Table:
    """One table."""
    key = f"tables.{name}"
    if not NAME.match(name):
        raise BadDeclaration(f"{key}: use lower-case letters, digits and _ for the name, 63 at most")
    lines = convert(found, TableLines, key)
    schema, dot, relation = lines.name.partition(".")
    if not dot:
        schema, relation = "public", lines.name
    if not schema or not relation:
        raise BadDeclaration(f'{key}.name: write "schema.table", and not {lines.name!r}')
    for column, type_ in lines.fields.items():
        if type_ not in (*TYPES, "timestamptz"):
            raise BadDeclaration(f"{key}.fields.{column}: {type_!r} is not one of {', '.join(TYPES)}")
    return Table(name, schema, relation, tuple(Field(*each) for each in lines.fields.items()), lines.ingest)


def read_counter(name: str, found: dict[str, Any], tables: dict[str, Table]) -> Counter:
    """One counter."""
    key = f"counters.{name}"
    for word in NOT_YET:
        if word in found:
            raise BadDeclaration(f"{key}.{word}: this version does not support it yet; remove it")
    lines = convert(found, CounterLines, key)
    table = tables.get(lines.table)
    if table is None:
        raise BadDeclaration(f"{key}.table: there is no [tables.{lines.table}]; there are: {', '.join(tables)}")
    known = {each.name: each.type for each in table.fields}
    for column in lines.member:
        if column not in known:
            raise BadDeclaration(
                f"{key}.member: tables.{table.name}.fields does not have {column!r}; it has {', '.join(known)}"
            )
        if known[column] not in TYPES:
            raise BadDeclaration(
                f"{key}.member: {column} is {known[column]}, and members are made of {', '.join(TYPES)}"
            )
    if len(set(lines.member)) < len(lines.member):
        raise BadDeclaration(f"{key}.member: a field is named twice")
    if lines.where and table.ingest:
        raise BadDeclaration(
            f"{key}.where: rows of tables.{table.name} come in through ingest, which counts them before Postgres can say "
            "whether the condition holds: remove it, or set ingest = false"
        )
    if ";" in lines.where or "--" in lines.where:
        raise BadDeclaration(f"{key}.where: one SQL condition, without ; and --")
    return Counter(name, table, tuple(lines.member), lines.where.strip(), tuple(lines.example))


def convert(found: dict[str, Any], to: type[T], key: str) -> T:
    """Typed. Raises BadDeclaration, which names the key."""
    try:
        return msgspec.convert(found, to)
    except msgspec.ValidationError as error:
        known = ", ".join(to.__struct_fields__)  # type: ignore[attr-defined]
        said = f"{error}; there are: {known}" if "unknown field" in str(error) else str(error)
        raise BadDeclaration(f"{key}: {said}" if key else said) from error


try:
    TABLES, COUNTERS = read_file(Path(os.environ.get("ROLLCALL_FILE") or FILE))
except BadDeclaration as error:  # without counters there is nothing to start
    sys.exit(f"{error}. See docs/declarations.md.")


def get_counter(name: str) -> Counter:
    """The counter of that name, or UnknownCounter."""
    for counter in COUNTERS:
        if counter.name == name:
            return counter
    known = ", ".join(counter.name for counter in COUNTERS)
    raise UnknownCounter(f"there is no counter {name!r}; there are: {known}")
