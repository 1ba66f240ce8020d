"""The counters, as one file declares them. The three services derive everything about a counter from its lines.

The file is `rollcall.toml` next to this module, or the one that ROLLCALL_FILE names:

    [tables.orders]
    name = "shop.orders"                    # schema and table
    fields = {email = "text", shop = "uuid"}  # the columns that make members, and their types (TYPES)
    ingest = false                          # true: rows come in through ingest, too; needs a model in shared_models.models

    [counters.customers]
    table = "orders"
    member = ["email"]                      # a row with NULL in any of them does not count
    where = "deleted_at IS NULL"            # an SQL condition: only rows for which it is true count
    by = ["country", "day(created_at)", ["country", "day(created_at)"]]   # also one count for each group
    last_seen = "created_at"                # also counts of the last days: windows
    time_zone = "UTC"                       # of the days; a name that Postgres and Python know
    example = ["ann@example.org"]           # a member that people recognise, for the descriptions of the APIs
    shards = 16                             # how many parts each of its derived counters has, for Redis Cluster; 1 at first
    next_shards = 32                        # build it with another number of shards as well, to switch to it later
    tag = "people"                          # counters with the same tag and shards are in the same slots of a cluster

A declared counter expands into derived counters: the total, and one for each entry of `by` (`derived`). A derived counter has
`shards` parts (`parts`), by a hash of the member. Each part has keys, a cursor and a state of its own, and the protocol treats them
alike. With one shard, which is the usual case, a derived counter is its only part.

With `next_shards` there is a second family of derived counters: `users@32`, `users@32:country`. Ingest and manage treat them like
the others (`kept`). Query does not read them. Their keys are those that the counter has when `shards` is 32. So that edit makes
no count cold.

Importing this module reads the file. That needs neither a database nor Django: query has no database. A service that started
with another file has other counters: see `Counter.definition`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import msgspec

T = TypeVar("T")

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
FILE = Path(__file__).with_name("rollcall.toml")
NUMBERS = ("smallint", "integer", "bigint")
# Column types that members can have: their text is the same in Python and in Postgres.
TYPES = ("text", "varchar", *NUMBERS, "uuid", "boolean", "date", "enum")
# Postgres' own names of these types, where they differ (pg_type.typname).
TYPE_NAMES = {"int2": "smallint", "int4": "integer", "int8": "bigint", "bool": "boolean"}
# How many parts a counter may have: more than a cluster has servers that are worth it.
MOST_SHARDS = 256
UNITS = ("day", "week", "month")
# Columns that have a day.
TIMES = ("timestamptz", "date")
OF_A_TIME = re.compile(rf"({'|'.join(UNITS)})\((.+)\)")
ZONE = re.compile(r"[A-Za-z0-9_+/-]{1,64}")
# How many entries `by` may have, and how many terms one of them.
MOST_GROUPINGS, MOST_TERMS = 8, 3


class UnknownCounter(LookupError):
    """There is no counter of that name; the message names the declared ones."""


class BadDeclaration(ValueError):
    """The file cannot be used; the message names the key, and what is allowed."""


class Storage(Enum):
    """What holds the elements of a derived counter in Redis: see `shared_models.protocol.storages`."""

    SET = "set"  # an element is a member
    GROUPS = "groups"  # … a group and a member: a set for each group
    LAST_SEEN = "last_seen"  # … a member, and the last day on which it has a row


@dataclass(frozen=True, slots=True)
class Field:
    """A column that members are made of, and its type: one of TYPES."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows are counted. `name` is its name in the file; `schema` and `relation` are its name in the database.

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
class Term:
    """One part of an element, as a row has it: a column, or the day, week or month of a column.

    A week is named by its Monday, a month by its first day. `type` is the text's: one of TYPES.
    """

    column: str
    type: str
    unit: str = ""
    zone: str = ""  # of a timestamptz; a date has no zone

    @property
    def name(self) -> str:
        """As it is declared: "country", "day(created_at)"."""
        return f"{self.unit}({self.column})" if self.unit else self.column

    @property
    def is_made(self) -> bool:
        """Whether its value is computed from the column, and is not the column itself."""
        return bool(self.zone) or self.unit in ("week", "month")

    def sql(self, row: str = "") -> str:
        """The SQL of its value in a row; `row` is the prefix of the column's name: "gone."."""
        column = row + '"' + self.column.replace('"', '""') + '"'
        time = f"timezone('{self.zone}', {column})" if self.zone else column
        if self.unit in ("", "day"):
            return f"({time})::date" if self.zone else column
        return f"(date_trunc('{self.unit}', {time if self.zone else f'{column}::timestamp'}))::date"

    @property
    def indexed(self) -> str:
        """As Postgres shows it in an index: an expression without any double quotes, a column by its name."""
        if not self.is_made:
            return self.column
        column = self.column.replace('"', "")
        time = f"timezone('{self.zone}'::text, {column})" if self.zone else column
        if self.unit == "day":
            return f"(({time})::date)"
        time = time if self.zone else f"({column})::timestamp without time zone"
        return f"((date_trunc('{self.unit}'::text, {time}))::date)"


@dataclass(frozen=True, slots=True)
class Counter:
    """A named question over a table: how many different values do these fields have, in the rows for which `where` is true?

    `name` appears in URLs, metrics and Redis keys. `fields` make a member, in this order. `example` is a member that people
    recognise. A declared counter is the total; `groupings` are the counters that are derived from it, one for each entry of
    `by`. In a counter by group, `of` is the name of the total, and `by` has the terms that make a group.
    """

    name: str
    table: Table
    fields: tuple[str, ...]
    where: str = ""
    example: tuple[str | int, ...] = ()
    last_seen: Term | None = None
    time_zone: str = "UTC"
    of: str = ""
    by: tuple[Term, ...] = ()
    groupings: tuple[Counter, ...] = ()
    shards: int = 1
    tag: str = ""
    next_shards: int = 0  # of a total: another number of shards that it is kept with as well; 0: there is none
    # Of a derived counter with the next number of shards: the name of the one that it will replace.
    next_of: str = ""
    # Of a part: the name of its derived counter, and its number.
    part_of: str = ""
    shard: int = 0
    # The terms of an element, in the order of the index that reads it: the group and then the member; or the member and
    # then the day.
    terms: tuple[Term, ...] = field(init=False, compare=False)
    # A hash of what it counts, in 8 hex digits. Departures carry it: they are the same for any number of shards.
    meaning: str = field(init=False, compare=False)
    # A hash of that and of the number of shards. It is part of the counter's keys. So after an edit the counter is cold, and
    # never live with the old meaning, however long other services keep the old file.
    definition: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not NAME.match(self.key_name.partition(":")[0]):
            raise BadDeclaration(f"counter name {self.name!r}: use lower-case letters, digits and _, 63 at most")
        if not self.fields:
            raise BadDeclaration(f"counter {self.name!r}: name at least one field")
        if self.example and len(self.example) != len(self.fields):
            raise BadDeclaration(f"counter {self.name!r}: the example needs one value for each field")
        made_of = tuple(Term(name, self.table.type_of(name)) for name in self.fields)
        terms = (*self.by, *(each for each in made_of if each not in self.by), *filter(None, [self.last_seen]))
        object.__setattr__(self, "terms", terms)
        meaning: tuple[object, ...] = (self.table.schema, self.table.relation, self.fields, self.types, self.where)
        if self.storage is not Storage.SET:
            meaning = (*meaning, self.storage.value, tuple((each.name, each.type, each.zone) for each in terms))
        object.__setattr__(self, "meaning", short_hash(meaning))
        definition = short_hash((*meaning, self.shards)) if self.shards > 1 else self.meaning
        object.__setattr__(self, "definition", definition)

    @property
    def types(self) -> tuple[str, ...]:
        """The types of its fields."""
        return tuple(map(self.table.type_of, self.fields))

    @property
    def storage(self) -> Storage:
        """What holds its elements."""
        if self.by:
            return Storage.GROUPS
        return Storage.LAST_SEEN if self.last_seen else Storage.SET

    @property
    def whole(self) -> str:
        """The name of the derived counter: of a part the one that it is a part of."""
        return self.part_of or self.name

    @property
    def key_name(self) -> str:
        """The name of the derived counter in keys: the same before and after `next_shards` becomes `shards`."""
        return self.next_of or self.whole

    @property
    def next(self) -> Counter | None:
        """The total with the next number of shards, and its groupings; None if there is none."""
        return _next_of(self) if self.next_shards else None

    @property
    def parts(self) -> tuple[Counter, ...]:
        """Its parts, by number; of a part, and if there is one shard, itself alone."""
        return (self,) if self.shards == 1 or self.part_of else _parts_of(self)

    @property
    def by_names(self) -> tuple[str, ...]:
        """The names of the terms that make a group, as they are declared."""
        return tuple(each.name for each in self.by)

    def grouped(self, *by: Term) -> Counter:
        """The counter of the same members by group."""
        name = f"{self.name}:{','.join(each.name for each in by)}"
        return replace(self, name=name, of=self.name, by=by, last_seen=None, groupings=(), next_shards=0)

    def grouping(self, by: tuple[str, ...]) -> Counter | None:
        """The derived counter by these terms' names; None if it is not declared."""
        return next((each for each in self.groupings if each.by_names == by), None)

    def example_member(self) -> dict[str, str | int]:
        """A member, field by field, for example ("NY", "Ithaca"). Without one in the declaration: the fields' names."""
        return dict(zip(self.fields, self.example or self.fields, strict=True))


def short_hash(value: object) -> str:
    """The first 8 hex digits of a hash."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


@cache
def _next_of(total: Counter) -> Counter:
    name = f"{total.name}@{total.next_shards}"
    found = replace(total, name=name, next_of=total.name, shards=total.next_shards, next_shards=0, groupings=())
    groupings = (replace(found.grouped(*each.by), next_of=each.name) for each in total.groupings)
    return replace(found, groupings=tuple(groupings))


@cache
def _parts_of(counter: Counter) -> tuple[Counter, ...]:
    # Nothing asks a part for its groupings.
    alone = replace(counter, part_of=counter.name, groupings=())
    return tuple(replace(alone, name=f"{counter.name}#{n:02}", shard=n) for n in range(counter.shards))


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
    by: list[str | list[str]] = []
    last_seen: str = ""
    time_zone: str = "UTC"
    example: list[str | int] = []
    shards: int = 1
    next_shards: int | None = None
    tag: str = ""


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
    check_zone(key, lines.time_zone)
    if not 1 <= lines.shards <= MOST_SHARDS:
        raise BadDeclaration(f"{key}.shards: {lines.shards}, and it may be 1 to {MOST_SHARDS}")
    if lines.next_shards is not None and not 1 <= lines.next_shards <= MOST_SHARDS:
        raise BadDeclaration(f"{key}.next_shards: {lines.next_shards}, and it may be 1 to {MOST_SHARDS}")
    if lines.next_shards == lines.shards:
        raise BadDeclaration(
            f"{key}.next_shards: {lines.next_shards}, and shards is the same: name another number, or remove next_shards"
        )
    if lines.tag and not NAME.match(lines.tag):
        raise BadDeclaration(f"{key}.tag: use lower-case letters, digits and _, 63 at most")
    last_seen = (
        read_time(f"{key}.last_seen", "day", lines.last_seen, table, lines.time_zone) if lines.last_seen else None
    )
    total = Counter(
        name,
        table,
        tuple(lines.member),
        lines.where.strip(),
        tuple(lines.example),
        last_seen,
        lines.time_zone,
        shards=lines.shards,
        tag=lines.tag,
        next_shards=lines.next_shards or 0,
    )
    return replace(total, groupings=tuple(read_groupings(f"{key}.by", lines.by, total)))


def read_groupings(key: str, by: list[str | list[str]], total: Counter) -> Iterator[Counter]:
    """The derived counters of `by`."""
    if len(by) > MOST_GROUPINGS:
        raise BadDeclaration(f"{key}: {len(by)} entries, and at most {MOST_GROUPINGS} are allowed")
    seen, names = set(), set[str]()
    for entry in by:
        texts = [entry] if isinstance(entry, str) else entry
        if not 0 < len(texts) <= MOST_TERMS:
            raise BadDeclaration(f"{key}: a group is made of 1 to {MOST_TERMS} columns, and not of {len(texts)}")
        terms = tuple(read_term(key, text, total) for text in texts)
        if len({each.name for each in terms}) < len(terms) or terms in seen:
            raise BadDeclaration(f"{key}: {', '.join(texts)} stands there twice")
        seen.add(terms)
        grouped = total.grouped(*terms)
        if grouped.name in names:  # a column may have a comma in its name
            raise BadDeclaration(f"{key}: two entries have the name {grouped.name!r}")
        names.add(grouped.name)
        if set(total.fields) <= {each.column for each in grouped.by if not each.unit}:
            raise BadDeclaration(f"{key}: {', '.join(texts)} names the whole member, and each group would have one")
        yield grouped


def read_term(key: str, text: str, total: Counter) -> Term:
    """One term of a group."""
    found = OF_A_TIME.fullmatch(text)
    if found:
        return read_time(key, found[1], found[2], total.table, total.time_zone)
    known = {each.name: each.type for each in total.table.fields}
    if text not in known:
        raise BadDeclaration(
            f"{key}: tables.{total.table.name}.fields does not have {text!r}; it has {', '.join(known)}. "
            f"Of a time there are {', '.join(f'{unit}(column)' for unit in UNITS)}"
        )
    if known[text] not in TYPES:
        raise BadDeclaration(f"{key}: {text} is {known[text]}: write day({text}), week({text}) or month({text})")
    return Term(text, known[text])


def read_time(key: str, unit: str, column: str, table: Table, zone: str) -> Term:
    """The day, week or month of a column."""
    known = {each.name: each.type for each in table.fields}
    if known.get(column) not in TIMES:
        has = f"is {known[column]}" if column in known else f"is not in tables.{table.name}.fields"
        raise BadDeclaration(f"{key}: {column} {has}, and has to be {' or '.join(TIMES)} there")
    return Term(column, "date", unit, zone if known[column] == "timestamptz" else "")


def check_zone(key: str, zone: str) -> None:
    """Raises BadDeclaration if there is no such time zone."""
    try:
        if ZONE.fullmatch(zone):
            ZoneInfo(zone)
            return
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        pass
    raise BadDeclaration(f'{key}.time_zone: there is no time zone {zone!r}; write "UTC", or a place: "Europe/Berlin"')


def convert(found: dict[str, Any], to: type[T], key: str) -> T:
    """The lines, with types. Raises BadDeclaration, which names the key."""
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


def derived() -> tuple[Counter, ...]:
    """All derived counters: for each declared one its total, then its counters by group."""
    return tuple(each for counter in COUNTERS for each in (counter, *counter.groupings))


def totals() -> tuple[Counter, ...]:
    """All totals that ingest and manage keep: each declared counter, then the same with the next number of shards."""
    return tuple(each for counter in COUNTERS for each in (counter, counter.next) if each)


def kept() -> tuple[Counter, ...]:
    """All derived counters that ingest and manage keep: for each of the totals the total, then its counters by group."""
    return tuple(each for counter in totals() for each in (counter, *counter.groupings))


def families(counter: Counter) -> tuple[Counter, ...]:
    """A derived counter, and the same with the next number of shards, if there is one."""
    return tuple(each for each in kept() if each.key_name == counter.name)


def parts() -> tuple[Counter, ...]:
    """All parts of all derived counters that are kept."""
    return tuple(part for counter in kept() for part in counter.parts)


def get_part(name: str) -> Counter:
    """The part of that name, or UnknownCounter."""
    for part in get_counter(whole_of(name)).parts:
        if part.name == name:
            return part
    raise UnknownCounter(f"there is no part {name!r}")


def whole_of(name: str) -> str:
    """The name of the derived counter that a part of this name belongs to."""
    return name.partition("#")[0]


def with_groupings(names: Iterable[str]) -> list[str]:
    """The names of derived counters: for a declared counter its total and its groupings, for a counter by group its own.

    Raises UnknownCounter.
    """
    found = [counter for name in names for counter in (get_counter(name), *get_counter(name).groupings)]
    return list(dict.fromkeys(counter.name for counter in found))


def get_counter(name: str) -> Counter:
    """The derived counter of that name, one of those that are kept, or UnknownCounter."""
    for counter in kept():
        if counter.name == name:
            return counter
    # For a known total only its own groupings: all groupings together may be hundreds.
    of = next((counter for counter in totals() if counter.groupings and name.startswith(f"{counter.name}:")), None)
    known = ", ".join(counter.name for counter in (of.groupings if of else COUNTERS))
    raise UnknownCounter(f"there is no counter {name!r}; there are: {known}")
