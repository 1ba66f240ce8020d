"""An application's database, adopted by the command as in docs/adopt.md, and a keeper that may only read it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psycopg2
import pytest
from django.conf import settings

from compose.local.servers import Postgres, Primary, Replica, postgres_program
from manage_service.keeper.loop import Keeper
from manage_service.runs import registry
from shared_models import declarations
from shared_models.declarations import get_counter
from shared_models.protocol.timeline import SOURCE_SQL
from tests.manage.keepers import keeper_at_work, tick_until
from tests.manage.world import World
from tests.servers import sql, started_valkey

ROOT = Path(__file__).parents[2]


def url_in(url: str, database: str) -> str:
    return f"{url.rpartition('/')[0]}/{database}"


class Theirs(World):
    """A database of somebody else, on a server of this process; `url` is its owner's, who is no superuser."""

    def __init__(self, primary: Postgres, replica: Postgres, database: str) -> None:
        self.url = url_in(f"postgres://app:app@127.0.0.1:{primary.port}/", database)
        # Seen by the superuser, who compares.
        writes, reads = (SimpleNamespace(url=url_in(server.url, database)) for server in (primary, replica))
        super().__init__(cast("Primary", writes), cast("Replica", reads), started_valkey())
        ((self.source,),) = self.ask_primary(f"SELECT {SOURCE_SQL}")
        self.keepers_url = url_in(replica.url_of("manage"), database)

    def replay(self) -> None:
        """Where it is read itself there is nothing to wait for."""
        if self.primary.url != self.replica_server.url:
            super().replay()

    def write(self, statement: str) -> None:
        """As the application, in a session of its own."""
        with closing(psycopg2.connect(self.url)) as session, session.cursor() as cursor:
            session.autocommit = True
            cursor.execute(statement)

    def python(self, module: str) -> None:
        """A program of the application."""
        run_python(module, DATABASE_URL=self.url)

    def program(self, name: str, *arguments: str, given: bytes = b"") -> bytes:
        """One of Postgres' own programs, as the application; what it printed."""
        done = subprocess.run([postgres_program(name), *arguments], input=given, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def runs(self) -> int:
        return len(registry.latest(self.redis, 1000))

    def table_of(self, name: str) -> set[bytes]:
        return self.table(get_counter(name))

    def truth(self) -> dict[str, set[bytes]]:
        return {counter.name: self.table(counter) for counter in declarations.COUNTERS}

    def is_settled(self) -> bool:
        """All is counted that can be: exact, reconciled once, no departure left to look at, nothing asked for."""
        found = [self.state(counter.name) for counter in declarations.COUNTERS]
        return (
            all(state.source == self.source and not state.cold and state.verified_at for state in found)
            and all(state.left_through == state.cursor for state in found)
            and not registry.still_open(self.redis)
            and self.exact()
        )

    def follow(self, keeper: Keeper) -> None:
        """Tick until the keeper is done, with what is committed now."""
        self.replay()
        tick_until(keeper, self.is_settled, "the counts to be exact")


def run_python(module: str, *arguments: str, **variables: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def make_theirs(server: Primary, database: str) -> str:
    """An empty database with an owner of its own; the owner's URL."""
    if not sql(server, "SELECT 1 FROM pg_roles WHERE rolname = 'app'"):
        sql(server, "CREATE ROLE app LOGIN PASSWORD 'app'")
    sql(server, f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
    sql(server, f"CREATE DATABASE {database} OWNER app TEMPLATE template0")
    return url_in(f"postgres://app:app@127.0.0.1:{server.port}/", database)


def adopt(url: str, declared: Path) -> None:
    """As docs/adopt.md says it."""
    ours = {"DJANGO_SETTINGS_MODULE": "ingest_service.settings", "ROLLCALL_FILE": str(declared)}
    run_python("ingest_service", "adopt", "--apply", DATABASE_URL=url, **ours)


@contextmanager
def declaring(text: str, path: Path) -> Iterator[Path]:
    """This is declared: in a file, and in this process."""
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        tables, counters = declarations.read_file(path)
        patch.setattr(declarations, "TABLES", tables)
        patch.setattr(declarations, "COUNTERS", counters)
        yield path


@contextmanager
def keeper_of(theirs: Theirs) -> Iterator[Keeper]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DATABASE_URL", theirs.keepers_url)
        with keeper_at_work() as keeper:
            yield keeper
