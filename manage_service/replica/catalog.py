"""Compares a counter's declaration with the catalog of its table: before it is built, and at each reconcile.

A difference fails that counter alone, and the error says what to do. Postgres would refuse some of them later, with its
own messages. It would accept the others, and the count would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import psycopg2

from manage_service.replica import sql
from shared_models import triggers
from shared_models.declarations import TYPE_NAMES, Counter

Ask: TypeAlias = Callable[[str, Sequence[object]], list[Any]]


class DoesNotFit(psycopg2.ProgrammingError):
    """The database does not fit the declaration. Handled like a refusal by Postgres."""


def check(counter: Counter, ask: Ask) -> None:
    """Raises DoesNotFit, with all differences. `ask` runs a statement in a snapshot in which the table is locked."""
    wrong = "; ".join(misfits(counter, ask))
    if wrong:
        raise DoesNotFit(wrong)


def misfits(counter: Counter, ask: Ask) -> Iterator[str]:
    """The differences, one after the other."""
    place, regclass = f"{counter.table.schema}.{counter.table.relation}", triggers.relation(counter.table)
    adopt = f"python -m ingest_service adopt {counter.table.name}"
    for (role,) in ask(sql.ROW_SECURITY, [regclass]):
        yield (
            f"row-level security of {place} hides rows from {role}, and a policy that shows them is not enough: have a superuser "
            f"run ALTER ROLE {role} BYPASSRLS"
        )
    columns = {name: rest for name, *rest in ask(sql.COLUMNS, [regclass])}
    types = {each.name: each.type for each in counter.table.fields}
    for field in dict.fromkeys(each.column for each in counter.terms):
        declared = types[field]
        if field not in columns:
            yield f"{place} has no column {field}"
            continue
        type_, kind, of_postgres, generated, deterministic, recorded, actual, of_database, collation = columns[field]
        found = "enum" if kind == "e" else TYPE_NAMES.get(type_, type_) if of_postgres else type_
        if found != declared:
            yield f"{place}.{field} is {found}, and declared as {declared}"
        if not deterministic:
            yield f"the collation of {place}.{field} is nondeterministic: equal has to mean equal bytes"
        if recorded and actual and recorded != actual:
            name = "the database" if of_database else collation
            refresh = (
                "DATABASE … REFRESH COLLATION VERSION" if of_database else f"COLLATION {collation} REFRESH VERSION"
            )
            yield (
                f"the collation of {place}.{field}, that of {name}, has version {actual} on this server, and its indexes were "
                f"made with {recorded}, which sorts differently: give the replica the primary's libraries; or, if the primary "
                f"has {actual} too, REINDEX TABLE {place} there, then ALTER {refresh}"
            )
        if generated == "v":
            yield f"{place}.{field} is generated when it is read, and no index has it: make it STORED"
    if "xact" not in columns:
        yield f"{place} has no column xact: run {adopt}"
        return
    if columns["xact"][0] != "int8":
        yield f"{place}.xact is {columns['xact'][0]}, and has to be bigint: it is not Rollcall's"
    indexes = [(tuple(names), condition) for names, condition in ask(sql.INDEXES, [regclass])]
    if not any(names[:1] == ("xact",) and condition in (None, "(xact > 0)") for names, condition in indexes):
        yield f"{place} has no index on xact: run {adopt}"
    listed, wanted = ", ".join(each.name for each in counter.terms), tuple(each.indexed for each in counter.terms)
    # Postgres itself decides whether an index's own condition fits the counter's.
    are_there = all(each.column in columns for each in counter.terms)
    if are_there and not any(names[: len(wanted)] == wanted and (not cond or counter.where) for names, cond in indexes):
        yield f"no index of {place} begins with ({listed}), ascending and in the columns' collations: run {adopt}"
    enabled = [state for (state,) in ask(sql.STAMPS, [regclass])]
    if not enabled:
        yield f"{place} has no trigger that stamps updated rows: run {adopt}"
    elif not set(enabled) & {"O", "A"}:
        yield f"the trigger of {place} that stamps updated rows is disabled: run {adopt}"
