"""The effect of each kind of statement on `departure` and on the column xact, through the triggers on a table."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from compose.local.servers import Primary
from shared_models import triggers
from shared_models.declarations import Counter, Field, Table, Term
from tests.adopt.shop import (
    COUNTERS,
    CUSTOMERS,
    PARTITIONED,
    PLACES,
    TABLE,
    WATCHED,
    departed,
    indexes,
    make_countable,
    make_shop,
    run,
)
from tests.servers import FAST, free_port, servers_folder, sql, wait_for


@pytest.fixture
def shop() -> Iterator[psycopg2.extensions.cursor]:
    """Five old orders of ann, bob and nobody, then made countable; a session of the application."""
    make_shop()
    run(
        """INSERT INTO shop.orders (email, country, sku) VALUES
           ('ann', 'NL', 'a'), ('ann', 'NL', 'b'), ('bob', 'NL', 'a'), (NULL, 'BE', 'a'), ('eve', NULL, 'c')"""
    )
    make_countable()
    with closing(psycopg2.connect(run_url())) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        yield cursor


def run_url() -> str:
    from tests.servers import started_primary

    return started_primary().url


def xacts(where: str = "true") -> set[int]:
    return {xact for (xact,) in run(f"SELECT xact FROM shop.orders WHERE {where}")}


def noted_at(members: set[str]) -> list[int]:
    """The xact of each departure of a customer; these have one."""
    noted = run(f"SELECT unnest(element), xact FROM {triggers.DEPARTURE} WHERE counter = %s", triggers.key(CUSTOMERS))
    assert {member for member, _ in noted} == members
    return [xact for _, xact in noted]


def now() -> int:
    """The xact of the next transaction is above this one."""
    return run("SELECT pg_current_xact_id()::text::bigint")[0][0]


def test_the_column_comes_without_a_rewrite_and_old_rows_have_0(shop) -> None:
    assert xacts() == {0}
    shop.execute("INSERT INTO shop.orders (email) VALUES ('new') RETURNING xact = pg_current_xact_id()::text::bigint")
    assert shop.fetchall() == [(True,)]
    make_shop()
    run("INSERT INTO shop.orders (email) SELECT 'u' || n FROM generate_series(1, 1000) AS n")
    before = run("SELECT relfilenode FROM pg_class WHERE oid = 'shop.orders'::regclass")
    make_countable()
    assert run("SELECT relfilenode FROM pg_class WHERE oid = 'shop.orders'::regclass") == before


def test_an_update_of_what_is_not_counted_leaves_nothing(shop) -> None:
    shop.execute("UPDATE shop.orders SET note = 'x', email = email")
    assert (xacts(), departed(), departed(PLACES)) == ({0}, [], [])


def test_an_update_of_a_counted_field_notes_who_was_there_and_stamps(shop) -> None:
    before = now()
    shop.execute("UPDATE shop.orders SET email = 'cat' WHERE email = 'ann'")
    assert departed() == ["ann", "ann"] and departed(PLACES) == []
    assert all(xact > before for xact in xacts("email = 'cat'")) and xacts("email <> 'cat'") == {0}


def test_an_update_of_what_is_filtered_by_notes_a_row_that_counted(shop) -> None:
    shop.execute("UPDATE shop.orders SET deleted_at = now() WHERE email = 'bob'")
    assert departed() == ["bob"] and 0 not in xacts("email = 'bob'")
    shop.execute("UPDATE shop.orders SET deleted_at = NULL, email = 'bill' WHERE email = 'bob'")
    assert departed() == [], "a row that did not count left nothing"
    assert 0 not in xacts("email = 'bill'"), "and catch-up finds it"


def test_null_in_any_field_is_no_member(shop) -> None:
    shop.execute("DELETE FROM shop.orders WHERE email IS NULL OR country IS NULL")
    assert departed() == ["eve"] and departed(PLACES) == [("BE", "a")]
    shop.execute("UPDATE shop.orders SET country = NULL WHERE email = 'bob'")
    shop.execute("UPDATE shop.orders SET country = 'FR' WHERE email = 'bob'")
    assert departed(PLACES) == [("NL", "a")]


def test_a_delete_notes_all_of_its_members_at_once(shop) -> None:
    shop.execute("DELETE FROM shop.orders WHERE country = 'NL'")
    assert run(f"SELECT counter, count(*) FROM {triggers.DEPARTURE} GROUP BY 1 ORDER BY 1") == [
        (triggers.key(CUSTOMERS), 1),
        (triggers.key(PLACES), 1),
    ]
    assert departed() == ["ann", "ann", "bob"] and departed(PLACES) == [("NL", "a"), ("NL", "a"), ("NL", "b")]
    shop.execute("DELETE FROM shop.orders WHERE false")
    assert departed() == []


def test_truncate_notes_all(shop) -> None:
    shop.execute("TRUNCATE shop.orders")
    assert departed() == ["all"] and departed(PLACES) == ["all"]


def test_more_members_than_are_noted_one_by_one_are_all(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MAX_MEMBERS", 3)
    run(triggers.function(TABLE, COUNTERS, WATCHED).create)
    run("INSERT INTO shop.orders (email, country, sku) SELECT 'u' || n % 4, 'x', 'y' FROM generate_series(1, 8) AS n")
    shop.execute("DELETE FROM shop.orders WHERE sku = 'y'")
    assert departed() == ["all"] and departed(PLACES) == [("x", "y")]
    shop.execute("DELETE FROM shop.orders")
    assert departed() == ["ann", "bob", "eve"], "3 members of 5 rows"


def test_a_departure_is_never_below_the_row_that_it_took(shop) -> None:
    """A statement that began before may take a row that was committed since."""
    shop.connection.autocommit = False
    shop.execute("SELECT pg_current_xact_id()::text::bigint")
    ((own,),) = shop.fetchall()
    run("INSERT INTO shop.orders (email, country, sku) VALUES ('late', 'l', 'l'), ('later', 'l', 'm')")
    ((row,),) = run("SELECT DISTINCT xact FROM shop.orders WHERE country = 'l'")
    shop.execute("DELETE FROM shop.orders WHERE email IN ('late', 'ann')")
    shop.execute("UPDATE shop.orders SET email = 'x' WHERE email = 'later'")
    shop.connection.commit()
    assert own < row <= min(noted_at({"ann", "late", "later"}))


def test_an_xact_of_another_history_says_nothing(shop) -> None:
    """As after a dump: rows are restored before the triggers. A departure above every horizon would never be read."""
    run("ALTER TABLE shop.orders DISABLE TRIGGER USER; UPDATE shop.orders SET xact = 1000000000000")
    for name, when in (("insert", "ALWAYS"), ("update", "ALWAYS"), ("truncate", "ALWAYS"), ("delete", "")):
        run(f"ALTER TABLE shop.orders ENABLE {when} TRIGGER zzz_rollcall_{name}")
    before = now()
    shop.execute("DELETE FROM shop.orders WHERE email = 'ann'")
    shop.execute("UPDATE shop.orders SET email = 'bill' WHERE email = 'bob'")
    assert all(before < xact < before + 1000 for xact in noted_at({"ann", "bob"}))


def test_copy_with_xacts_of_elsewhere_is_stamped_anew(shop) -> None:
    before = now()
    shop.copy_expert("COPY shop.orders (email, xact) FROM STDIN", io.StringIO("cat\t7\ndan\t9999999999\neve\t0\n"))
    assert all(before < xact < 9_999_999_999 for xact in xacts("email IN ('cat', 'dan')"))
    assert departed() == []


def test_insert_on_conflict_do_update(shop) -> None:
    shop.execute(
        """INSERT INTO shop.orders (id, email) VALUES (1, 'zoe'), (99, 'new')
           ON CONFLICT (id) DO UPDATE SET email = excluded.email"""
    )
    assert departed() == ["ann"] and 0 not in xacts("email IN ('zoe', 'new')")


def test_merge(shop) -> None:
    shop.execute(
        """MERGE INTO shop.orders AS o USING (VALUES (1, 'd'), (3, 'u'), (77, 'i')) AS v (id, does) ON o.id = v.id
           WHEN MATCHED AND does = 'd' THEN DELETE WHEN MATCHED THEN UPDATE SET email = 'bo'
           WHEN NOT MATCHED THEN INSERT (id, email) VALUES (v.id, 'ida')"""
    )
    assert departed() == ["ann", "bob"] and 0 not in xacts("email IN ('bo', 'ida')")


def test_a_delete_in_a_common_table_expression_and_returning(shop) -> None:
    shop.execute("WITH gone AS (DELETE FROM shop.orders WHERE email = 'bob' RETURNING *) SELECT count(*) FROM gone")
    assert departed() == ["bob"]


def test_cascades(shop) -> None:
    run("CREATE TABLE shop.people (email text PRIMARY KEY, kind int)")
    run("INSERT INTO shop.people VALUES ('ann', 1), ('bob', 1), ('eve', 2)")
    run("ALTER TABLE shop.orders ADD FOREIGN KEY (email) REFERENCES shop.people ON DELETE CASCADE ON UPDATE CASCADE")
    shop.execute("UPDATE shop.people SET email = 'anne' WHERE email = 'ann'")
    assert departed() == ["ann", "ann"] and 0 not in xacts("email = 'anne'")
    shop.execute("DELETE FROM shop.people WHERE kind = 1")
    assert set(departed()) == {"anne", "bob"}
    run("ALTER TABLE shop.orders DROP CONSTRAINT orders_email_fkey")
    run("ALTER TABLE shop.orders ADD FOREIGN KEY (email) REFERENCES shop.people ON DELETE SET NULL")
    shop.execute("DELETE FROM shop.people")
    assert departed() == ["eve"]


def test_truncate_cascade(shop) -> None:
    run("CREATE TABLE shop.people (email text PRIMARY KEY)")
    run("INSERT INTO shop.people VALUES ('ann'), ('bob'), ('eve')")
    run("ALTER TABLE shop.orders ADD FOREIGN KEY (email) REFERENCES shop.people")
    shop.execute("TRUNCATE shop.people CASCADE")
    assert departed() == ["all"]


def test_what_is_rolled_back_leaves_nothing(shop) -> None:
    shop.execute("BEGIN")
    shop.execute("DELETE FROM shop.orders WHERE email = 'ann'")
    shop.execute("SAVEPOINT s")
    shop.execute("DELETE FROM shop.orders WHERE email = 'bob'")
    shop.execute("ROLLBACK TO s")
    shop.execute("UPDATE shop.orders SET email = 'eva' WHERE email = 'eve' RETURNING xact")
    ((stamped,),) = shop.fetchall()
    shop.execute("SELECT pg_current_xact_id()::text::bigint")
    assert shop.fetchall() == [(stamped,)], "the transaction's own, also below a savepoint"
    shop.execute("COMMIT")
    assert departed() == ["ann", "ann", "eve"]
    shop.execute("BEGIN; DELETE FROM shop.orders; ROLLBACK")
    assert departed() == []


def test_session_replication_role_replica(shop) -> None:
    """None of Rollcall's statement triggers fires there: the row trigger takes its place."""
    before = now()
    shop.execute("SET session_replication_role = replica")
    shop.execute("DELETE FROM shop.orders WHERE email = 'ann'")
    assert departed() == ["ann", "ann"] and departed(PLACES) == [("NL", "a"), ("NL", "b")]
    shop.execute("UPDATE shop.orders SET email = 'bill' WHERE email = 'bob'")
    shop.execute("INSERT INTO shop.orders (email, xact) VALUES ('ida', 5)")
    assert departed() == ["bob"] and all(xact > before for xact in xacts("email IN ('bill', 'ida')"))
    shop.execute("TRUNCATE shop.orders")
    assert departed() == ["all"]


def test_an_application_that_writes_xact_itself_is_overruled(shop) -> None:
    shop.execute(
        "UPDATE shop.orders SET xact = 3 WHERE email = 'bob' RETURNING xact = pg_current_xact_id()::text::bigint"
    )
    assert shop.fetchall() == [(True,)] and departed() == []


def test_what_another_trigger_makes_of_a_row_counts(shop) -> None:
    run(
        """CREATE FUNCTION shop.lower() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN NEW.email := lower(NEW.note); RETURN NEW; END $$"""
    )
    run("CREATE TRIGGER zz_last BEFORE UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.lower()")
    shop.execute("UPDATE shop.orders SET note = 'BILL' WHERE email = 'bob'")
    assert departed() == ["bob"] and 0 not in xacts("email = 'bill'")


def test_an_application_without_rights_in_the_schema_and_a_search_path_of_its_own(shop) -> None:
    run("DROP ROLE IF EXISTS app")
    run("CREATE ROLE app; GRANT USAGE, CREATE ON SCHEMA shop TO app; GRANT ALL ON ALL TABLES IN SCHEMA shop TO app")
    run("GRANT USAGE ON SEQUENCE shop.orders_id_seq TO app; GRANT TEMP ON DATABASE rollcall TO app")
    run("CREATE TABLE shop.departure (counter text, element text[], xact bigint)")
    shop.execute("SET ROLE app; SET search_path = shop")
    shop.execute("CREATE FUNCTION shop.greatest(bigint, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1/0::bigint'")
    shop.execute("CREATE FUNCTION pg_temp.pg_current_xact_id() RETURNS xid8 LANGUAGE sql AS $$SELECT '1'::xid8$$")
    shop.execute("INSERT INTO orders (email, xact) VALUES ('ida', 4)")
    shop.execute("UPDATE orders SET email = 'bill' WHERE email = 'bob'; DELETE FROM orders WHERE email = 'ann'")
    assert departed() == ["ann", "ann", "bob"] and xacts("email = 'ida'") != {4}
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        shop.execute(f"SELECT FROM {triggers.DEPARTURE}")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        shop.execute(f"CREATE TRIGGER x AFTER DELETE ON orders EXECUTE FUNCTION {triggers.function_name(TABLE)}()")
    shop.execute("RESET ROLE; DROP OWNED BY app; DROP ROLE app")


def test_columns_named_like_anything(shop) -> None:
    """Names that PL/pgSQL or the statements use themselves, quotes, capitals; and more than Postgres has statistics of."""
    names = ["found", "gone", "OLD", 'a"b', "$rollcall$", "latest", "counter", "element", "{brace}", "{}", "100%s"]
    columns = ", ".join(f"{triggers.quote(name)} text" for name in names)
    make_shop(f'CREATE TABLE shop."Odd ""names""" ({columns})')
    table = Table("odd", "shop", 'Odd "names"', tuple(Field(name, "text") for name in names))
    counter = Counter("odd", table, tuple(names), where="found <> 'it''s $rollcall$ \\'")
    make_countable(table, (counter,), {"odd": tuple(names)})
    for piece in (*indexes(table, counter), *triggers.statistics(table, (counter,))):
        for statement in piece.statements():
            run(statement)
    values = tuple(f"v{number}" for number in range(len(names)))
    run(f'INSERT INTO shop."Odd ""names""" VALUES ({", ".join(["%s"] * len(names))})', *values)
    run('UPDATE shop."Odd ""names""" SET gone = gone || %s', "x")
    assert departed(counter) == [values]
    run('DELETE FROM shop."Odd ""names"""')
    assert departed(counter) == [(values[0], "v1x", *values[2:])]


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        ("varchar(9)", "'a '", "a "),
        ("smallint", "-7", "-7"),
        ("integer", "007", "7"),
        ("bigint", "9223372036854775807", "9223372036854775807"),
        ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("boolean", "'yes'", "true"),
        ("date", "'2026-03-04'", "2026-03-04"),
        ("timestamptz", "'2026-03-04 05:06:07+02'", "2026-03-04 03:06:07+00"),
    ],
)
def test_elements_are_canonical_texts_however_the_session_writes_them(type_: str, value: str, text: str) -> None:
    make_shop(f"CREATE TABLE shop.orders (value {type_})")
    table = Table("orders", "shop", "orders", (Field("value", type_.partition("(")[0]),))
    counter = Counter("values", table, ("value",))
    make_countable(table, (counter,), {"values": ("value",)})
    with closing(psycopg2.connect(run_url())) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SET datestyle = 'German, DMY'; SET timezone = 'Asia/Tokyo'")
        cursor.execute(f"INSERT INTO shop.orders VALUES ({value})")
        cursor.execute("UPDATE shop.orders SET value = NULL")
        cursor.execute(f"INSERT INTO shop.orders VALUES ({value}); DELETE FROM shop.orders")
    assert departed(counter) == [text, text]


def test_a_condition_means_the_same_in_every_session(shop) -> None:
    """A moment without a zone is one in UTC, as for the keeper and for the index."""
    counter = replace(CUSTOMERS, where="deleted_at >= '2026-03-04'")
    make_shop()
    make_countable(TABLE, (counter,), {"customers": ("email", "deleted_at")})
    with closing(psycopg2.connect(run_url())) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SET datestyle = 'SQL, DMY'; SET timezone = 'America/New_York'")
        cursor.execute("INSERT INTO shop.orders (email, deleted_at) VALUES ('ann', '2026-03-04 02:00:00+00')")
        cursor.execute("DELETE FROM shop.orders WHERE email = 'ann'")
    assert departed(counter) == ["ann"]


def test_a_change_that_equality_does_not_see_is_one(shop) -> None:
    """-0 and 0, or json, which has no equality at all."""
    make_shop("CREATE TABLE shop.orders (email text, paid float8, data json)")
    counter = replace(CUSTOMERS, where="paid::text = '0' AND data->>'x' IS NULL")
    make_countable(TABLE, (counter,), {"customers": ("email", "paid", "data")})
    run("INSERT INTO shop.orders VALUES ('ann', 0, '{}'), ('bob', 0, '{}'), ('cat', 0, '{}')")
    run("UPDATE shop.orders SET paid = '-0' WHERE email = 'ann'")
    run("""UPDATE shop.orders SET data = '{"x": 1}' WHERE email = 'bob'""")
    assert departed(counter) == ["ann", "bob"]


PARTITIONS = (("shop", "nl"), ("shop", "rest"), ("shop", "rest_a"), ("shop", "rest_b"))


@pytest.fixture
def partitioned() -> None:
    make_shop(PARTITIONED)
    make_countable(partitions=PARTITIONS)


@pytest.mark.usefixtures("partitioned")
def test_partitioned_and_the_parent_is_named() -> None:
    assert xacts() == {0}
    run("DELETE FROM shop.orders")
    assert departed() == ["ann", "bob", "cat"]
    run("INSERT INTO shop.orders (email, country, sku) VALUES ('dan', 'BE', 'a')")
    run("UPDATE shop.orders SET email = 'eve'")
    assert (departed() == ["dan"] and xacts() > {0}) or 0 not in xacts()
    run("TRUNCATE shop.orders")
    assert set(departed()) == {"all"}


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize(("partition", "who"), [("nl", ["ann"]), ("rest", ["bob", "cat"]), ("rest_a", ["bob"])])
def test_partitioned_and_a_partition_is_named(partition: str, who: list[str]) -> None:
    before = now()
    run(f"UPDATE shop.{partition} SET email = email || 'x'")
    assert departed() == who and all(xact > before for xact in xacts(f"email LIKE '%x' OR email IN {(*who, '')}"))
    run(f"DELETE FROM shop.{partition}")
    assert departed() == [f"{each}x" for each in who]
    run(
        f"INSERT INTO shop.{partition} (email, country, sku, xact) VALUES ('eve', %s, 'a', 5)",
        "NL" if partition == "nl" else "BE",
    )
    assert 5 not in xacts()
    run(f"TRUNCATE shop.{partition}")
    assert set(departed()) == {"all"}


@pytest.mark.usefixtures("partitioned")
def test_an_update_that_moves_a_row_to_another_partition() -> None:
    before = now()
    run("UPDATE shop.orders SET country = 'BE' WHERE email = 'ann'")
    assert departed(PLACES) == [("NL", "a")] and departed() == []
    assert all(xact > before for xact in xacts("email = 'ann'"))
    run("UPDATE shop.orders SET country = 'NL', email = 'bill' WHERE email = 'bob'")
    assert departed(PLACES) == [("BE", "a")] and departed() == ["bob"]


@pytest.mark.usefixtures("partitioned")
def test_partitions_in_a_replicas_session() -> None:
    with closing(psycopg2.connect(run_url())) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute("UPDATE shop.orders SET email = 'anne' WHERE email = 'ann'")
        cursor.execute("DELETE FROM shop.rest")
    assert departed() == ["ann", "bob", "cat"] and 0 not in xacts()


@pytest.mark.usefixtures("partitioned")
def test_a_partition_that_comes_later_has_the_triggers_of_rows() -> None:
    """Its own TRUNCATE, and a DELETE that names it, are noted when `adopt` has run again."""
    run("CREATE TABLE shop.later (LIKE shop.orders INCLUDING ALL)")
    run("INSERT INTO shop.later (email, country, sku) VALUES ('old', 'IT', 'a')")
    run("ALTER TABLE shop.orders DETACH PARTITION shop.rest")
    departed()
    run("ALTER TABLE shop.orders ATTACH PARTITION shop.later FOR VALUES IN ('IT')")
    run("UPDATE shop.later SET email = 'older'; DELETE FROM shop.orders WHERE email = 'older'")
    assert departed() == ["old", "older"]


def test_a_prepared_transaction() -> None:
    server = Primary(
        servers_folder() / f"prepared-{time.monotonic_ns()}",
        free_port(),
        settings=FAST,
        dies_with_parent=True,
    )
    server.start()
    try:
        sql(server, f"CREATE SCHEMA shop; DROP SCHEMA {triggers.SCHEMA}")
        sql(server, "CREATE TABLE shop.orders (email text, country text, sku text, deleted_at timestamptz)")
        sql(server, "INSERT INTO shop.orders VALUES ('ann')")
        for statement in (triggers.MAKE_SCHEMA, *triggers.MAKE_DEPARTURE, *triggers.column(TABLE)):
            sql(server, statement)
        for piece in triggers.triggers(TABLE, COUNTERS, WATCHED):
            for statement in piece.statements():
                sql(server, statement)
        prepared = "BEGIN; DELETE FROM shop.orders; INSERT INTO shop.orders VALUES ('bob'); PREPARE TRANSACTION 'p'"
        sql(server, prepared)
        noted = f"SELECT unnest(element) FROM {triggers.DEPARTURE}"
        assert sql(server, noted) == []
        server.stop()
        server.start()
        sql(server, "COMMIT PREPARED 'p'")
        assert sql(server, noted) == [("ann",)]
        assert sql(server, f"SELECT o.xact = d.xact FROM shop.orders AS o, {triggers.DEPARTURE} AS d") == [(True,)]
    finally:
        server.stop()


def test_what_logical_replication_applies() -> None:
    """From a publisher that is adopted itself, so that its xacts come along, which mean nothing here."""
    server = Primary(
        servers_folder() / f"publisher-{time.monotonic_ns()}",
        free_port(),
        settings=FAST,
        dies_with_parent=True,
    )
    server.start()
    make_shop()
    make_countable()
    try:
        table = "CREATE TABLE shop.orders (id int PRIMARY KEY, email text, xact bigint NOT NULL DEFAULT 5)"
        for statement in ("CREATE SCHEMA shop", table, "CREATE PUBLICATION changes FOR TABLE shop.orders"):
            sql(server, statement)
        sql(server, "INSERT INTO shop.orders VALUES (1, 'ann'), (2, 'bob'), (3, 'cat')")
        run(f"CREATE SUBSCRIPTION changes CONNECTION '{server.url}' PUBLICATION changes")
        wait_for(lambda: run("SELECT count(*) FROM shop.orders") == [(3,)], "the first copy")
        wait_for(lambda: run("SELECT srsubstate FROM pg_subscription_rel") == [("r",)], "the subscription")
        assert xacts().isdisjoint({0, 5})
        sql(server, "UPDATE shop.orders SET email = 'anne' WHERE id = 1")
        sql(server, "DELETE FROM shop.orders WHERE id > 1")
        wait_for(lambda: run("SELECT email FROM shop.orders") == [("anne",)], "the changes")
        assert departed() == ["ann", "bob", "cat"] and xacts().isdisjoint({0, 5})
        sql(server, "TRUNCATE shop.orders")
        wait_for(lambda: run("SELECT count(*) FROM shop.orders") == [(0,)], "the end of all rows")
        assert departed() == ["all"]
    finally:
        run("DROP SUBSCRIPTION IF EXISTS changes")
        server.stop()


def test_every_row_that_counts_is_in_the_indexes(shop) -> None:
    for piece in (*indexes(TABLE, *COUNTERS), *triggers.statistics(TABLE, COUNTERS)):
        for statement in piece.statements():
            run(statement)
    run("ANALYZE shop.orders")
    shop.execute("SET enable_seqscan = off")
    for query in (
        "SELECT email FROM shop.orders WHERE deleted_at IS NULL AND email IS NOT NULL AND email > 'a' ORDER BY email",
        "SELECT country, sku FROM shop.orders WHERE (country, sku) > ('a', 'b') ORDER BY country, sku",
        "SELECT email FROM shop.orders WHERE xact > 0 AND xact >= 1000 ORDER BY xact",
    ):
        shop.execute("EXPLAIN " + query)
        plan = "\n".join(line for (line,) in shop.fetchall())
        assert "using rollcall_orders_" in plan and "Sort" not in plan, plan


def test_names_are_not_cut_and_differ() -> None:
    long = Table("long", "s" * 60, "é" * 31, (Field("f", "text"),))
    longer = replace(long, relation="é" * 30 + "x")
    names = {triggers.function_text(table) for table in (long, longer)}
    names |= {
        triggers.index(table.schema, table.relation, (Term("f", "text"),), where).name
        for table in (long, longer)
        for where in ("", "f = 'x'")
    }
    assert len(names) == 6 and all(len(name.encode()) <= 63 for name in names)
