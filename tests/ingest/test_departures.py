"""The triggers of `message` from its migration: they note deletes and updates, and an INSERT runs no trigger."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from shared_models import declarations, triggers
from tests.servers import database_of_its_own, sql, started_primary

INSERT = "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Ithaca', 'ann', ''), ('NY', 'Utica', 'bob', '')"


def run(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return sql(started_primary(), statement, *parameters)


def departed(name: str) -> list[tuple[Any, ...] | None]:
    """The members that were noted since the last time; [None] for "all"."""
    counter = declarations.get_counter(name)
    texts = "SELECT unnest(coalesce(element, ARRAY[NULL])) FROM gone"
    found = run(
        f"WITH gone AS (DELETE FROM {triggers.DEPARTURE} WHERE counter = %s RETURNING element) {texts}",
        triggers.key(counter),
    )
    if set(found) == {(None,)}:  # once for each partition
        return [None]
    return [*sorted(zip(*[iter(text for (text,) in found)] * len(counter.fields), strict=True))]


def migrate(to: str, url: str) -> None:
    command = [sys.executable, "-m", "ingest_service", "migrate", "--verbosity=0", "--skip-checks", "shared_models", to]
    subprocess.run(command, check=True, env={**os.environ, "DATABASE_URL": url})


@pytest.fixture(autouse=True)
def no_rows() -> None:
    run(f"TRUNCATE message; TRUNCATE {triggers.DEPARTURE}")


def test_deletes_updates_and_truncate() -> None:
    run(INSERT)
    assert departed("users") == departed("cities") == []
    run("UPDATE message SET message = 'x'")
    assert departed("users") == departed("cities") == []
    run("UPDATE message SET city = 'Albany' WHERE username = 'ann'")
    assert (departed("users"), departed("cities")) == ([], [("NY", "Ithaca")])
    run("DELETE FROM message")
    assert departed("users") == [("ann",), ("bob",)] and departed("cities") == [("NY", "Albany"), ("NY", "Utica")]
    run("TRUNCATE message")
    assert departed("users") == departed("cities") == [None]


def test_no_trigger_is_called_by_an_insert() -> None:
    on_insert = (
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'message'::regclass AND NOT tgisinternal AND tgtype & 4 = 4"
    )
    assert run(on_insert) == []


def test_an_existing_table_is_migrated_without_a_rewrite() -> None:
    """It stays as it is: `partition` makes it a partitioned one."""
    with database_of_its_own("earlier") as url:
        migrate("0002", url)

        def ask(statement: str) -> list[tuple[Any, ...]]:
            with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

        ours = f"SELECT count(*) FROM pg_trigger WHERE starts_with(tgname, '{triggers.PREFIX}')"
        file = "SELECT relkind, relfilenode FROM pg_class WHERE oid = 'message'::regclass"
        ask(INSERT)
        assert ask(ours) == [(0,)]
        before = ask(file)
        migrate("0004", url)
        assert ask(file) == before and before[0][0] == "r" and ask(ours) == [(4,)]
        ask("DELETE FROM message WHERE username = 'ann'")
        assert ask(f"SELECT element FROM {triggers.DEPARTURE} WHERE counter LIKE 'users:%%'") == [([["ann"]],)]


def test_each_role_may_do_what_it_needs() -> None:
    def may(role: str) -> set[str]:
        rights = "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS may"
        asked = f"SELECT may FROM {rights} WHERE has_table_privilege(%s, '{triggers.DEPARTURE}', may)"
        return {right for (right,) in run(asked, role)}

    assert may("rollcall_manage") == {"SELECT"} and may("rollcall_ingest") == {"SELECT", "INSERT", "DELETE"}
    assert may("rollcall_admin") == set()


def test_adopt_finds_nothing_to_do() -> None:
    command = [sys.executable, "-m", "ingest_service", "adopt", "message"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, "all is there already" in done.stderr) == ("", True)
    undone = subprocess.run([*command, "--undo"], check=False, capture_output=True, text=True)
    assert "is Rollcall's own: its migrations make it" in undone.stderr
