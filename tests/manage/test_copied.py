"""Copies of an adopted database: another database of the same server, a dump on another server, a logical replica there.

Rows of a copy carry the xacts of another history, lower and higher ones than the copy's own. All of them are counted, and no
number that is served as live is another one than that of a database whose rows are known to be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.local.servers import Primary
from manage_service.keeper.loop import Keeper
from tests.manage.keepers import tick_until
from tests.manage.theirs import Theirs, adopt, declaring, keeper_of, make_theirs
from tests.servers import FAST, free_port, servers_folder, sql, start, started_primary, started_replica, wait_for

DECLARED = """
    [tables]
    baskets = {name = "public.baskets", fields = {owner = "text"}}

    [counters]
    owners = {table = "baskets", member = ["owner"], where = "closed_at IS NULL"}
"""
BASKETS = """
    CREATE TABLE baskets (id bigserial PRIMARY KEY, owner text, closed_at timestamptz);
    INSERT INTO baskets (owner) SELECT 'owner' || n % 20 FROM generate_series(1, 60) AS n
"""


@pytest.fixture(scope="module")
def green() -> Primary:
    """A server of another history, which has given out more xacts than the copied rows have, or fewer."""
    server = Primary(servers_folder() / "green", free_port(), settings=FAST, dies_with_parent=True)
    start(server)
    return server


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with declaring(DECLARED, tmp_path_factory.mktemp("declared") / "rollcall.toml") as path:
        yield path


@pytest.fixture
def blue(declared: Path) -> Iterator[Theirs]:
    """An adopted database, of which a keeper has counted all."""
    url = make_theirs(started_primary(), "blue")
    blue = Theirs(started_primary(), started_replica(), "blue")
    blue.redis.flushall()
    blue.write(BASKETS)
    adopt(url, declared)
    with keeper_of(blue) as keeper:
        blue.follow(keeper)
    yield blue
    blue.close()
    sql(started_primary(), "DROP DATABASE blue WITH (FORCE)")


@pytest.fixture
def copy(request: pytest.FixtureRequest, green: Primary) -> Iterator[Theirs]:
    """An empty database on the other server, which is read itself."""
    make_theirs(green, "copy")
    copy = Theirs(green, green, "copy")
    yield copy
    copy.close()


def restore(blue: Theirs, copy: Theirs, *options: str) -> None:
    """What is in the one, into the other, as pg_dump and pg_restore do it: rows first, then triggers."""
    dump = blue.program("pg_dump", "-Fc", *options, blue.url)
    copy.program("pg_restore", "--exit-on-error", "-d", copy.url, given=dump)


def with_xact(theirs: Theirs, owner: str, xact: str) -> None:
    """A row whose xact is another one than that of its transaction: as it comes with a copy."""
    theirs.write(f"""
        ALTER TABLE baskets DISABLE TRIGGER zzz_rollcall_insert;
        INSERT INTO baskets (owner, xact) VALUES ('{owner}', {xact});
        ALTER TABLE baskets ENABLE ALWAYS TRIGGER zzz_rollcall_insert
    """)


def follow_from(before: set[bytes], copy: Theirs, keeper: Keeper) -> None:
    """Tick until the copy is counted. What is live meanwhile is the number from before, or the copy's."""

    def is_settled() -> bool:
        state, counted, rows = copy.state("owners"), copy.set("owners"), copy.table_of("owners")
        assert state.cold or counted in (before, before | rows, rows)
        assert state.complete_through == began or counted >= rows, "it claims rows that it has not counted"
        return copy.is_settled()

    began = copy.state("owners").complete_through
    tick_until(keeper, is_settled, "the copy to be counted")


def test_another_database_of_the_same_server(blue: Theirs) -> None:
    """Both databases have one count of xacts: a row that is written to the copy before the switch is below the cursor."""
    make_theirs(started_primary(), "other_blue")
    other = Theirs(started_primary(), started_replica(), "other_blue")
    restore(blue, other)
    other.write("DELETE FROM baskets WHERE owner = 'owner1'; INSERT INTO baskets (owner) VALUES ('of the copy')")
    with keeper_of(blue) as keeper:
        blue.write("INSERT INTO baskets (owner) VALUES ('of the old one')")
        blue.follow(keeper)
    other.replay()
    with keeper_of(other) as keeper:
        follow_from(blue.set("owners"), other, keeper)
    other.close()
    sql(started_primary(), "DROP DATABASE other_blue WITH (FORCE)")


@pytest.mark.parametrize("how", ["restored over it", "renamed"])
def test_another_table_of_the_same_name(blue: Theirs, declared: Path, how: str) -> None:
    """Its rows carry xacts below the cursor, and nothing says when they came."""
    dump = blue.program("pg_dump", "-Fc", blue.url)
    with keeper_of(blue) as keeper:
        blue.write("INSERT INTO baskets (owner) VALUES ('of the first'); DELETE FROM baskets WHERE owner = 'owner1'")
        blue.follow(keeper)
        before = blue.set("owners")
        if how == "renamed":
            blue.write("""
                CREATE TABLE others (LIKE baskets INCLUDING ALL);
                INSERT INTO others (owner, xact) VALUES ('of the second', 5);
                BEGIN; DROP TABLE baskets CASCADE; ALTER TABLE others RENAME TO baskets; COMMIT
            """)
            adopt(blue.url, declared)
        else:
            blue.program("pg_restore", "--clean", "--if-exists", "--exit-on-error", "-d", blue.url, given=dump)
        blue.replay()
        assert blue.table_of("owners") - before, "members that were not there"
        follow_from(before, blue, keeper)


def test_a_dump_that_is_restored_on_another_server(blue: Theirs, copy: Theirs) -> None:
    """Its rows have xacts of the old server: lower ones than the copy's, a far one, and some that it will give out soon."""
    ((soon,),) = copy.ask_primary("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    foreign = {"low": "3", "far": str(10**12), **{f"soon{n}": str(soon + n) for n in range(40, 120)}}
    for owner, xact in foreign.items():
        with_xact(blue, owner, xact)
    restore(blue, copy)
    assert copy.ask_primary("SELECT count(*) FROM baskets WHERE xact = 3 OR xact >= %s", soon) >= [(3,)]
    with keeper_of(copy) as keeper:
        follow_from(blue.set("owners"), copy, keeper)
        runs = copy.runs()
        copy.write("DELETE FROM baskets WHERE owner IN ('low', 'far', 'soon40', 'owner2')")
        copy.write("UPDATE baskets SET owner = owner || 'er' WHERE owner IN ('soon41', 'owner3')")
        copy.follow(keeper)
        for _ in range(150):  # past those that lay ahead
            copy.ask_primary("SELECT pg_current_xact_id()")
        copy.write("INSERT INTO baskets (owner) VALUES ('later'); DELETE FROM baskets WHERE owner = 'soon119'")
        copy.follow(keeper)
        assert copy.runs() == runs, "departures did it, and no reconcile"


def test_a_logical_replica_that_takes_over(blue: Theirs, copy: Theirs, green: Primary) -> None:
    """The first copy, then what its subscription applies; the keeper goes over in between, and stays when it is promoted."""
    restore(blue, copy, "--schema-only")
    blue.ask_primary("CREATE PUBLICATION changes FOR TABLE baskets")
    copy.ask_primary(f"CREATE SUBSCRIPTION changes CONNECTION '{blue.primary.url}' PUBLICATION changes")
    try:
        subscribed = "SELECT srsubstate FROM pg_subscription_rel"
        wait_for(lambda: copy.ask_primary(subscribed) == [("r",)], "the first copy")
        blue.replay()
        with keeper_of(copy) as keeper:
            follow_from(blue.set("owners"), copy, keeper)
            runs = copy.runs()
            blue.write("""
                INSERT INTO baskets (owner) VALUES ('applied'), ('for a moment');
                UPDATE baskets SET owner = 'changed' WHERE owner = 'owner1';
                UPDATE baskets SET closed_at = now() WHERE owner = 'owner2';
                DELETE FROM baskets WHERE owner IN ('owner3', 'for a moment')
            """)
            rows = "SELECT id, owner, closed_at FROM baskets ORDER BY id"
            wait_for(lambda: copy.ask_primary(rows) == blue.ask_primary(rows), "the changes to be applied")
            copy.follow(keeper)
            copy.ask_primary("DROP SUBSCRIPTION changes")
            copy.write(
                "INSERT INTO baskets (id, owner) VALUES (1000, 'own'); DELETE FROM baskets WHERE owner = 'owner4'"
            )
            copy.follow(keeper)
            assert copy.runs() == runs, "departures did it, and no reconcile"
    finally:
        copy.ask_primary("DROP SUBSCRIPTION IF EXISTS changes")
