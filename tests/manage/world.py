"""A small world in which a test is every actor: producers, the keeper, operators, an eraser. The test chooses each step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg2
from redis import Redis

from compose.local.servers import Primary, Replica, Valkey
from manage_service import stores
from manage_service.protocol.build import build
from manage_service.protocol.catch_up import Memory, Pass, catch_up
from manage_service.protocol.in_step import in_step
from manage_service.protocol.progress import Progress, Steps
from manage_service.protocol.sweep import sweep
from manage_service.replica import snapshots
from manage_service.runs import registry
from manage_service.runs.execution import execute
from manage_service.runs.registry import Mode, Run
from shared_models import declarations
from shared_models.declarations import Counter, get_counter
from shared_models.nodes import Nodes, only
from shared_models.protocol import keys, states, steps
from shared_models.protocol.members import encode, encode_all
from shared_models.protocol.timeline import SOURCE_SQL
from tests import servers

INSERT = "INSERT INTO message (state, city, username, message) VALUES ('NY', %s, %s, '') RETURNING xact"


class Producer:
    """One request at ingest, taken apart: insert, commit, count."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.connection = psycopg2.connect(world.primary.url)
        self.rows: list[tuple[str, str]] = []
        self.xact = 0
        self.source = ""

    def insert(self, *usernames: str, city: str = "Ithaca") -> Producer:
        with self.connection.cursor() as cursor:
            for username in usernames:
                cursor.execute(INSERT, (city, username))
                ((self.xact,),) = cursor.fetchall()
                self.rows.append((city, username))
            cursor.execute(f"SELECT {SOURCE_SQL}")
            ((self.source,),) = cursor.fetchall()
        return self

    def commit(self) -> Producer:
        self.connection.commit()
        self.connection.close()
        return self

    def count(self) -> Producer:
        added = {
            "users": [encode((username,)) for _, username in self.rows],
            "cities": [encode(("NY", city)) for city, _ in self.rows],
        }
        steps.record(self.world.redis, added, self.xact, self.source)
        return self


class World:
    """The servers of this process, and what the actors do with them."""

    def __init__(self, primary: Primary, replica: Replica, valkey: Valkey) -> None:
        self.primary, self.replica_server, self.valkey = primary, replica, valkey
        self.redis = Redis.from_url(valkey.url)
        self.nodes = only(self.redis)
        self.replica = stores.connect_replica(replica.url)
        self.opened: list[Redis] = []
        self.database = psycopg2.connect(primary.url)
        self.database.autocommit = True

    def ask_primary(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own, over a connection that stays."""
        with self.database.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> None:
        self.ask_primary("TRUNCATE message")
        self.redis.flushall()
        self.replay()

    def close(self) -> None:
        self.replica.close()
        self.database.close()
        for client in (self.redis, *self.opened):
            client.close()

    def redis_of(self, part: Counter) -> Redis:
        """A client of the server that holds this part."""
        return self.nodes.of(keys.home_of(part))

    # -- producers and the eraser

    def begin(self) -> Producer:
        """A request whose transaction is open."""
        return Producer(self)

    def post(self, *usernames: str, city: str = "Ithaca") -> Producer:
        """A request from beginning to end."""
        return self.begin().insert(*usernames, city=city).commit().count()

    def store(self, *usernames: str, city: str = "Ithaca") -> Producer:
        """A request whose Redis step failed, or whose process died: committed, not counted."""
        return self.begin().insert(*usernames, city=city).commit()

    def erase(self, username: str) -> None:
        self.ask_primary("DELETE FROM message WHERE username = %s", username)

    def replay(self) -> None:
        """Wait until the replica shows all that is committed."""
        servers.wait_until_replayed(self.primary, self.replica_server)

    def replay_paused(self):
        return servers.replay_paused(self.replica_server)

    # -- the keeper and operators

    def passes(self) -> Redis:
        """A connection for a pass."""
        self.opened.append(stores.connect_for_passes(self.valkey.url))
        return self.opened[-1]

    def nodes_for_passes(self) -> Nodes[Redis]:
        """The servers, for a pass."""
        if self.nodes.is_one:
            return only(self.passes())
        nodes = stores.nodes_for_passes()
        self.opened += [nodes.at(self.nodes.where(keys.home_of(part))) for part in declarations.parts()]
        return nodes

    def catch_up(self, name: str = "users") -> Pass:
        return pass_over(get_counter(name), self.replica, self.passes())

    def build(self, *names: str) -> None:
        for name in names or [counter.name for counter in declarations.COUNTERS]:
            parts = [part for part in declarations.parts() if name in (part.name, part.whole)]
            builds = {part.name: build(part, self.replica, self.passes()) for part in parts}
            for _ in in_step(builds, self.replica, raising):
                pass

    def ask(self, *names: str, mode: Mode = Mode.REPAIR) -> Run:
        return registry.create(
            self.nodes.of(keys.RUNS), names or [counter.name for counter in declarations.COUNTERS], mode, asked_by="cli"
        )

    def runs_get(self, run_id: str) -> Run:
        return registry.get(self.redis, run_id)

    def steps(self, run: Run, wait_seconds: float = 20.0) -> Steps:
        return execute(run, self.replica, self.nodes_for_passes(), wait_seconds=wait_seconds)

    def steps_in(self, filters: dict[str, Any]) -> Steps:
        """A run of users, which leaves its filter there."""
        return execute(self.ask("users"), self.replica, only(self.passes()), wait_seconds=20.0, filters=filters)

    def reconcile(self, *names: str, mode: Mode = Mode.REPAIR, wait_seconds: float = 20.0) -> Run:
        """A run from beginning to end."""
        run = self.ask(*names, mode=mode)
        for _ in self.steps(run, wait_seconds):
            pass
        return run

    # -- what is true, and what is counted

    def table(self, counter: Counter) -> set[bytes]:
        texts = ", ".join(f'"{field}"::text' for field in counter.fields)
        counts = " AND ".join(
            [f'"{field}" IS NOT NULL' for field in counter.fields] + [counter.where.replace("%", "%%") or "true"]
        )
        place = f'"{counter.table.schema}"."{counter.table.relation}"'
        return set(
            encode_all(self.ask_primary(f"SELECT DISTINCT {texts} FROM {place} WHERE {counts}"), len(counter.fields))
        )

    def set(self, name: str = "users") -> set[bytes]:
        return cast("set[bytes]", self.redis.smembers(keys.of_counter(name).members))

    def state(self, name: str = "users") -> states.State:
        return states.read_state(self.redis, name)

    def exact(self, names: Iterable[str] = ()) -> bool:
        """Set == SELECT DISTINCT, member by member, for these counters (or all)."""
        return all(
            self.set(name) == self.table(get_counter(name)) for name in names or [c.name for c in declarations.COUNTERS]
        )


def raising(name: str, error: Exception) -> None:
    raise error


def pass_over(
    counter: Counter,
    replica: snapshots.Replica,
    redis: Redis,
    memory: Memory | None = None,
    between: Callable[[], None] = lambda: None,
) -> Pass:
    """A pass over a counter with one shard."""
    return catch_up([counter], replica, only(redis), memory, between)[counter.name]


def sweep_of(world: World) -> Generator[Progress, None, bool]:
    """A sweep of users, by itself."""
    return sweep(
        get_counter("users"), world.replica, world.passes(), take_out=True, found=lambda members: None, expected=1
    )


@contextmanager
def held_between_steps(steps: Generator[Progress, None, Any], phase: str) -> Iterator[None]:
    """Run a job up to its first step in this phase; the block happens there; then run it to its end."""
    for progress in steps:
        if progress.phase == phase:
            break
    else:
        raise AssertionError(f"the job never came to {phase}")
    yield
    for _ in steps:
        pass
