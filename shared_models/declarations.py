"""What is counted: tables and counters, declared in one file that all three services read.

The file is the one that ROLLCALL_FILE names, or `rollcall.toml` beside this module. It is read once, at import. Importing this
needs neither Django's models nor a database, so that query, which has no database, can read the declarations too.

    [tables.orders]
    name = "shop.orders"                    # schema.table; the schema is public where none is given
    fields = {email = "text", age = "integer"}  # the columns that counters name, and their types in Postgres
    ingest = false                          # true: rows come in through ingest, and operators may delete some there

    [counters.customers]
    table = "orders"
    member = ["email"]                      # how many different values do these fields have? NULL is none
    where = "deleted_at IS NULL"            # of the rows for which this SQL is true
    example = ["ann@example.org"]           # a member that people recognise, for the descriptions of the APIs
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import msgspec

Type: TypeAlias = Literal[
    "text", "varchar", "smallint", "integer", "bigint", "uuid", "boolean", "date", "timestamptz", "enum"
]
TYPES: tuple[str, ...] = get_args(Type)
# Postgres' text of a moment depends on a session's time zone: two sessions would make two members of it.
NO_MEMBER = ("timestamptz",)

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
# A name in Postgres, letter by letter as its catalog has it, for which SQL needs no escapes.
IDENTIFIER = re.compile(r"[^\W\d][\w$]*\Z")
IDENTIFIER_BYTES = 63
# What only a later version understands.
NOT_YET = ("by", "last_seen", "time_zone", "shards")
# What makes the answer of a condition depend on more than the row.
CHANGES_BY_ITSELF = re.compile(
    r"\b(select|now|random|\w+_timestamp|timeofday|localtime|localtimestamp|current_\w+|session_user)\b", re.IGNORECASE
)
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")

DEFAULT_FILE = Path(__file__).with_name("rollcall.toml")


class DeclarationError(ValueError):
    """The file of declarations cannot be used; the message names the key, what is allowed, and what to do."""


class UnknownCounter(LookupError):
    """There is no counter of that name; the message names those that there are."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a table."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table in Postgres. `name` is what the file calls it; `ingest`: its rows come in through ingest."""

    name: str
    schema: str
    relation: str
    fields: tuple[Field, ...]
    ingest: bool = False

    def type_of(self, field: str) -> str:
        """The type of a declared field. Raises KeyError."""
        return {each.name: each.type for each in self.fields}[field]


@dataclass(frozen=True, slots=True)
class Counter:
    """A named question over a table: how many different values do these fields have?

    `name` appears in URLs, metrics and Redis keys. `fields` make a member, in this order; an index has to begin with them,
    in this order. A row in which one of them is NULL has no member, and neither has one for which `where` is not true.
    """

    name: str
    table: Table
    fields: tuple[str, ...]
    where: str = ""
    example: tuple[str | int, ...] = ()
    # What the count means, as eight hexadecimal digits: two counters with the same definition have the same members.
    definition: str = field(init=False)

    def __post_init__(self) -> None:
        known = {each.name: each.type for each in self.table.fields}
        meaning = [
            self.table.schema,
            self.table.relation,
            [[name, known.get(name)] for name in self.fields],
            self.where,
        ]
        object.__setattr__(self, "definition", sha256(json.dumps(meaning).encode()).hexdigest()[:8])

    @property
    def types(self) -> tuple[str, ...]:
        """The types of `fields`."""
        return tuple(self.table.type_of(name) for name in self.fields)

    def example_member(self) -> dict[str, str | int]:
        """A member, field by field; made of the fields' names where the declaration gives none."""
        return dict(zip(self.fields, self.example or self.fields, strict=True))


class TableEntry(msgspec.Struct, forbid_unknown_fields=True):
    """[tables.NAME], as it is written."""

    name: str
    fields: dict[str, str]
    ingest: bool = False


class CounterEntry(msgspec.Struct, forbid_unknown_fields=True):
    """[counters.NAME], as it is written."""

    table: str
    member: list[str]
    where: str = ""
    example: list[str | int] = []


Entry = TypeVar("Entry", TableEntry, CounterEntry)


def read_file(path: Path) -> tuple[tuple[Table, ...], tuple[Counter, ...]]:
    """The tables and counters of a file, in its order. Raises DeclarationError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeclarationError(
            f"{path} cannot be read: {error.strerror}. ROLLCALL_FILE names the file of tables and counters; "
            "without it the packaged one holds"
        ) from error
    except UnicodeDecodeError as error:
        raise DeclarationError(f"{path} is not UTF-8: byte {error.start}. Save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise DeclarationError(f"{path} is not TOML: {error}. A key may stand once in its section") from error
    try:
        return parse(document)
    except DeclarationError as error:
        raise DeclarationError(f"{path}: {error}") from error


def parse(document: Mapping[str, Any]) -> tuple[tuple[Table, ...], tuple[Counter, ...]]:
    """The tables and counters of a document that was TOML. Raises DeclarationError."""
    refuse_unknown("", document, ("tables", "counters"))
    tables: dict[str, Table] = {}
    for name, raw in sections(document, "tables"):
        tables[name] = parse_table(name, raw)
    places: dict[tuple[str, str], str] = {}
    for name, table in tables.items():
        first = places.setdefault((table.schema, table.relation), name)
        if first != name:
            raise DeclarationError(
                f"tables.{name}.name: {table.schema}.{table.relation} is tables.{first} already; "
                "declare each table once, with all its fields"
            )
    counters = [parse_counter(name, raw, tables) for name, raw in sections(document, "counters")]
    if not counters:
        raise DeclarationError("counters: there is none; declare at least one, [counters.NAME] with table and member")
    return tuple(tables.values()), tuple(counters)


def parse_table(name: str, raw: object) -> Table:
    """One section [tables.NAME]."""
    key = f"tables.{name}"
    check_name(key, name)
    entry = convert(key, raw, TableEntry)
    schema, dot, relation = entry.name.rpartition(".")
    for part in (relation, schema) if dot else (relation,):
        check_identifier(f"{key}.name", part, "write schema.table, each part as Postgres' catalog has it")
    if not entry.fields:
        raise DeclarationError(f'{key}.fields: name at least one column and its type, as {{email = "text"}}')
    for column, type_ in entry.fields.items():
        check_identifier(f"{key}.fields", column, "write the column's name as Postgres' catalog has it")
        if type_ not in TYPES:
            raise DeclarationError(
                f"{key}.fields.{column}: there is no type {type_!r}; use one of {', '.join(TYPES)}. "
                "A column of another type cannot be counted: count a generated column that has one of these"
            )
    fields = tuple(Field(column, type_) for column, type_ in entry.fields.items())
    return Table(name, schema or "public", relation, fields, entry.ingest)


def parse_counter(name: str, raw: object, tables: Mapping[str, Table]) -> Counter:
    """One section [counters.NAME]."""
    key = f"counters.{name}"
    check_name(key, name)
    entry = convert(key, raw, CounterEntry)
    table = tables.get(entry.table)
    if table is None:
        raise DeclarationError(
            f"{key}.table: there is no table {entry.table!r}; there are: {', '.join(tables) or 'none'}. "
            f"Declare [tables.{entry.table}] or name one of these"
        )
    known = {each.name: each.type for each in table.fields}
    if not entry.member:
        raise DeclarationError(f"{key}.member: name at least one field of tables.{table.name}: {', '.join(known)}")
    for field_ in entry.member:
        if field_ not in known:
            raise DeclarationError(
                f"{key}.member: tables.{table.name} has no field {field_!r}; there are: {', '.join(known)}. "
                f"Name one of these or add it to tables.{table.name}.fields"
            )
        if known[field_] in NO_MEMBER:
            raise DeclarationError(
                f"{key}.member: {field_!r} is {known[field_]}, whose text depends on a time zone; "
                "count a column of the type date"
            )
        if entry.member.count(field_) > 1:
            raise DeclarationError(f"{key}.member: {field_!r} stands there twice; name each field once")
    if entry.example and len(entry.example) != len(entry.member):
        raise DeclarationError(
            f"{key}.example: it needs one value for each field of member: {', '.join(entry.member)}; "
            f"it has {len(entry.example)}"
        )
    where = check_where(f"{key}.where", entry.where.strip(), table)
    return Counter(name, table, tuple(entry.member), where, tuple(entry.example))


def check_where(key: str, where: str, table: Table) -> str:
    """A condition on a row by itself. Raises DeclarationError for what can be seen to be none; Postgres judges the rest."""
    code = QUOTED.sub("''", where)
    if where and table.ingest:
        raise DeclarationError(
            f"{key}: the rows of tables.{table.name} come in through ingest, which counts them before Postgres could judge "
            "them; take where or ingest out"
        )
    if found := CHANGES_BY_ITSELF.search(code):
        raise DeclarationError(
            f"{key}: {found[0]} makes the answer depend on more than the row; use the row's own columns and constants"
        )
    if ";" in code or "--" in code or "/*" in code or code.count("(") != code.count(")"):
        raise DeclarationError(f"{key}: write one SQL expression, without comments, as in an index's WHERE")
    return where


def sections(document: Mapping[str, Any], key: str) -> Iterable[tuple[str, object]]:
    """The sections [key.NAME]."""
    found = document.get(key, {})
    if not isinstance(found, dict):
        raise DeclarationError(f"{key}: write sections [{key}.NAME], not a value")
    return found.items()


def convert(key: str, raw: object, entry: type[Entry]) -> Entry:
    """A section as it is meant to be. Raises DeclarationError, which names the key."""
    names = entry.__struct_fields__
    if not isinstance(raw, dict):
        raise DeclarationError(f"{key}: write a section [{key}] with {', '.join(names)}")
    refuse_unknown(f"{key}.", raw, names)
    missing = [name for name in names if name not in raw and name not in ("ingest", "where", "example")]
    if missing:
        raise DeclarationError(f"{key}.{missing[0]}: it is missing; a section [{key}] needs it")
    try:
        return msgspec.convert(raw, entry)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at ")
        place = path.strip("`").removeprefix("$").replace("[...]", "")
        raise DeclarationError(f"{key}{place}: {what[0].lower()}{what[1:]}; see the file's format in README.md") from error


def refuse_unknown(prefix: str, raw: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for name in raw:
        if name not in allowed:
            yet = "it is not there yet" if name in NOT_YET else "there is no such key"
            raise DeclarationError(f"{prefix}{name}: {yet}; use {', '.join(allowed)}, or take it out")


def check_name(key: str, name: str) -> None:
    if not NAME.match(name):
        raise DeclarationError(
            f"{key}: {name!r} cannot be a name; use lower-case letters, digits and _, a letter first, 63 at most"
        )


def check_identifier(key: str, name: str, remedy: str) -> None:
    if not IDENTIFIER.match(name) or len(name.encode()) > IDENTIFIER_BYTES:
        raise DeclarationError(
            f"{key}: {name!r} is not a name of letters, digits, _ and $, a letter or _ first, "
            f"in {IDENTIFIER_BYTES} bytes; {remedy}"
        )


TABLES, COUNTERS = read_file(Path(os.environ.get("ROLLCALL_FILE") or DEFAULT_FILE))


def get_counter(name: str) -> Counter:
    """The counter of that name, or UnknownCounter."""
    for counter in COUNTERS:
        if counter.name == name:
            return counter
    known = ", ".join(counter.name for counter in COUNTERS)
    raise UnknownCounter(f"there is no counter {name!r}; there are: {known}")
