"""What is missing, as SQL: the difference between what a declared table needs and what the database has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg2.extensions import cursor as Cursor

from ingest_service.adoption import catalog, fitness
from ingest_service.adoption.catalog import Relation
from ingest_service.grants import DEPARTURE_RIGHTS, INGEST, MANAGE, OWNER
from shared_models import triggers
from shared_models.declarations import Counter, Table, Term
from shared_models.triggers import Piece, quote


@dataclass(frozen=True, slots=True)
class Plan:
    """`together`: in one transaction, which locks the table for a moment. `apart`: each by itself, and none blocks a write."""

    table: Table
    together: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    apart_first: bool = False

    def __bool__(self) -> bool:
        return bool(self.together or self.apart)


def to_adopt(cursor: Cursor, table: Table, counters: Sequence[Counter]) -> Plan:
    """What makes the table countable by these counters. Raises CannotAdopt if that is impossible."""
    relation = relation_of(cursor, table)
    watched = fitness.check(cursor, relation, table, counters)
    noting = list(missing_triggers(cursor, relation, table, counters, watched))
    if noting and "xact" in relation.columns:  # without the column nothing has been counted
        lock, note = triggers.note_all(table, counters)
        noting = [lock, *noting, note]
    together = [
        *missing_departure(cursor),
        *(() if "xact" in relation.columns else triggers.column(table)),
        *noting,
        *former_functions(cursor, relation, triggers.function_name(table)),
        *missing_statistics(cursor, relation, table, counters),
        *missing_grants(cursor, relation, table),
    ]
    return Plan(
        table,
        tuple(together),
        tuple(missing_indexes(cursor, relation, table, counters)),
        tuple(worth_knowing(cursor, relation)),
    )


def relation_of(cursor: Cursor, table: Table) -> Relation:
    """The declared table in the database."""
    oid = catalog.find(cursor, triggers.relation(table))
    if oid is None:
        cursor.execute("SELECT current_database()")
        ((database,),) = cursor.fetchall()
        raise fitness.CannotAdopt(f"there is no table {table.schema}.{table.relation} in the database {database}")
    return catalog.read_relation(cursor, oid)


def missing_departure(cursor: Cursor) -> Iterator[str]:
    """The schema and the table of the departures."""
    has_schema, departure = fitness.read_departure(cursor)
    if not has_schema:
        yield triggers.MAKE_SCHEMA
    if departure is None:
        yield from triggers.MAKE_DEPARTURE


def missing_triggers(
    cursor: Cursor,
    relation: Relation,
    table: Table,
    counters: Sequence[Counter],
    watched: dict[str, tuple[str, ...]],
) -> Iterator[str]:
    """The function and the triggers: those that are not there, were made from something else, or do not fire."""
    partitions = [(schema, name) for schema, name, _ in relation.partitions]
    cursor.execute(catalog.TRIGGERS, [triggers.PREFIX, relation.oid, relation.oid])
    marks: dict[str, str] = {}
    states: dict[str, set[str]] = {}
    for name, schema, on, comment, enabled, is_clone in cursor.fetchall():
        identity = f"{name} ON {triggers.relation(table) if is_clone else f'{quote(schema)}.{quote(on)}'}"
        # A clone is enabled by its parent's statement.
        states.setdefault(identity, set()).add(enabled)
        if not is_clone:
            marks[identity] = comment
    for piece in triggers.triggers(table, counters, watched, partitions, stamps=not table.ingest):
        if piece.kind == "FUNCTION":
            yield from missing_function(cursor, relation, table, piece)
        elif marks.get(piece.identity) != piece.mark or states[piece.identity] != {piece.enabled}:
            yield from piece.statements()


def former_functions(cursor: Cursor, relation: Relation, but: str = "") -> Iterator[str]:
    """The functions that the table's triggers have run, under a name that it had before, too."""
    cursor.execute(catalog.FUNCTIONS, [relation.oid, relation.oid, triggers.PREFIX])
    for schema, name in cursor.fetchall():
        identity = f"{quote(schema)}.{quote(name)}"
        if identity != but:
            yield f"DROP FUNCTION IF EXISTS {identity}()"


def missing_function(cursor: Cursor, relation: Relation, table: Table, piece: Piece) -> Iterator[str]:
    """The function of the triggers, which belongs to the table's owner, who may write departures."""
    cursor.execute(catalog.FUNCTION, [table.schema, piece.name])
    found = cursor.fetchall()
    cursor.execute("SELECT current_user")
    ((user,),) = cursor.fetchall()
    comment, owner = found[0] if found else ("", user)
    if comment != piece.mark:
        yield from piece.statements()
    if owner != relation.owner:
        yield f"ALTER FUNCTION {piece.identity} OWNER TO {quote(relation.owner)}"
    _, departure = fitness.read_departure(cursor)
    # Who makes the table of the departures owns it.
    may_note = user == relation.owner if departure is None else fitness.may_note(cursor, relation.owner)
    if not may_note:
        yield f"GRANT USAGE ON SCHEMA {triggers.SCHEMA} TO {quote(relation.owner)}"
        yield f"GRANT INSERT ON {triggers.DEPARTURE} TO {quote(relation.owner)}"


def missing_statistics(cursor: Cursor, relation: Relation, table: Table, counters: Sequence[Counter]) -> Iterator[str]:
    """Extended statistics for counters of several fields, unless somebody has made some of the same columns."""
    cursor.execute(catalog.STATISTICS, [relation.oid])
    there = {tuple(columns) for _, _, _, columns in cursor.fetchall()}
    counted = [each for each in counters if triggers.columns_together(each) not in there]
    for piece in triggers.statistics(table, counted):
        yield from piece.statements()


def missing_grants(cursor: Cursor, relation: Relation, table: Table) -> Iterator[str]:
    """What manage needs to read, and ingest to prune, where these roles are there."""
    cursor.execute("SELECT rolname FROM pg_roles WHERE rolname IN (%s, %s)", [MANAGE, INGEST])
    roles = {name for (name,) in cursor.fetchall()}
    _, departure = fitness.read_departure(cursor)
    schema, place = quote(table.schema), triggers.relation(table)
    asked = [
        (MANAGE, f"SCHEMA {schema}", "USAGE", "has_schema_privilege(%(role)s, %(schema)s, 'USAGE')"),
        (MANAGE, place, "SELECT", f"has_table_privilege(%(role)s, {relation.oid}, 'SELECT')"),
    ]
    # If another role owns the departures, that role has granted the rights.
    may_grant = departure is None or fitness.may_grant_on(cursor, departure)
    for role, rights in DEPARTURE_RIGHTS.items() if may_grant else ():
        has = " AND ".join(f"has_table_privilege(%(role)s, {departure}, '{right}')" for right in rights.split(", "))
        usage = f"has_schema_privilege(%(role)s, '{triggers.SCHEMA}', 'USAGE')"
        asked.append((role, f"SCHEMA {triggers.SCHEMA}", "USAGE", usage if departure else "false"))
        asked.append((role, triggers.DEPARTURE, rights, has if departure else "false"))
    for role, on, rights, has in asked:
        if role in roles:
            cursor.execute(f"SELECT {has}", {"role": role, "schema": table.schema})
            if cursor.fetchall() != [(True,)]:
                yield f"GRANT {rights} ON {on} TO {role}"


def missing_indexes(cursor: Cursor, relation: Relation, table: Table, counters: Sequence[Counter]) -> Iterator[str]:
    """The indexes, each made without blocking a write. What is left of an interrupted attempt is removed."""
    there = read_indexes(cursor, relation.oid)
    for piece, terms, is_full, what_for in wanted_indexes(table, counters):
        wanted = tuple(each.indexed for each in terms)
        if any(
            index.is_valid
            and (index.name == piece.name or (is_full and index.is_full and index.columns[: len(wanted)] == wanted))
            for index in there
        ):
            continue
        if relation.kind == "p":
            yield from partitioned_index(cursor, relation, piece, terms, what_for)
            continue
        if any(index.name == piece.name for index in there):
            yield f"DROP INDEX CONCURRENTLY IF EXISTS {piece.identity}"
        yield what_for + concurrently(piece)
        yield piece.comment()


def wanted_indexes(table: Table, counters: Sequence[Counter]) -> Iterator[tuple[Piece, tuple[Term, ...], bool, str]]:
    """Each index, its terms, whether one over all rows serves as well (not if the index has to answer a condition), and a
    comment for people: what it is for."""
    xact = (Term("xact", "bigint"),)
    yield triggers.index(table.schema, table.relation, xact, "xact > 0"), xact, True, "/* for new and changed rows */ "
    names: dict[tuple[tuple[Term, ...], str], list[str]] = {}
    for each in counters:
        names.setdefault((each.terms, each.where), []).append(" ".join(each.name.replace("*/", "* /").split()))
    for (terms, where), served in names.items():
        piece = triggers.index(table.schema, table.relation, terms, where)
        yield piece, terms, not where, f"/* for {', '.join(served)} */ "


def partitioned_index(
    cursor: Cursor, relation: Relation, piece: Piece, terms: tuple[Term, ...], what_for: str
) -> Iterator[str]:
    """An index of a partitioned table: an empty frame on each level that has partitions, then one on each leaf, attached.

    CREATE INDEX CONCURRENTLY knows no partitioned tables. The frame is valid when the last leaf is in it.
    """
    _, _, where = piece.create.partition(" WHERE ")
    frames = {(relation.schema, relation.name): relation.oid}
    cursor.execute(
        """SELECT n.nspname, c.relname, c.relkind, c.oid::int8, pn.nspname, p.relname
           FROM pg_partition_tree(%s) AS t JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
           JOIN pg_class AS p ON p.oid = t.parentrelid JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
           WHERE t.level > 0 ORDER BY t.level, 1, 2""",
        [relation.oid],
    )
    below = cursor.fetchall()
    frames |= {(schema, name): oid for schema, name, kind, oid, *_ in below if kind == "p"}
    leaves = {(schema, name): oid for schema, name, kind, oid, *_ in below if kind != "p"}
    parents = {(schema, name): (of_schema, of) for schema, name, _, _, of_schema, of in below}

    def of(place: tuple[str, str]) -> Piece:
        return triggers.index(*place, terms, where)

    attached = attached_indexes(cursor)
    for place, oid in (*frames.items(), *leaves.items()):
        made, there = of(place), {index.name: index for index in read_indexes(cursor, oid)}
        if place in frames:
            if made.name not in there:
                yield what_for + made.create.replace(f"{quote(made.name)} ON ", f"{quote(made.name)} ON ONLY ", 1)
                yield made.comment()
        elif made.name not in there or not there[made.name].is_valid:
            if made.name in there:
                yield f"DROP INDEX CONCURRENTLY IF EXISTS {made.identity}"
            yield what_for + concurrently(made)
            yield made.comment()
        if place in parents and made.identity not in attached:
            yield f"ALTER INDEX {of(parents[place]).identity} ATTACH PARTITION {made.identity}"


def attached_indexes(cursor: Cursor) -> set[str]:
    """The indexes that are part of a partitioned one, as Piece.identity has them."""
    cursor.execute(
        """SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
           WHERE c.relkind IN ('i', 'I') AND c.relispartition"""
    )
    return {f"{quote(schema)}.{quote(name)}" for schema, name in cursor.fetchall()}


def concurrently(piece: Piece) -> str:
    """The statement that makes an index while the application writes."""
    return piece.create.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1)


@dataclass(frozen=True, slots=True)
class Index:
    """A btree of a table."""

    schema: str
    name: str
    is_valid: bool
    is_full: bool
    comment: str
    columns: tuple[str | None, ...]


def read_indexes(cursor: Cursor, oid: int) -> list[Index]:
    """The btrees of a table, also those that are not complete."""
    cursor.execute(catalog.INDEXES, [oid])
    return [Index(*(*about, tuple(columns))) for *about, columns in cursor.fetchall()]


def worth_knowing(cursor: Cursor, relation: Relation) -> Iterator[str]:
    """What adopting does not change, and its user should know."""
    who = f"{relation.schema}.{relation.name}"
    if relation.has_row_security:
        yield (
            f"{who} has row security, and is counted only if that does not apply to {MANAGE}; a policy is not enough. "
            f"Have a superuser run: ALTER ROLE {MANAGE} BYPASSRLS"
        )
    cursor.execute(catalog.PUBLISHED, [relation.oid] * 3)
    published = [name for (name,) in cursor.fetchall()]
    if published and "xact" not in relation.columns:
        yield (
            f"{who} is published by {', '.join(published)}: subscribers stop if they do not have the column. First run there: "
            f"ALTER TABLE {quote(relation.schema)}.{quote(relation.name)} ADD COLUMN xact bigint NOT NULL DEFAULT 0"
        )
    if relation.kind == "p":
        yield (
            f"{who} is partitioned: run this again after it gets a partition. Until then a DELETE or TRUNCATE that names the "
            "new partition leaves the counts by the next reconcile"
        )


def to_release(cursor: Cursor, table: Table) -> Plan:
    """What removes all of it again: everything that Rollcall has made, and nothing else."""
    relation = relation_of(cursor, table)
    fitness.check_relation(cursor, relation)
    place = triggers.relation(table)
    apart = []
    attached = attached_indexes(cursor)
    for schema, name, kind in (*relation.partitions, (relation.schema, relation.name, relation.kind)):
        oid = catalog.find(cursor, f"{quote(schema)}.{quote(name)}")
        for index in read_indexes(cursor, oid) if oid else ():
            identity = f"{quote(index.schema)}.{quote(index.name)}"
            is_ours = index.comment.startswith(triggers.MARK) or (
                not index.is_valid and index.name.startswith("rollcall_")
            )
            if is_ours and identity not in attached:  # attached ones go with the index that they belong to
                how = "" if kind == "p" else "CONCURRENTLY "
                apart.append(f"DROP INDEX {how}IF EXISTS {identity}")
    cursor.execute(catalog.TRIGGERS, [triggers.PREFIX, relation.oid, relation.oid])
    together = [
        f"DROP TRIGGER IF EXISTS {name} ON {quote(schema)}.{quote(on)}"
        for name, schema, on, _, _, is_clone in cursor.fetchall()
        if not is_clone
    ]
    cursor.execute(catalog.FUNCTION, [table.schema, triggers.function_text(table)])
    functions = [f"DROP FUNCTION IF EXISTS {triggers.function_name(table)}()"] if cursor.fetchall() else []
    together += dict.fromkeys([*functions, *former_functions(cursor, relation)])
    cursor.execute(catalog.STATISTICS, [relation.oid])
    together += [
        f"DROP STATISTICS IF EXISTS {quote(schema)}.{quote(name)}"
        for schema, name, comment, _ in cursor.fetchall()
        if comment.startswith(triggers.MARK)
    ]
    if "xact" in relation.columns:
        together.append(f"ALTER TABLE {place} DROP COLUMN xact")
    together += [*revoked(cursor, relation, table), *superfluous_departure(cursor, relation)]
    return Plan(table, tuple(together), tuple(apart), apart_first=True)


def revoked(cursor: Cursor, relation: Relation, table: Table) -> Iterator[str]:
    """The right to read the table, and to use its schema where manage reads nothing else in it."""
    cursor.execute(
        """SELECT EXISTS (SELECT FROM pg_class AS c, aclexplode(c.relacl) AS a, pg_roles AS r
                          WHERE c.oid = %s AND r.oid = a.grantee AND r.rolname = %s),
                  EXISTS (SELECT FROM pg_namespace AS n, aclexplode(n.nspacl) AS a, pg_roles AS r
                          WHERE n.nspname = %s AND r.oid = a.grantee AND r.rolname = %s)
                  AND NOT EXISTS (SELECT FROM pg_class AS c, aclexplode(c.relacl) AS a, pg_roles AS r, pg_namespace AS n
                                  WHERE c.oid <> %s AND n.oid = c.relnamespace AND n.nspname = %s
                                    AND r.oid = a.grantee AND r.rolname = %s)""",
        [relation.oid, MANAGE, table.schema, MANAGE, relation.oid, table.schema, MANAGE],
    )
    ((reads, uses),) = cursor.fetchall()
    if reads:
        yield f"REVOKE SELECT ON {triggers.relation(table)} FROM {MANAGE}"
    if uses and table.schema != "public":
        yield f"REVOKE USAGE ON SCHEMA {quote(table.schema)} FROM {MANAGE}"


def superfluous_departure(cursor: Cursor, relation: Relation) -> Iterator[str]:
    """The departures go with the last table that makes them, if this role may drop them."""
    _, departure = fitness.read_departure(cursor)
    if departure is None or not fitness.may_grant_on(cursor, departure):
        return
    cursor.execute(
        """SELECT EXISTS (SELECT FROM pg_trigger WHERE starts_with(tgname, %s) AND tgrelid NOT IN
                          (SELECT relid FROM pg_partition_tree(%s) UNION SELECT %s::oid)),
                  -- The one of rollcall_owner was made by roles.sql, and is there for the next one.
                  (SELECT pg_has_role(nspowner, 'USAGE') AND pg_get_userbyid(nspowner) <> %s FROM pg_namespace
                   WHERE nspname = %s)""",
        [triggers.PREFIX, relation.oid, relation.oid, OWNER, triggers.SCHEMA],
    )
    ((are_used, is_our_schema),) = cursor.fetchall()
    if not are_used:
        yield f"DROP TABLE {triggers.DEPARTURE}"
        if is_our_schema:
            yield f"DROP SCHEMA {triggers.SCHEMA}"
