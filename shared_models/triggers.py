"""The SQL that makes a table countable: the column xact, the triggers that keep it and note departures, and the indexes.

Pure functions of a declared table and its counters. `adopt` runs their SQL, and a migration does so for `message`.

Each table gets one function, which all of its triggers run. It is in the table's schema, belongs to the table's
owner, and is SECURITY DEFINER. So only that owner needs to write `rollcall_triggers.departure`, and no application
does. What it does:

- INSERT of a row with another xact than the transaction's own (COPY with the column, logical replication): the
  function stamps the row.
- UPDATE that changes a byte of a counted or filtered column: it stamps the row, and notes the member that it had.
  It runs BEFORE and not AFTER: an UPDATE that moves a row to another partition fires no AFTER UPDATE trigger.
- DELETE: it notes the members of the deleted rows, once for each statement. When logical replication applies changes,
  statement triggers do not fire. There a row trigger, which fires only in a replica's session, does it row by row.
- TRUNCATE: it notes "all".

(The schema is not named "rollcall": for a user of this name, it would come before "public".)
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared_models.declarations import Counter, Table, Term

# A name without a schema is Postgres' own. A condition, and the text of a date, mean the same in every session.
PATH = "SET search_path = pg_catalog, pg_temp"
CLOCK = ("SET datestyle = 'ISO, YMD'", "SET timezone = 'UTC'")
# An older Postgres does not say which version of its collations the indexes of a database were made with.
LEAST_VERSION = 15_00_00
TOO_OLD = "this Postgres is too old: Rollcall needs version 15 or later"
SCHEMA = "rollcall_triggers"
DEPARTURE = f"{SCHEMA}.departure"
# A statement that removes more members than this from a counter notes "all".
MAX_MEMBERS = 100_000

OWN_XACT = "pg_current_xact_id()::text::bigint"
# The same function by its older name, which returns a bigint. It is for code that runs for each row: a conversion from text
# would cost twice as much. (Not in the column's default, which a dump copies to any Postgres.)
OWN_XACT_AT_ONCE = "txid_current()"
# The xact of a departure: the transaction's own, or the latest one that has ended, if that is later. No row that can be
# deleted or changed was written later. (The row's own xact does not say so: a restored dump has xacts of another history.)
LATEST_XACT = "greatest(txid_current(), txid_snapshot_xmax(txid_current_snapshot()) - 1)"
# Triggers fire in the order of their names, and the stamping ones have to see the row as the others have changed it.
PREFIX = "zzz_rollcall_"
MARK = "Rollcall "  # the comment of everything that is made here begins with this
NAME_BYTES = 63
MAX_STATISTICS_COLUMNS = 8  # STATS_MAX_DIMENSIONS of Postgres

# element: members, each an array of the canonical texts of its terms, in their order. Some may be there twice. NULL
# is "all": reconcile the counter. One row for all members of a statement costs a tenth of a row for each.
# counter: "name:meaning". No unique key: several transactions can note a member without waiting for each other.
MAKE_SCHEMA = f"CREATE SCHEMA {SCHEMA}"
MAKE_DEPARTURE = (
    f"""CREATE TABLE {DEPARTURE} (
    counter text NOT NULL,
    element text[],
    xact bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
)""",
    # Postgres would compress long arrays, and that takes longer than to write them.
    f"ALTER TABLE {DEPARTURE} ALTER COLUMN element SET STORAGE EXTERNAL",
    f"CREATE INDEX departure_counter_xact ON {DEPARTURE} (counter, xact)",
    f"CREATE INDEX departure_create_time ON {DEPARTURE} (create_time)",
    f"COMMENT ON TABLE {DEPARTURE} IS '{MARK}: members that rows may have left, for the keeper to look at'",
)
# Whether there is their schema, and the oid of their table. A role without USAGE on the schema may ask, too.
FIND_DEPARTURE = f"""
    SELECT n.oid IS NOT NULL, c.oid::int8 FROM (SELECT) AS one LEFT JOIN pg_namespace AS n ON n.nspname = '{SCHEMA}'
    LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'departure'
"""
# The columns and expressions of the index `i`, in its order, written like `Term.indexed`; NULL for one whose order is not the
# order in which a counter is read.
INDEXED_COLUMNS = """
    ARRAY(SELECT CASE WHEN (i.indoption::int2[])[k] <> 0 OR NOT o.opcdefault THEN NULL
                      WHEN (i.indcollation::oid[])[k] = a.attcollation THEN a.attname::text
                      WHEN a.attnum IS NULL THEN replace(pg_get_indexdef(i.indexrelid, k + 1, false), '"', '') END
          FROM generate_series(0, i.indnkeyatts - 1) AS k
          LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = (i.indkey::int2[])[k] AND a.attnum > 0
          LEFT JOIN pg_opclass AS o ON o.oid = (i.indclass::oid[])[k] ORDER BY k)
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """One object that is made in the database. Its comment has a hash of what it was made from."""

    kind: str  # FUNCTION, TRIGGER, INDEX, STATISTICS
    name: str  # as in the catalog
    identity: str  # as COMMENT ON and DROP need it
    create: str
    then: str = ""  # a statement that belongs to it
    enabled: str = (
        ""  # when a trigger fires, as pg_trigger has it: O except in a replica's session, R only there, A always
    )

    @property
    def mark(self) -> str:
        """The text of its comment."""
        return MARK + hashlib.sha256((self.create + self.then).encode()).hexdigest()[:16]

    def statements(self) -> tuple[str, ...]:
        """The SQL that makes it, or replaces it. (Drop an index or statistics first.)"""
        return (self.create, *([self.then] if self.then else []), self.comment())

    def comment(self) -> str:
        """The SQL that marks it as Rollcall's."""
        return f"COMMENT ON {self.kind} {self.identity} IS '{self.mark}'"

    def drop(self) -> str:
        """The SQL that removes it."""
        return f"DROP {self.kind} IF EXISTS {self.identity}"


def column(table: Table) -> tuple[str, ...]:
    """The column xact, without a rewrite: existing rows keep 0. Run both statements in one transaction."""
    name = relation(table)
    return (
        f"ALTER TABLE {name} ADD COLUMN xact bigint NOT NULL DEFAULT 0",
        f"ALTER TABLE {name} ALTER COLUMN xact SET DEFAULT {OWN_XACT}",
    )


def triggers(
    table: Table,
    counters: Sequence[Counter],
    watched: Mapping[str, Sequence[str]],
    partitions: Sequence[tuple[str, str]] = (),
    *,
    stamps: bool = True,
) -> list[Piece]:
    """The function of the table, then its triggers.

    `watched`: for each counter the columns that decide whether a row counts and as which member; for a generated column
    the columns that it is made of. `partitions`: schema and name of each, on each level; a DELETE that names a
    partition fires none of its parent's statement triggers. `stamps`: false for a table whose first migration made a
    stamping trigger, and whose xact nobody may send: then an INSERT runs no trigger.
    """
    names = sorted({name for counter in counters for name in watched[counter.name]})
    counted = {each.column for counter in counters for each in counter.terms}
    changed = differs([*names, "xact"] if stamps else names, {*counted, "xact"})
    pieces = [function(table, counters, watched)]

    if stamps:
        foreign = f"NEW.xact IS DISTINCT FROM {OWN_XACT_AT_ONCE}"
        pieces.append(trigger(table, "insert", "BEFORE INSERT", f"FOR EACH ROW WHEN ({foreign})", "ALWAYS"))
    pieces.append(trigger(table, "update", "BEFORE UPDATE", f"FOR EACH ROW WHEN ({changed})", "ALWAYS"))
    pieces.append(trigger(table, "delete_applied", "AFTER DELETE", "FOR EACH ROW", "REPLICA"))
    for each in (None, *partitions):
        pieces += of_statements(table, each)
    return pieces


def note_all(table: Table, counters: Sequence[Counter]) -> tuple[str, str]:
    """What has to surround statements that make the function or the triggers anew, in one transaction: nobody has noted what left
    the counters before. The lock lets all who write now end first."""
    all_of_each = ", ".join(f"({literal(key(counter))}, {LATEST_XACT})" for counter in counters)
    return (
        f"LOCK TABLE {relation(table)} IN SHARE ROW EXCLUSIVE MODE",
        f"INSERT INTO {DEPARTURE} (counter, xact) VALUES {all_of_each}",
    )


def trigger(table: Table, what: str, when: str, rest: str, enabled: str, on: tuple[str, str] | None = None) -> Piece:
    """One trigger on the table, or on a partition of it (schema and name)."""
    name, place = PREFIX + what, relation(table) if on is None else f"{quote(on[0])}.{quote(on[1])}"
    enable = f"ALTER TABLE {place} ENABLE {enabled} TRIGGER {name}" if enabled else ""
    create = f"CREATE OR REPLACE TRIGGER {name} {when} ON {place} {rest} EXECUTE FUNCTION {function_name(table)}()"
    return Piece("TRIGGER", name, f"{name} ON {place}", create, enable, enabled[:1] or "O")


def of_statements(table: Table, on: tuple[str, str] | None = None) -> list[Piece]:
    """The triggers that fire once for each statement: on the table, or on a partition of it (schema and name)."""
    of_statement = "REFERENCING OLD TABLE AS gone FOR EACH STATEMENT"
    return [
        trigger(table, "delete", "AFTER DELETE", of_statement, "", on),
        trigger(table, "truncate", "AFTER TRUNCATE", "FOR EACH STATEMENT", "ALWAYS", on),
    ]


def function(table: Table, counters: Sequence[Counter], watched: Mapping[str, Sequence[str]]) -> Piece:
    """The function that all triggers of the table run."""
    name = f"{function_name(table)}()"
    lines = [
        "#variable_conflict use_column",  # a column may be named like a variable of PL/pgSQL
        f"DECLARE latest bigint := {LATEST_XACT};",
        "BEGIN",
        "IF TG_OP = 'UPDATE' THEN",
    ]
    for counter in counters:
        lines += note_old(counter, f"({differs(watched[counter.name], [each.column for each in counter.terms])}) AND ")
    all_of_each = ", ".join(f"({literal(key(counter))}, latest)" for counter in counters)
    lines += [
        "ELSIF TG_OP = 'TRUNCATE' THEN",
        f"    INSERT INTO {DEPARTURE} (counter, xact) VALUES {all_of_each};",
        "ELSIF TG_OP = 'DELETE' AND TG_LEVEL = 'ROW' THEN",
        *(line for counter in counters for line in note_old(counter)),
        "ELSIF TG_OP = 'DELETE' THEN",
        f"    IF (SELECT count(*) <= {MAX_MEMBERS} FROM gone) THEN",
        *note_gone(counters),
        "    ELSE",
        *note_gone(counters, distinct=True),
        "    END IF;",
        "END IF;",
        "IF TG_WHEN = 'AFTER' THEN RETURN NULL; END IF;",
        f"NEW.xact := {OWN_XACT_AT_ONCE};",
        "RETURN NEW;",
        "END",
    ]
    has_dates = any(declared.type in ("date", "timestamptz") for declared in table.fields)
    # A condition may name a moment: created_at >= '2026-01-01'.
    settings = " ".join([PATH, *CLOCK] if has_dates or any(counter.where for counter in counters) else [PATH])
    create = "\n".join(
        [
            f"CREATE OR REPLACE FUNCTION {name} RETURNS trigger",
            f"LANGUAGE plpgsql SECURITY DEFINER {settings} AS {body(lines)}",
        ]
    )
    return Piece("FUNCTION", function_text(table), name, create, f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")


def body(lines: Sequence[str]) -> str:
    """The source of a function, quoted so that it can be read."""
    text = "\n".join(["", *lines, ""])
    tag = "$rollcall$"
    while tag in text:
        tag = f"${tag[1:-1]}_$"
    return tag + text + tag


def note_old(counter: Counter, unless_same: str = "") -> Iterator[str]:
    """The statement that notes the member of the row OLD, if that counts."""
    filled = " AND ".join(f"OLD.{quote(column)} IS NOT NULL" for column in columns_of(counter))
    where = f" AND (SELECT ({counter.where}) FROM (SELECT OLD.*) AS gone)" if counter.where else ""
    texts = ", ".join(f"({each.sql('OLD.')})::text" for each in counter.terms)
    yield f"    IF {unless_same}{filled}{where} THEN"
    yield f"        INSERT INTO {DEPARTURE} (counter, element, xact)"
    yield f"        VALUES ({literal(key(counter))}, ARRAY[ARRAY[{texts}]], latest);"
    yield "    END IF;"


def note_gone(counters: Sequence[Counter], *, distinct: bool = False) -> Iterator[str]:
    """The statement that notes the members of all deleted rows.

    `distinct`: each member once, or "all". Looking for duplicates takes longer than noting them twice.
    """
    element = f"CASE WHEN array_length(element, 1) <= {MAX_MEMBERS} THEN element END" if distinct else "element"
    yield f"        INSERT INTO {DEPARTURE} (counter, element, xact)"
    yield f"        SELECT counter, {element}, latest FROM (VALUES"
    yield ",\n".join(f"            ({literal(key(each))}, ARRAY({members_gone(each, distinct)}))" for each in counters)
    yield "        OFFSET 0) AS noted (counter, element) WHERE element <> '{}';"


def members_gone(counter: Counter, distinct: bool) -> str:
    """The statement that finds the members of the deleted rows that count."""
    terms = [each.sql("gone.") for each in counter.terms]
    filled = [f"gone.{quote(column)} IS NOT NULL" for column in columns_of(counter)]
    counts = [f"({counter.where})"] * bool(counter.where) + filled
    once = f" GROUP BY {', '.join(terms)} LIMIT {MAX_MEMBERS + 1}" if distinct else ""
    texts = ", ".join(f"({term})::text" for term in terms)
    return f"SELECT ARRAY[{texts}] FROM gone WHERE {' AND '.join(counts)}{once}"


def differs(columns: Sequence[str], plain: Collection[str]) -> str:
    """Whether OLD and NEW differ in a byte of these columns.

    `plain`: the columns that make members; their types and collations guarantee that equal means equal bytes. Other
    columns, which a condition may use, are compared by image, which takes twice the time. This is a call of the function
    and not the operator, because pg_dump writes the operator in a way that cannot be restored.
    """
    tests = [f"OLD.{quote(name)} IS DISTINCT FROM NEW.{quote(name)}" for name in columns if name in plain]
    others = [name for name in columns if name not in plain]
    if others:
        old, new = ("ROW(" + ", ".join(f"{row}.{quote(name)}" for name in others) + ")" for row in ("OLD", "NEW"))
        tests.append(f"pg_catalog.record_image_ne({old}, {new})")
    return " OR ".join(tests)


def index(schema: str, of: str, terms: Sequence[Term], where: str = "") -> Piece:
    """An index that has every row that counts. Its name is made from its definition, so that `adopt` finds it again."""
    listed = ", ".join(f"({each.sql()})" if each.is_made else each.sql() for each in terms)
    name = shorten("rollcall_" + "_".join((of, *(each.name for each in terms))), f"{schema}.{of} ({listed}) {where}")
    # An index-only scan also needs the columns that the expressions of the index are made of.
    times = ", ".join(dict.fromkeys(quote(each.column) for each in terms if each.is_made))
    included = f" INCLUDE ({times})" if times else ""
    condition = f" WHERE {where}" if where else ""
    create = f"CREATE INDEX {quote(name)} ON {quote(schema)}.{quote(of)} ({listed}){included}{condition}"
    return Piece("INDEX", name, f"{quote(schema)}.{quote(name)}", create)


def statistics(table: Table, counters: Sequence[Counter]) -> list[Piece]:
    """For counters of several fields: how many combinations these have. See `operations.CountCombinations`.

    Postgres has none of more than 8 columns. Then the planner guesses, and a build may read rows where it could jump.
    """
    pieces = []
    for fields in dict.fromkeys(map(columns_together, counters)):
        if not 1 < len(fields) <= MAX_STATISTICS_COLUMNS:
            continue
        listed = ", ".join(map(quote, fields))
        name = shorten("rollcall_" + "_".join((table.relation, *fields)), f"{relation(table)} ({listed})")
        identity = f"{quote(table.schema)}.{quote(name)}"
        create = f"CREATE STATISTICS {identity} (ndistinct) ON {listed} FROM {relation(table)}"
        pieces.append(Piece("STATISTICS", name, identity, create))
    return pieces


def columns_of(counter: Counter) -> tuple[str, ...]:
    """The columns that the counter's terms are made of."""
    return tuple(dict.fromkeys(each.column for each in counter.terms))


def columns_together(counter: Counter) -> tuple[str, ...]:
    """The columns, sorted, whose combinations the planner has to know; none if an index has statistics of its expressions."""
    return () if any(each.is_made for each in counter.terms) else tuple(sorted(columns_of(counter)))


def key(counter: Counter) -> str:
    """How departures name a counter."""
    return f"{counter.key_name}:{counter.meaning}"


def relation(table: Table) -> str:
    """The table, quoted."""
    return f"{quote(table.schema)}.{quote(table.relation)}"


def function_text(table: Table) -> str:
    """The name of the table's function, as the catalog has it."""
    return shorten(f"rollcall_{table.relation}", f"{table.schema}.{table.relation}")


def function_name(table: Table) -> str:
    """The table's function, quoted."""
    return f"{quote(table.schema)}.{quote(function_text(table))}"


def shorten(name: str, of: str) -> str:
    """A name that Postgres does not cut, and that is unique."""
    hashed = hashlib.sha256(of.encode()).hexdigest()[:8]
    return name.encode()[: NAME_BYTES - 9].decode(errors="ignore") + "_" + hashed


def quote(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return ("E" if "\\" in text else "") + "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
