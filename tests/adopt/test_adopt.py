"""`adopt`: its effect on a table, its refusals, and that it can be repeated, interrupted and undone while others write."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from psycopg2.extensions import TRANSACTION_STATUS_INTRANS

from compose.local.servers import postgres_program
from ingest_service.adoption import applying
from ingest_service.management.commands import adopt
from shared_models import declarations, triggers
from shared_models.declarations import Counter, Field, Table, Term
from tests.adopt.shop import CUSTOMERS, ORDERS, PARTITIONED, PLACES, TABLE, departed, make_shop, run
from tests.servers import started_primary, wait_for

# Columns that are generated when they are read came with Postgres 18.
HAS_VIRTUAL = run("SELECT current_setting('server_version_num')::int >= 180000") == [(True,)]
VIRTUAL = "GENERATED ALWAYS AS (lower(m)) VIRTUAL"
ASKED = ("shop.orders", "--counter", "customers=email", "--counter", "places=country,sku")

# All that is in the database, apart from rows and from what only counts up.
EVERYTHING = """
    WITH things (what, acl) AS (
        SELECT format('table %s %s of %s', oid::regclass, relkind, relowner::regrole),
               coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
        FROM pg_class WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)
        UNION ALL SELECT 'schema ' || nspname, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
        UNION ALL SELECT 'function ' || oid::regprocedure, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
            WHERE oid >= 16384
        UNION ALL SELECT format('column %s.%s %s %s', attrelid::regclass, attname, atttypid::regtype, attnotnull), attacl
            FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0 AND NOT attisdropped
            AND attrelid::regclass::text !~ 'pg_toast'
        UNION ALL SELECT format('trigger %s %s %s', tgname, tgrelid::regclass, tgenabled), NULL FROM pg_trigger
        UNION ALL SELECT 'statistics ' || stxname, NULL FROM pg_statistic_ext
    )
    SELECT what, ARRAY(SELECT unnest(acl)::text ORDER BY 1) FROM things ORDER BY 1
"""


class Shop:
    """Somebody who adopts tables."""

    def __init__(self) -> None:
        self.said = self.sql = ""

    def adopt(self, *arguments: str) -> str:
        """What it prints for psql, or says while it works; what else it says is in `said`."""
        out, error = io.StringIO(), io.StringIO()
        try:
            call_command("adopt", *arguments, stdout=out, stderr=error)
        finally:
            self.said = error.getvalue()
        return out.getvalue()

    def refusal(self, *arguments: str) -> str:
        with pytest.raises(CommandError) as caught:
            self.adopt(*arguments)
        return str(caught.value)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The table of orders, declared nowhere, with a few rows; nothing else is declared."""
    make_shop()
    run("INSERT INTO shop.orders (email, country, sku) SELECT 'u' || n % 9, 'c', 's' FROM generate_series(1, 99) AS n")
    declare(monkeypatch)
    yield Shop()


def declare(monkeypatch: pytest.MonkeyPatch, *counters: Counter) -> None:
    monkeypatch.setattr(declarations, "COUNTERS", counters)
    monkeypatch.setattr(declarations, "TABLES", tuple(dict.fromkeys(counter.table for counter in counters)))


def indexes(where: str = "true") -> list[str]:
    found = run(
        f"""SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
            WHERE i.indrelid = 'shop.orders'::regclass AND {where} ORDER BY 1"""
    )
    return [name for (name,) in found]


def use(monkeypatch: pytest.MonkeyPatch, role: str, password: str) -> None:
    """Adopt as this role from here on."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "USER", role)
    monkeypatch.setitem(connection.settings_dict, "PASSWORD", password)


@pytest.fixture
def seller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """An ordinary role that owns the schema and its table; called, it is the one who adopts."""
    run("DROP ROLE IF EXISTS seller")
    run("CREATE ROLE seller LOGIN PASSWORD 'seller'")

    def become() -> None:
        run("GRANT CONNECT ON DATABASE rollcall TO seller")
        run("ALTER SCHEMA shop OWNER TO seller; ALTER TABLE shop.orders OWNER TO seller")
        use(monkeypatch, "seller", "seller")

    yield become
    connection.close()
    run("DROP SCHEMA shop CASCADE")
    run(f"DROP SCHEMA IF EXISTS {triggers.SCHEMA} CASCADE")
    run("DROP OWNED BY seller CASCADE; DROP ROLE seller")


def test_it_prints_sql_that_psql_runs_and_the_lines_of_the_file(shop: Shop) -> None:
    before = run(EVERYTHING)
    printed = shop.adopt(*ASKED)
    assert run(EVERYTHING) == before
    assert "this is what --apply would run" in shop.said
    _, _, toml = shop.said.partition("For rollcall.toml:\n")
    assert toml.strip().splitlines() == [
        "[tables.orders]",
        'name = "shop.orders"',
        'fields = {email = "text", country = "text", sku = "text"}',
        "",
        "[counters.customers]",
        'table = "orders"',
        'member = ["email"]',
        "",
        "[counters.places]",
        'table = "orders"',
        'member = ["country", "sku"]',
    ]
    with closing(psycopg2.connect(started_primary().url)) as psql, psql.cursor() as cursor:
        psql.autocommit = True
        *rest, last = printed.partition("COMMIT;\n")
        cursor.execute("".join(rest))
        for statement in last.strip().splitlines():
            cursor.execute(statement)
    assert shop.adopt(*ASKED) == "" and "all is there already" in shop.said


def test_applied_undone_and_each_of_them_twice(shop: Shop) -> None:
    before = run(EVERYTHING)
    rows = run("SELECT * FROM shop.orders ORDER BY id")
    assert "shop.orders can be counted." in shop.adopt(*ASKED, "--apply")
    assert run("SELECT DISTINCT xact FROM shop.orders") == [(0,)]
    assert len(indexes("starts_with(c.relname, 'rollcall_') AND indisvalid")) == 3
    made = run(EVERYTHING)
    assert shop.adopt(*ASKED, "--apply") == "" and "all is there already" in shop.said
    assert run(EVERYTHING) == made
    assert "is as it was" in shop.adopt("shop.orders", "--undo", "--apply")
    assert run(EVERYTHING) == before and run("SELECT * FROM shop.orders ORDER BY id") == rows
    assert shop.adopt("shop.orders", "--undo", "--apply") == "" and "nothing of Rollcall is there" in shop.said
    assert "shop.orders can be counted." in shop.adopt(*ASKED, "--apply")


def test_a_declared_table_and_a_changed_declaration(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, PLACES)
    shop.adopt("orders", "--apply")
    assert "For rollcall.toml" not in shop.said
    run("DELETE FROM shop.orders WHERE email = 'u1'")
    assert set(departed(PLACES)) == {("c", "s")} and departed(CUSTOMERS) == []
    declare(monkeypatch, PLACES, CUSTOMERS)
    printed = shop.adopt()  # all that is declared
    assert "ADD COLUMN" not in printed and "zzz_rollcall_delete" not in printed, "only what has changed"
    shop.adopt("shop.orders", "--apply")
    run("UPDATE shop.orders SET deleted_at = now() WHERE email = 'u2'")
    assert set(departed(CUSTOMERS)) == {"u2", "all"}, "nobody noted who left before"
    assert departed(PLACES)[-1] == "all", "its triggers may have been damaged"
    assert shop.adopt("--apply") == "" and "all is there already" in shop.said
    shop.adopt("orders", "--counter", "skus=sku")
    assert '[counters.skus]\ntable = "orders"\nmember = ["sku"]' in shop.said and "[tables." not in shop.said
    shop.adopt("orders", "--counter", "notes=note")
    assert 'sku = "text", note = "text"}' in shop.said, "the table has one field more"
    assert "declared already, and differently" in shop.refusal("orders", "--counter", "places=sku")


def test_an_index_of_the_application_serves(shop: Shop) -> None:
    run(
        "CREATE INDEX theirs ON shop.orders (email, id); CREATE INDEX partly ON shop.orders (country, sku) WHERE id > 5"
    )
    run(
        "CREATE INDEX downwards ON shop.orders (country DESC, sku); CREATE INDEX hashed ON shop.orders USING hash (sku)"
    )
    shop.adopt(*ASKED, "--apply")
    (places, xact) = indexes("starts_with(c.relname, 'rollcall_')")
    assert "country_sku" in places and "xact" in xact


def test_a_condition_has_an_index_of_its_own(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, CUSTOMERS)
    run("CREATE INDEX theirs ON shop.orders (email)")
    shop.adopt("orders", "--apply")
    ((defined,),) = run("SELECT indexdef FROM pg_indexes WHERE indexname ~ '^rollcall_orders_email'")
    assert defined.endswith("(email) WHERE (deleted_at IS NULL)")


def test_what_is_interrupted_is_made_anew(shop: Shop) -> None:
    """An index that was being built when the machine went is there, and not valid."""
    run("INSERT INTO shop.orders (email) SELECT 'same' FROM generate_series(1, 2)")
    name = triggers.index("shop", "orders", (Term("email", "text"),)).name
    with pytest.raises(psycopg2.errors.UniqueViolation):
        run(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON shop.orders (email)")
    assert indexes("NOT indisvalid") == [name]
    assert f'DROP INDEX CONCURRENTLY IF EXISTS "shop"."{name}"' in shop.adopt(*ASKED)
    shop.adopt(*ASKED, "--apply")
    assert indexes("NOT indisvalid") == [] and name in indexes("NOT indisunique")


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE shop.orders DISABLE TRIGGER zzz_rollcall_update",
        "ALTER TABLE shop.orders ENABLE TRIGGER zzz_rollcall_truncate",
        "DROP TRIGGER zzz_rollcall_delete ON shop.orders",
        "COMMENT ON TRIGGER zzz_rollcall_insert ON shop.orders IS NULL",
        f"DROP FUNCTION {triggers.function_name(TABLE)}() CASCADE",
        f"DROP TABLE {triggers.DEPARTURE}",
        "REVOKE SELECT ON shop.orders FROM rollcall_manage",
        f"REVOKE DELETE ON {triggers.DEPARTURE} FROM rollcall_ingest",
    ],
)
def test_what_somebody_has_taken_away_is_put_back(shop: Shop, damage: str) -> None:
    shop.adopt(*ASKED, "--apply")
    made = run(EVERYTHING)
    run(damage)
    assert shop.adopt(*ASKED) != ""
    shop.adopt(*ASKED, "--apply")
    assert run(EVERYTHING) == made and shop.adopt(*ASKED) == ""


def test_while_the_application_writes_nothing_is_lost_or_counted_twice(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are inserted, changed and deleted all the time; afterwards each member that left since has a departure."""
    # It is for Ctrl-C, and for the whole process; the application here is a thread of it, in the middle of a statement.
    monkeypatch.setattr(adopt, "set_wait_callback", lambda callback: None)
    over = threading.Event()
    failed: list[Exception] = []
    rounds = 0

    def work() -> None:
        nonlocal rounds
        with closing(psycopg2.connect(started_primary().url)) as own, own.cursor() as cursor:
            own.autocommit = True
            while not over.is_set():
                try:
                    cursor.execute("INSERT INTO shop.orders (email) VALUES (%s)", [f"w{rounds}"])
                    cursor.execute("UPDATE shop.orders SET email = email || 'x' WHERE email = %s", [f"w{rounds}"])
                    cursor.execute("DELETE FROM shop.orders WHERE email = %s", [f"w{rounds}x"])
                except psycopg2.Error as error:
                    failed.append(error)
                rounds += 1

    writer = threading.Thread(target=work)
    writer.start()
    try:
        wait_for(lambda: rounds > 5, "the application")
        shop.adopt(*ASKED, "--apply")
        reached = rounds
        wait_for(lambda: rounds > reached + 5, "the application after it")
        shop.adopt("shop.orders", "--counter", "customers=email", "--counter", "skus=sku", "--apply")
    finally:
        over.set()
        writer.join()
    assert not failed
    noted = {
        member for (member,) in run(f"SELECT unnest(element) FROM {triggers.DEPARTURE} WHERE counter ~ '^customers:'")
    }
    assert {f"w{number}{x}" for number in range(reached + 1, reached + 5) for x in ("", "x")} <= noted
    assert run("SELECT count(*) FROM shop.orders WHERE xact = 0") == [(99,)]


def test_a_lock_is_not_waited_for_long_and_tried_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "LOCK_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(applying, "PAUSE_SECONDS", 0.05)
    with closing(psycopg2.connect(started_primary().url)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT FROM shop.orders")
        refusal = shop.refusal(*ASKED, "--apply", "--patience-seconds", "0.3")
        assert (
            "no lock on shop.orders within" in refusal
            and f"{reader.info.backend_pid} (rollcall, idle in transact" in refusal
        )
        assert run(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'shop.orders'::regclass AND attname = 'xact'"
        ) == [(0,)]
        threading.Timer(0.3, reader.rollback).start()
        assert "try 1: shop.orders is in use by" in shop.adopt(*ASKED, "--apply")


def test_how_far_an_index_is(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for an old transaction says so, and whose."""
    monkeypatch.setattr(applying, "PROGRESS_SECONDS", 0.02)
    shop.adopt(*ASKED, "--apply")
    run(f"DROP INDEX shop.{triggers.index('shop', 'orders', (Term('email', 'text'),)).name}")
    with closing(psycopg2.connect(started_primary().url)) as writer, writer.cursor() as cursor:
        cursor.execute("INSERT INTO shop.orders (email) VALUES ('open')")
        waiting = "SELECT count(*) FROM pg_stat_progress_create_index WHERE current_locker_pid <> 0"

        def commit_when_it_waits() -> None:
            wait_for(lambda: run(waiting) == [(1,)], "the index to wait")
            wait_for(lambda: any("waiting" in text for text in heard), "somebody to say so")
            writer.commit()

        heard: list[str] = []
        watched = applying.watched

        def listening(building: Any, connect: Any, say: Callable[[str], None]) -> Any:
            def note(text: str) -> None:
                heard.append(text)
                say(text)

            return watched(building, connect, note)

        monkeypatch.setattr(applying, "watched", listening)
        ending = threading.Thread(target=commit_when_it_waits)
        ending.start()
        said = shop.adopt(*ASKED, "--apply")
        ending.join()
        assert f"waiting for writers before build, for process {writer.info.backend_pid}" in said


def test_it_can_be_interrupted_while_an_index_is_built(shop: Shop) -> None:
    with closing(psycopg2.connect(started_primary().url)) as writer, writer.cursor() as cursor:
        writer.set_session(isolation_level="REPEATABLE READ")
        cursor.execute("SELECT FROM pg_class")  # its snapshot is older than the index
        waiting = "SELECT count(*) FROM pg_stat_progress_create_index WHERE current_locker_pid <> 0"

        def press_when_it_waits() -> None:
            wait_for(lambda: run(waiting) == [(1,)], "the index to wait")
            os.kill(os.getpid(), signal.SIGINT)
            pressed.wait(5)
            writer.rollback()

        pressed = threading.Event()
        pressing = threading.Thread(target=press_when_it_waits)
        pressing.start()
        try:
            refusal = shop.refusal(*ASKED, "--apply")
        except KeyboardInterrupt:
            refusal = "a traceback"
        stays_open = writer.info.transaction_status == TRANSACTION_STATUS_INTRANS
        pressed.set()
        pressing.join()
    assert "interrupted: run the same command again" in refusal and stays_open
    shop.adopt(*ASKED, "--apply")
    assert indexes("NOT indisvalid") == []


def test_as_an_ordinary_owner(shop: Shop, seller: Callable[[], None]) -> None:
    seller()
    assert "GRANT CREATE ON DATABASE rollcall TO seller" in shop.refusal(*ASKED, "--apply")
    run("GRANT CREATE ON DATABASE rollcall TO seller")
    shop.adopt(*ASKED, "--apply")
    run("CREATE ROLE app; GRANT USAGE ON SCHEMA shop TO app; GRANT SELECT, DELETE ON shop.orders TO app")
    run("SET ROLE app; DELETE FROM shop.orders WHERE email = 'u3'; RESET ROLE; DROP OWNED BY app; DROP ROLE app")
    noted = run(f"SELECT DISTINCT unnest(element) FROM {triggers.DEPARTURE} WHERE counter ~ '^customers:'")
    assert noted == [("u3",)]
    run("REVOKE CREATE ON DATABASE rollcall FROM seller")
    assert shop.adopt(*ASKED) == "", "needed once"
    shop.adopt("shop.orders", "--undo", "--apply")


def test_by_a_superuser_the_function_is_given_to_the_tables_owner(shop: Shop, seller: Callable[[], None]) -> None:
    """It would otherwise evaluate an application's condition with the rights of a superuser."""
    seller()
    connection.close()
    connection.settings_dict["USER"], connection.settings_dict["PASSWORD"] = "rollcall", started_primary().password
    shop.adopt(*ASKED, "--apply")
    owner = "SELECT proowner::regrole::text FROM pg_proc WHERE proname ~ '^rollcall_orders'"
    assert run(owner) == [("seller",)] and shop.adopt(*ASKED) == ""
    run("SET ROLE seller; DELETE FROM shop.orders WHERE email = 'u3'")
    assert run(f"SELECT count(*) FROM {triggers.DEPARTURE}") == [(2,)]


def test_two_owners_in_one_database(shop: Shop, seller: Callable[[], None]) -> None:
    run("CREATE TABLE public.mine (email text)")
    shop.adopt("public.mine", "--counter", "others=email", "--apply")
    seller()
    refusal = shop.refusal(*ASKED, "--apply")
    assert f"GRANT INSERT ON {triggers.DEPARTURE} TO seller" in refusal
    run(refusal.partition("run: ")[2])
    assert "can be counted" in shop.adopt(*ASKED, "--apply")
    shop.adopt("shop.orders", "--undo", "--apply")
    assert run("SELECT to_regclass(%s) IS NOT NULL", triggers.DEPARTURE) == [(True,)], "another table needs it"
    run("DROP TABLE public.mine")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("SELECT", "there is no table shop.other"),
        ("CREATE VIEW shop.other AS SELECT 'a' AS email", "is a view: adopt the tables below it"),
        ("CREATE MATERIALIZED VIEW shop.other AS SELECT 'a' AS email", "is a materialized view"),
        (
            "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; "
            "CREATE FOREIGN TABLE shop.other (email text) SERVER s",
            "is a foreign table",
        ),
        ("CREATE SEQUENCE shop.other", "is a sequence"),
        ("CREATE UNLOGGED TABLE shop.other (email text)", "is unlogged, and not on a replica"),
        (
            "CREATE TABLE shop.other (email text, xact bigint)",
            "a column named xact that is not Rollcall's (bigint, default none)",
        ),
        ("CREATE TABLE shop.other (mail text)", "has no column email; it has mail"),
        (
            "CREATE TABLE shop.other (email numeric)",
            "email is numeric, and a member cannot be made of that (of these it can: text",
        ),
        ("CREATE TABLE shop.other (email char(9))", "email is character(9)"),
        ("CREATE TABLE shop.other (email timestamptz)", "email is timestamp with time zone, and a member cannot be"),
        ("CREATE DOMAIN shop.mail AS text; CREATE TABLE shop.other (email shop.mail)", "email is shop.mail"),
        ("CREATE TABLE shop.other (email text COLLATE shop.ci)", "the collation of email is nondeterministic"),
        *([(f"CREATE TABLE shop.other (m text, email text {VIRTUAL})", "make it STORED")] if HAS_VIRTUAL else []),
        ("CREATE TABLE shop.other (email text); CREATE TABLE shop.child () INHERITS (shop.other)", "inherits"),
        (
            "CREATE TABLE shop.parent (email text) PARTITION BY LIST (email); "
            "CREATE TABLE shop.other PARTITION OF shop.parent DEFAULT",
            "is a partition: adopt the partitioned table",
        ),
        (
            "CREATE TABLE shop.other (email text); CREATE FUNCTION shop.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'; "
            "CREATE TRIGGER zzzz BEFORE UPDATE ON shop.other FOR EACH ROW EXECUTE FUNCTION shop.f()",
            "the trigger zzzz of shop.other would fire after Rollcall's",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused_and_why(shop: Shop, made: str, said: str) -> None:
    # The wheel has no ICU, which alone makes collations that are: this one is said to be one.
    run("CREATE COLLATION shop.ci (locale = 'C')")
    run("UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'ci'")
    run(made)
    before = run(EVERYTHING)
    assert said in shop.refusal("shop.other", "--counter", "mails=email", "--apply")
    assert run(EVERYTHING) == before
    run("DROP FOREIGN DATA WRAPPER IF EXISTS w CASCADE")


@pytest.mark.parametrize("name", ['"2024 Orders"', '"Ünïcode"', '"Orders"', '"%s {}"'])
def test_the_printed_lines_are_read_as_what_was_adopted(shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also of a table whose name the file could not take, or has already."""
    run(f'CREATE TABLE shop.{name} ("first %s" text, "{{last}}" text)')
    declare(monkeypatch, PLACES)
    counter = ("--counter", "names=first %s,{last}")
    shop.adopt(f"shop.{name}", *counter, "--apply")
    declared = '[tables.orders]\nname = "shop.orders"\nfields = {}\n'
    tables, counters = declarations.parse(declared + shop.said.partition("For rollcall.toml:\n")[2])
    assert (tables[1].schema, tables[1].relation) == ("shop", name.strip('"'))
    declare(monkeypatch, *counters)
    assert shop.adopt(tables[1].name) == ""


def test_what_no_file_could_say_is_refused(shop: Shop) -> None:
    run('DROP SCHEMA IF EXISTS "dot.ted" CASCADE; CREATE SCHEMA "dot.ted"; CREATE TABLE "dot.ted".orders (email text)')
    assert "has a dot in its name" in shop.refusal('"dot.ted".orders', "--counter", "customers=email")
    run('DROP SCHEMA "dot.ted" CASCADE')
    assert "a field is named twice" in shop.refusal("shop.orders", "--counter", "customers=email,email")
    twice = ("--counter", "customers=email", "--counter", "customers=sku")
    assert "--counter customers is given twice" in shop.refusal("shop.orders", *twice)


def test_a_renamed_table_keeps_nothing_of_its_former_name(shop: Shop) -> None:
    before = run(EVERYTHING)
    shop.adopt(*ASKED, "--apply")
    run("ALTER TABLE shop.orders RENAME TO sales")
    shop.adopt("shop.sales", *ASKED[1:], "--apply")
    assert run("SELECT count(*) FROM pg_proc WHERE pronamespace = 'shop'::regnamespace") == [(1,)]
    run("ALTER TABLE shop.sales RENAME TO orders")
    shop.adopt("shop.orders", "--undo", "--apply")
    assert run(EVERYTHING) == before


def test_a_counted_column_is_renamed_as_the_docs_say(shop: Shop) -> None:
    run("ALTER TABLE shop.orders RENAME COLUMN email TO customer_email")
    shop.adopt("shop.orders", "--counter", "customers=customer_email", "--apply")
    ((name,),) = run("SELECT proname FROM pg_proc WHERE pronamespace = 'shop'::regnamespace")
    (block,) = re.findall(r"^    BEGIN;\n    DROP FUNCTION .*?COMMIT;$", DOCS, re.M | re.S)
    run(block.replace("rollcall_orders_…", f"{name}()"))
    run("DELETE FROM shop.orders WHERE email = 'u1'")
    shop.adopt("shop.orders", "--counter", "customers=email", "--apply")
    run("DELETE FROM shop.orders WHERE email = 'u2'")
    assert run(f"SELECT DISTINCT unnest(element) FROM {triggers.DEPARTURE}") == [("u2",)]


def test_subscribers_and_row_security_are_spoken_of(shop: Shop) -> None:
    run("CREATE PUBLICATION theirs FOR TABLE shop.orders; CREATE PUBLICATION narrow FOR TABLE shop.orders (id, email)")
    run("ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY")
    shop.adopt(*ASKED, "--apply")
    assert "is published by theirs: subscribers stop if" in shop.said
    assert "ALTER ROLE rollcall_manage BYPASSRLS" in shop.said
    shop.adopt(*ASKED)
    assert "is published" not in shop.said
    run("DROP PUBLICATION theirs, narrow")


def test_types_that_are_named_like_others(shop: Shop) -> None:
    """citext is an extension, which the wheel does not have: what is of its name is refused as it would be."""
    run("CREATE TYPE shop.citext AS (t text); CREATE TABLE shop.other (email shop.citext)")
    assert "email is shop.citext" in shop.refusal("shop.other", "--counter", "mails=email")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("deleted is NULL", 'column "deleted" does not exist'),
        ("email", "argument of WHERE must be type boolean"),
        ("created() > now()", "function created() does not exist"),
        ("deleted_at > now()", "functions in index predicate must be marked IMMUTABLE"),
        ("true) -- ", "syntax error"),
        ("true) OR (true", "Postgres refuses its condition (true) OR (true): syntax error"),
        ("EXISTS (SELECT 1)", "cannot use subquery"),
        ("orders.email = 'x'", "missing FROM-clause entry"),
        *([("lower_of = 'x'", "generated when it is read")] if HAS_VIRTUAL else []),
    ],
)
def test_a_condition_that_cannot_be_an_index_is_refused(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, where: str, said: str
) -> None:
    if HAS_VIRTUAL:
        run("ALTER TABLE shop.orders ADD COLUMN lower_of text GENERATED ALWAYS AS (lower(email)) VIRTUAL")
    declare(monkeypatch, Counter("customers", TABLE, ("email",), where=where))
    assert said in shop.refusal("orders", "--apply")


def test_a_condition_needs_the_right_to_make_a_copy(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, seller: Callable[[], None]
) -> None:
    declare(monkeypatch, CUSTOMERS)
    seller()
    run("REVOKE TEMPORARY ON DATABASE rollcall FROM PUBLIC; GRANT CREATE ON DATABASE rollcall TO seller")
    try:
        assert "GRANT TEMPORARY ON DATABASE rollcall TO seller" in shop.refusal("orders", "--apply")
    finally:
        run("GRANT TEMPORARY ON DATABASE rollcall TO PUBLIC")
    shop.adopt("orders", "--apply")


def test_an_owner_that_may_make_no_function_is_told_so(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of the owner may make functions in the schema, and cannot give them to the owner."""
    run("DROP ROLE IF EXISTS team, dev; CREATE ROLE team; CREATE ROLE dev LOGIN PASSWORD 'dev' IN ROLE team")
    run("GRANT CONNECT, CREATE ON DATABASE rollcall TO dev; GRANT CREATE, USAGE ON SCHEMA shop TO dev")
    run("ALTER TABLE shop.orders OWNER TO team")
    use(monkeypatch, "dev", "dev")
    assert "GRANT CREATE ON SCHEMA shop TO team" in shop.refusal(*ASKED, "--apply")
    run("ALTER SCHEMA shop OWNER TO team")
    shop.adopt(*ASKED, "--apply")
    connection.close()
    run("DROP SCHEMA shop CASCADE; DROP SCHEMA rollcall_triggers CASCADE; DROP OWNED BY team, dev; DROP ROLE team, dev")


def test_a_database_of_bytes_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    run("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'")
    try:
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "NAME", "bytes")
        with closing(psycopg2.connect(started_primary().url.rpartition("/")[0] + "/bytes")) as there, there:
            there.cursor().execute("CREATE TABLE orders (email text)")
        assert "the database bytes is SQL_ASCII" in shop.refusal("orders", "--counter", "customers=email")
    finally:
        connection.close()
        run("DROP DATABASE bytes")


def test_a_server_that_is_too_old_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "LEAST_VERSION", 99_00_00)
    assert "Rollcall needs version 15 or later" in shop.refusal("shop.orders", "--counter", "customers=email")


def test_what_is_declared_has_to_be_what_is_there(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("orders", "shop", "orders", (Field("id", "integer"),))
    declare(monkeypatch, Counter("numbers", table, ("id",)))
    assert "id is declared as integer, and shop.orders has it as bigint" in shop.refusal("orders")


def test_no_right(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    run("DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN PASSWORD 'guest'")
    run(
        "GRANT CONNECT ON DATABASE rollcall TO guest; GRANT USAGE ON SCHEMA shop TO guest; GRANT ALL ON shop.orders TO guest"
    )
    use(monkeypatch, "guest", "guest")
    assert "belongs to rollcall, and guest has no right to change it" in shop.refusal(*ASKED)
    connection.close()
    run("DROP OWNED BY guest; DROP ROLE guest")


def test_generated_columns_are_watched_by_what_they_are_made_of(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    run(
        "ALTER TABLE shop.orders ADD COLUMN lower_of text GENERATED ALWAYS AS (lower(email || coalesce(sku, ''))) STORED"
    )
    run("ALTER TABLE shop.orders ADD COLUMN shown boolean GENERATED ALWAYS AS (deleted_at IS NULL) STORED")
    table = Table("orders", "shop", "orders", (Field("lower_of", "text"),))
    counter = Counter("lowers", table, ("lower_of",), where="shown")
    declare(monkeypatch, counter)
    shop.adopt("orders", "--apply")
    run("UPDATE shop.orders SET note = 'x'")
    assert departed(counter) == []
    run("UPDATE shop.orders SET sku = 't' WHERE id = 1; UPDATE shop.orders SET deleted_at = now() WHERE id = 2")
    assert departed(counter) == ["u1s", "u2s"]
    assert run("SELECT count(*) FROM shop.orders WHERE xact > 0") == [(2,)]


def test_an_enum_and_a_condition_over_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    run("CREATE TYPE shop.mood AS ENUM ('good', 'so so'); ALTER TABLE shop.orders ADD COLUMN mood shop.mood")
    run("UPDATE shop.orders SET mood = 'so so'")
    table = Table("orders", "shop", "orders", (Field("mood", "enum"),))
    counter = Counter("moods", table, ("mood",), where="mood <> 'good'")
    declare(monkeypatch, counter)
    shop.adopt("orders", "--apply")
    run("UPDATE shop.orders SET mood = 'good'")
    assert set(departed(counter)) == {"so so"}


@pytest.mark.parametrize("made", [ORDERS, PARTITIONED])
def test_groups_and_days_of_a_time(shop: Shop, monkeypatch: pytest.MonkeyPatch, made: str) -> None:
    make_shop(made)
    _, (customers,) = declarations.parse(
        """
        [tables.orders]
        name = "shop.orders"
        fields = {email = "text", country = "text", deleted_at = "timestamptz"}
        [counters.customers]
        table = "orders"
        member = ["email"]
        by = ["country", ["country", "day(deleted_at)"], "week(deleted_at)"]
        last_seen = "deleted_at"
        """
    )
    declare(monkeypatch, customers)
    run("ALTER TABLE shop.orders ALTER deleted_at TYPE timestamp")
    assert "deleted_at is timestamp without time zone, and a day cannot be made of that" in shop.refusal("orders")
    run("ALTER TABLE shop.orders ALTER deleted_at TYPE timestamptz")
    printed = shop.adopt("orders")
    for name in (customers.name, *(each.name for each in customers.groupings)):
        assert printed.count(f"\n/* for {name} */ CREATE INDEX ") == (1 if made == ORDERS else 5)
    assert 'INCLUDE ("deleted_at")' in printed
    shop.adopt("orders", "--apply")
    assert shop.adopt("--apply") == "" and "all is there already" in shop.said
    run("INSERT INTO shop.orders (email, country, sku, deleted_at) VALUES ('zoe', 'CA', 's', '2026-11-25 23:30Z')")
    run("DELETE FROM shop.orders WHERE email = 'zoe'")
    assert departed(customers) == [("zoe", "2026-11-25")]
    found = [departed(each) for each in customers.groupings]
    assert found == [[("CA", "zoe")], [("CA", "2026-11-25", "zoe")], [("2026-11-23", "zoe")]]


def test_partitions_also_those_that_come_later_and_undone(shop: Shop) -> None:
    make_shop(PARTITIONED)
    before = run(EVERYTHING)
    shop.adopt(*ASKED, "--apply")
    assert "is partitioned: run this again" in shop.said
    assert run("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]
    assert shop.adopt(*ASKED) == ""
    run("DELETE FROM shop.rest_a")
    assert run(f"SELECT element FROM {triggers.DEPARTURE} WHERE counter ~ '^customers'") == [([["bob"]],)]
    run("CREATE TABLE shop.it PARTITION OF shop.orders FOR VALUES IN ('IT')")
    assert "zzz_rollcall_delete" in shop.adopt(*ASKED)
    shop.adopt(*ASKED, "--apply")
    assert run(f"DELETE FROM {triggers.DEPARTURE} WHERE counter ~ '^customers' AND element IS NULL RETURNING 1") == [
        (1,)
    ]
    run("TRUNCATE shop.it")
    assert run(f"SELECT element FROM {triggers.DEPARTURE} WHERE counter ~ '^customers' AND element IS NULL") == [
        (None,)
    ]
    run("ALTER TABLE shop.nl DISABLE TRIGGER zzz_rollcall_update")
    shop.adopt(*ASKED, "--apply")
    assert run("SELECT count(*) FROM pg_trigger WHERE tgname = 'zzz_rollcall_update' AND tgenabled <> 'A'") == [(0,)]
    run("DROP TABLE shop.it")
    shop.adopt("shop.orders", "--undo", "--apply")
    assert run(EVERYTHING) == before


@pytest.mark.parametrize("is_partitioned", [False, True])
def test_dumped_and_restored_all_is_there(shop: Shop, monkeypatch: pytest.MonkeyPatch, is_partitioned: bool) -> None:
    """pg_upgrade does the same: it stops at anything that it cannot make again."""
    make_shop(PARTITIONED if is_partitioned else ORDERS)
    run("ALTER TABLE shop.orders ADD COLUMN data json, ADD COLUMN mood text GENERATED ALWAYS AS (lower(note)) STORED")
    table = replace(TABLE, fields=(*TABLE.fields, Field("mood", "text")))
    odd = Counter("odd", table, ("mood", "sku"), where="data->>'a' <> $$it's$$ AND deleted_at IS NULL")
    declare(monkeypatch, odd, replace(CUSTOMERS, table=table))
    shop.adopt("orders", "--apply")
    run("DROP DATABASE IF EXISTS restored")
    run("CREATE DATABASE restored TEMPLATE template0")
    url = started_primary().url
    restored = f"{url.rpartition('/')[0]}/restored"
    dump = subprocess.run([postgres_program("pg_dump"), "-Fc", url], check=True, capture_output=True)
    done = subprocess.run(
        [postgres_program("pg_restore"), "-d", restored], input=dump.stdout, check=False, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "NAME", "restored")
    assert shop.adopt("orders") == "" and "all is there already" in shop.said
    with closing(psycopg2.connect(restored)) as other, other.cursor() as cursor:
        cursor.execute(
            "INSERT INTO shop.orders (email) VALUES ('zoe'); UPDATE shop.orders SET email = 'zo' WHERE email = 'zoe'"
        )
        cursor.execute(f"SELECT element FROM {triggers.DEPARTURE} WHERE 'zoe' = ANY (element)")
        assert cursor.fetchall() == [([["zoe"]],)]
    run("DROP DATABASE restored")


def test_where_the_roles_are_not_there_nothing_is_granted(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest_service.adoption.plan.MANAGE", "nobody")
    monkeypatch.setattr("ingest_service.adoption.plan.INGEST", "nobody_else")
    monkeypatch.setattr("ingest_service.adoption.plan.DEPARTURE_RIGHTS", {})
    assert "GRANT" not in shop.adopt(*ASKED)


def test_manage_and_ingest_may_do_what_they_need_and_no_more(shop: Shop) -> None:
    shop.adopt(*ASKED, "--apply")
    rights = run(
        f"""SELECT r, p FROM unnest(ARRAY['rollcall_manage', 'rollcall_ingest', 'rollcall_admin']) AS r,
                   unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p
            WHERE has_table_privilege(r, '{triggers.DEPARTURE}', p) ORDER BY 1, 2"""
    )
    assert rights == [
        *(("rollcall_ingest", right) for right in ("DELETE", "INSERT", "SELECT")),
        ("rollcall_manage", "SELECT"),
    ]
    with closing(psycopg2.connect(started_primary().url_of("manage"))) as manage, manage.cursor() as cursor:
        cursor.execute("LOCK TABLE shop.orders IN ACCESS SHARE MODE; SELECT count(*) FROM shop.orders")
        assert cursor.fetchall() == [(99,)]
        cursor.execute(f"SELECT count(*) FROM {triggers.DEPARTURE}")
    with closing(psycopg2.connect(started_primary().url_of("ingest"))) as ingest, ingest.cursor() as cursor:
        cursor.execute(f"DELETE FROM {triggers.DEPARTURE} WHERE create_time < now()")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("SELECT FROM shop.orders")


def test_adopting_needs_the_database_and_nothing_else(shop: Shop) -> None:
    command = [sys.executable, "-m", "ingest_service", "adopt", "shop.orders", "--counter", "customers=email"]
    done = subprocess.run(
        command,
        env={"DATABASE_URL": started_primary().url, "PATH": os.environ["PATH"]},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "this is what --apply would run" in done.stderr, done.stderr


DOCS = (Path(__file__).parents[2] / "docs" / "adopt.md").read_text()


def test_the_grants_of_the_docs_are_those_that_are_given(shop: Shop, seller: Callable[[], None]) -> None:
    seller()
    connection.close()
    connection.settings_dict["USER"], connection.settings_dict["PASSWORD"] = "rollcall", started_primary().password
    shop.adopt("shop.orders", "--counter", "customers=email", "--apply")
    made = run(EVERYTHING)
    run("REVOKE ALL ON SCHEMA shop FROM rollcall_manage; REVOKE ALL ON shop.orders FROM rollcall_manage")
    for role in ("rollcall_manage", "rollcall_ingest", "seller"):
        run(f"REVOKE ALL ON SCHEMA {triggers.SCHEMA} FROM {role}; REVOKE ALL ON {triggers.DEPARTURE} FROM {role}")
    assert run(EVERYTHING) != made
    documented = re.findall(r"^    (GRANT .*;)$", DOCS, re.M)
    assert len(documented) == 7
    for statement in documented:
        run(statement.replace("TO shop;", "TO seller;"))
    assert run(EVERYTHING) == made


def test_the_commands_of_the_docs_are_understood(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    run("ALTER TABLE shop.orders RENAME COLUMN email TO customer_email")
    commands = re.findall(r"python -m ingest_service adopt ([^#\n]*)", DOCS)
    assert len(commands) == 4
    for words in commands:
        shop.adopt(*words.split())
    assert run("SELECT count(*) FROM pg_trigger WHERE starts_with(tgname, %s)", triggers.PREFIX) == [(0,)]


def test_the_lines_of_the_docs_are_those_that_are_printed(shop: Shop) -> None:
    run("ALTER TABLE shop.orders RENAME COLUMN email TO customer_email")
    shop.adopt("shop.orders", "--counter", "customers=customer_email")
    _, _, lines = shop.said.partition("For rollcall.toml:\n")
    assert "\n".join(f"    {line}" if line else "" for line in lines.strip().splitlines()) in DOCS
