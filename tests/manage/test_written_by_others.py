"""An application's database: adopted by the command, written by other programs in every way, and counted by a keeper.

Its tables are pgbench's, those of a Django project, and an application's own. The keeper's role may read them and nothing
else; no ingest runs. Each test is one way of writing: afterwards each set is COUNT(DISTINCT)'s members, one by one, and there
was no reconcile (but where the table was emptied).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from compose.local.servers import postgres_program
from manage_service.keeper.loop import Keeper
from shared_models import declarations, triggers
from tests.manage.keepers import tick_until
from tests.manage.theirs import ROOT, Theirs, adopt, declaring, keeper_of, make_theirs, url_in
from tests.servers import free_port, sql, started_primary, started_replica, wait_for

SERVICES = (ROOT / "docs" / "adopt.md").read_text().partition("## 4. ")[2].partition("\n## ")[0]
READY = {"ready": True, "degraded": False, "checks": {"primary": "ok", "redis": "ok"}}
# Three services start at once, and other tests run at the same time.
START_SECONDS = 60.0
DATABASE = "theirs"
# A Django project, and the lines of the docs that adopt its tables.
EXAMPLES = ROOT / "docs" / "examples"
PROJECT = (EXAMPLES / "index.md").read_text().partition("\n## A Django project")[2].partition("\n## ")[0]
(ADOPT_PROJECT,) = re.findall(r"```sh\n(.*?)```", PROJECT, re.DOTALL)
DECLARED = (EXAMPLES / "django_project" / "rollcall.toml").read_text()
DECLARED += """
    [tables]
    baskets = {name = "shop.baskets", fields = {owner = "text", country = "text"}}
    items = {name = "shop.items", fields = {sku = "text"}}
    events = {name = "shop.events", fields = {kind = "text", country = "text"}}
    accounts = {name = "public.pgbench_accounts", fields = {abalance = "integer"}}
    history = {name = "public.pgbench_history", fields = {aid = "integer", tid = "integer"}}

    [counters]
    owners = {table = "baskets", member = ["owner"], where = "closed_at IS NULL"}
    places = {table = "baskets", member = ["country", "owner"]}
    skus = {table = "items", member = ["sku"]}
    kinds = {table = "events", member = ["kind", "country"]}
    balances = {table = "accounts", member = ["abalance"]}
    touched = {table = "history", member = ["aid", "tid"]}
"""
# An application's: a cascade that the database carries out, and a partitioned table on two levels.
SHOP = """
    CREATE SCHEMA shop;
    CREATE TABLE shop.baskets (id bigserial PRIMARY KEY, owner text, country text, closed_at timestamptz);
    CREATE TABLE shop.items (basket bigint NOT NULL REFERENCES shop.baskets ON DELETE CASCADE, sku text);
    CREATE TABLE shop.events (kind text, country text) PARTITION BY LIST (country);
    CREATE TABLE shop.events_nl PARTITION OF shop.events FOR VALUES IN ('NL');
    CREATE TABLE shop.events_rest PARTITION OF shop.events DEFAULT PARTITION BY LIST (kind);
    CREATE TABLE shop.events_rest_paid PARTITION OF shop.events_rest FOR VALUES IN ('paid');
    CREATE TABLE shop.events_rest_other PARTITION OF shop.events_rest DEFAULT;
    INSERT INTO shop.baskets (owner, country) SELECT 'owner' || n % 20, 'c' || n % 3 FROM generate_series(1, 60) AS n;
    INSERT INTO shop.items SELECT id, 'sku' || id % 30 FROM shop.baskets;
    INSERT INTO shop.events SELECT 'kind' || n % 5, 'c' || n % 4 FROM generate_series(1, 40) AS n;
"""


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with declaring(DECLARED, tmp_path_factory.mktemp("declared") / "rollcall.toml") as path:
        yield path


@pytest.fixture(scope="module")
def adopted(declared: Path) -> Iterator[str]:
    """The database, made without Rollcall and then adopted by its owner; the owner's URL."""
    url = make_theirs(started_primary(), DATABASE)
    subprocess.run([postgres_program("pgbench"), "-iq", "--no-vacuum", url], capture_output=True, check=True)
    adopt_the_project(url)
    with closing(psycopg2.connect(url)) as owner, owner, owner.cursor() as cursor:
        cursor.execute(SHOP)
    adopt(url, declared)
    yield url
    sql(started_primary(), f"DROP DATABASE {DATABASE} WITH (FORCE)")


def adopt_the_project(url: str) -> None:
    """The lines of docs/examples, as they stand, with this database's URL."""
    lines, replaced = re.subn(r"(?<=DATABASE_URL=)\S+", url, ADOPT_PROJECT)
    assert replaced == 1
    environ = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    done = subprocess.run(["bash", "-ec", lines], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("No changes detected\n")


@pytest.fixture(scope="module")
def theirs(adopted: str) -> Iterator[Theirs]:
    theirs = Theirs(started_primary(), started_replica(), DATABASE)
    theirs.redis.flushall()
    theirs.replay()
    yield theirs
    theirs.close()


@pytest.fixture(scope="module")
def following(theirs: Theirs) -> Iterator[Keeper]:
    """A keeper that has built all counters, and reconciled them once."""
    with keeper_of(theirs) as keeper:
        theirs.follow(keeper)
        yield keeper


# -- the ways of writing


def by_statements(theirs: Theirs) -> None:
    """psql, a transaction each."""
    theirs.program(
        "psql",
        *("-qX", theirs.url, "-c", "INSERT INTO shop.baskets (owner) VALUES ('ann'), ('bob'), (NULL)"),
        *("-c", "UPDATE shop.baskets SET owner = 'anne' WHERE owner = 'ann'"),
        *("-c", "UPDATE shop.baskets SET closed_at = now() WHERE owner = 'owner1'"),
        *("-c", "DELETE FROM shop.baskets WHERE owner = 'bob' OR owner = 'owner2'"),
    )


def by_copy(theirs: Theirs) -> None:
    """Also with xacts of another database: a lower one, a higher one, none."""
    rows = b"copied\tNL\t5\nfrom afar\tNL\t1000000000000\nold\tNL\t0\n"
    into = "COPY shop.baskets (owner, country, xact) FROM STDIN"
    theirs.program("psql", "-qX", theirs.url, "-c", into, given=rows)
    assert theirs.ask_primary("SELECT count(DISTINCT xact) FROM shop.baskets WHERE owner IN ('copied', 'old')") == [
        (1,)
    ]
    theirs.program("psql", "-qX", theirs.url, "-c", "COPY shop.items (basket, sku) FROM STDIN", given=b"7\tcopied\n")
    theirs.write("DELETE FROM shop.baskets WHERE owner = 'copied'")


def by_upserts(theirs: Theirs) -> None:
    theirs.write("""
        INSERT INTO shop.baskets (id, owner) VALUES (1000, 'first'), (1001, 'kept');
        INSERT INTO shop.baskets (id, owner) VALUES (1000, 'second'), (1002, 'new')
            ON CONFLICT (id) DO UPDATE SET owner = excluded.owner;
        INSERT INTO shop.baskets (id, owner) VALUES (1001, 'never') ON CONFLICT DO NOTHING
    """)


def by_merge(theirs: Theirs) -> None:
    theirs.write("""
        INSERT INTO shop.baskets (id, owner) VALUES (2000, 'goes'), (2001, 'changes');
        MERGE INTO shop.baskets AS b USING (VALUES (2000, ''), (2001, 'changed'), (2002, 'comes')) AS v (id, owner) ON b.id = v.id
            WHEN MATCHED AND v.owner = '' THEN DELETE
            WHEN MATCHED THEN UPDATE SET owner = v.owner
            WHEN NOT MATCHED THEN INSERT (id, owner) VALUES (v.id, v.owner);
        INSERT INTO shop.events VALUES ('merged', 'NL'), ('merged', 'XX');
        MERGE INTO shop.events AS e USING (VALUES ('merged', 'NL'), ('merged', 'XX'), ('merged', 'YY')) AS v (kind, country)
            ON e.kind = v.kind AND e.country = v.country
            WHEN MATCHED AND v.country = 'NL' THEN DELETE
            WHEN MATCHED THEN UPDATE SET kind = 'paid'
            WHEN NOT MATCHED THEN INSERT (kind, country) VALUES (v.kind, v.country)
    """)


def by_cascades(theirs: Theirs) -> None:
    theirs.write("""
        INSERT INTO shop.baskets (id, owner) VALUES (3000, 'cascade'), (3001, 'stays');
        INSERT INTO shop.items VALUES (3000, 'goes along'), (3001, 'stays');
        DELETE FROM shop.baskets WHERE owner = 'cascade' OR id < 5
    """)


def by_an_orm(theirs: Theirs) -> None:
    theirs.python("tests.manage.written_by_django")


def by_pgbench(theirs: Theirs) -> None:
    """Accounts get other balances, which nobody has afterwards, and the history grows; it has no key."""
    theirs.program("pgbench", "-n", "-c", "2", "-t", "60", theirs.url)
    theirs.write("DELETE FROM pgbench_history WHERE ctid IN (SELECT ctid FROM pgbench_history LIMIT 20)")


def to_partitions(theirs: Theirs) -> None:
    """By the parent, and by the name of a partition."""
    theirs.write("""
        INSERT INTO shop.events VALUES ('parent', 'NL'), ('parent', 'BE'), ('moves', 'NL'), ('paid', 'BE');
        INSERT INTO shop.events_nl VALUES ('direct', 'NL'), ('direct too', 'NL');
        INSERT INTO shop.events_rest_other VALUES ('deep', 'FR'), ('deeper', 'FR');
        UPDATE shop.events SET country = 'DE' WHERE kind = 'moves';
        UPDATE shop.events_rest_other SET kind = 'deepest' WHERE kind = 'deeper';
        DELETE FROM shop.events_nl WHERE kind = 'direct';
        DELETE FROM shop.events_rest WHERE kind = 'deep';
        DELETE FROM shop.events_rest_paid
    """)


def in_savepoints(theirs: Theirs) -> None:
    theirs.write("""
        BEGIN;
        INSERT INTO shop.baskets (owner) VALUES ('outer');
        SAVEPOINT one;
        INSERT INTO shop.baskets (owner) VALUES ('taken back');
        DELETE FROM shop.baskets WHERE owner = 'owner3';
        ROLLBACK TO one;
        SAVEPOINT two;
        DELETE FROM shop.baskets WHERE owner = 'owner4';
        INSERT INTO shop.baskets (owner) VALUES ('inner');
        RELEASE two;
        COMMIT;
        DO $$ BEGIN
            INSERT INTO shop.baskets (owner) VALUES ('in a block');
            BEGIN DELETE FROM shop.baskets WHERE owner = 'owner5'; RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;
        END $$
    """)


WAYS = (by_statements, by_copy, by_upserts, by_merge, by_cascades, by_an_orm, by_pgbench, to_partitions, in_savepoints)


@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__)
def test_what_others_write_is_counted(theirs: Theirs, following: Keeper, write: Callable[[Theirs], None]) -> None:
    before, runs = theirs.truth(), theirs.runs()
    write(theirs)
    assert theirs.truth() != before
    theirs.follow(following)
    assert theirs.runs() == runs, "departures did it, and no reconcile"


def test_what_is_prepared_counts_when_it_is_committed(theirs: Theirs, following: Keeper) -> None:
    runs = theirs.runs()
    change = "INSERT INTO shop.baskets (owner) VALUES ('%s'); DELETE FROM shop.baskets WHERE owner = '%s'"
    for name, comes, goes in (("kept", "prepared", "owner6"), ("undone", "never", "owner7")):
        theirs.write(f"BEGIN; {change % (comes, goes)}; PREPARE TRANSACTION '{name}'")
    theirs.write("INSERT INTO shop.baskets (owner) VALUES ('meanwhile')")
    theirs.replay()
    tick_until(following, theirs.exact, "a row from above the open transactions to be counted")
    assert {b"meanwhile", b"owner6", b"owner7"} <= theirs.set("owners") and b"prepared" not in theirs.set("owners")
    theirs.write("COMMIT PREPARED 'kept'")
    theirs.write("ROLLBACK PREPARED 'undone'")
    theirs.follow(following)
    assert {b"meanwhile", b"prepared", b"owner7"} <= theirs.set("owners") and b"owner6" not in theirs.set("owners")
    assert theirs.runs() == runs


def test_what_is_emptied_is_reconciled_at_once(theirs: Theirs, following: Keeper) -> None:
    """Partitions on two levels, a table without a key, one by its foreign key."""
    theirs.write("""
        INSERT INTO shop.events VALUES ('here', 'NL'), ('there', 'PT');
        INSERT INTO pgbench_history (aid, tid) VALUES (1, 1);
        INSERT INTO shop.items VALUES ((SELECT min(id) FROM shop.baskets), 'last')
    """)
    theirs.follow(following)
    emptied = {"kinds": "shop.events_nl", "touched": "pgbench_history", "skus": "shop.baskets CASCADE"}
    for table in (*emptied.values(), "shop.events_rest"):
        theirs.write(f"TRUNCATE {table}; INSERT INTO shop.baskets (owner) VALUES ('after {table}')")
    theirs.follow(following)
    assert [theirs.set(name) for name in emptied] == [set(), set(), set()]


def test_the_keepers_role_may_read_what_was_adopted_and_nothing_else(theirs: Theirs, following: Keeper) -> None:
    rights = theirs.ask_primary(
        """SELECT table_schema || '.' || table_name, string_agg(privilege_type, ' ') FROM information_schema.table_privileges
           WHERE grantee = 'rollcall_manage' GROUP BY 1"""
    )
    tables = {triggers.relation(table).replace('"', "") for table in declarations.TABLES}
    assert dict(rights) == dict.fromkeys({*tables, triggers.DEPARTURE}, "SELECT")
    assert theirs.keepers_url.startswith("postgres://rollcall_manage:")


def test_the_services_as_the_docs_start_them(theirs: Theirs, declared: Path, tmp_path: Path) -> None:
    """From an empty Redis: a keeper, query, an ingest to which nothing can be sent, and manage."""
    lines = re.findall(r"^    (.*\b(?:manage|query|ingest)_service\b.*)$", SERVICES, re.M)
    ports = {line: str(free_port()) for line in lines}
    _, query, ingest, manage = lines
    variables = {
        **{name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL", "AUTH")},
        **dict.fromkeys(("REDIS_MANAGE_URL", "REDIS_QUERY_URL", "REDIS_INGEST_URL"), theirs.valkey.url),
        "MANAGE_URL": theirs.keepers_url,
        "INGEST_URL": url_in(started_primary().url_of("ingest"), DATABASE),
        "ROLLCALL_FILE": str(declared),
        "WORKERS": "1",
        "TMPDIR": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    variables.pop("DJANGO_SETTINGS_MODULE")
    theirs.redis.flushall()
    with ExitStack() as running:
        for line in lines:
            started = subprocess.Popen(
                ["sh", "-c", f"exec env {line}"],
                cwd=ROOT,
                env={**variables, "PORT": ports[line]},
                stderr=subprocess.DEVNULL,
            )
            running.callback(started.wait)
            running.callback(started.terminate)

        def counts() -> dict[str, int]:
            _, body = ask(ports[query], "GET", "/v1/counts")
            return {name: counter.get("count", -1) for name, counter in body.get("counters", {}).items()}

        def wait_for_counts() -> None:
            wanted = {name: len(members) for name, members in theirs.truth().items()}
            wait_for(lambda: counts() == wanted, "query to answer what is in the tables", START_SECONDS)

        wait_for(lambda: ask(ports[ingest], "GET", "/readyz") == (200, READY), "ingest to be ready", START_SECONDS)
        wait_for_counts()
        theirs.write("INSERT INTO shop.baskets (owner) VALUES ('posted nowhere'); DELETE FROM crm_order")
        wait_for_counts()
        wait_for(
            lambda: ask(ports[manage], "GET", "/v1/status")[0] == 200, "manage to say how it stands", START_SECONDS
        )
        assert ask(ports[ingest], "POST", "/v1/baskets")[0] == ask(ports[ingest], "POST", "/v1/messages")[0] == 404
        _, before = ask(ports[query], "GET", "/v1/counts/owners")
        wait_for(
            lambda: ask(ports[query], "GET", "/v1/counts/owners")[1]["complete_through"] > before["complete_through"],
            "the pulse",
        )
        who = "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE datname = current_database() AND usename <> current_user"
        assert dict.fromkeys(name for (name,) in theirs.ask_primary(who)) == {"rollcall_ingest": None}
        assert theirs.exact()


def ask(port: str, method: str, path: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON; 0 while nobody answers."""
    with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)) as connection:
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or "{}")
        except OSError:
            return 0, {}
