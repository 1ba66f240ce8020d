"""docs/cluster.md, "More shards", step by step, while clients write and ask all the time."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import sys
import threading
from collections.abc import Iterator

import pytest

from compose.local.ordinary_user import CHECKOUT, own
from compose.local.services import Service, Web
from compose.local.stack import Stack
from tests.servers import free_port, wait_for
from tests.system.asking import Witness, ask, count, distinct_users, mend


def declare(stack: Stack, lines: str) -> None:
    """Add these lines to users. Services see them at their next start."""
    packaged = (CHECKOUT / "shared_models" / "rollcall.toml").read_text()
    stack.declarations_path.write_text(packaged.replace("[counters.users]", f"[counters.users]\n{lines}"))
    own(stack.declarations_path)


def restart(*services: Service) -> None:
    for service in services:
        service.stop()
    for service in services:
        service.begin()
    for service in services:
        service.wait_until_ready()


def is_live(stack: Stack, name: str) -> bool:
    """Whether manage says that the counter is live."""
    counter = ask(stack.manage, "GET", "/v1/status")[1]["counters"][name]
    return bool(counter["state"] == "live" and counter["complete_through"])


@pytest.fixture
def two_shards(live: Stack) -> Iterator[Stack]:
    """The stack with two shards for users, and exact counters. Afterwards it is as it was."""
    declare(live, "shards = 2")
    restart(*live.services)
    wait_for(lambda: count(live) is not None, "the build", seconds=30)
    mend(live)
    orphans(live)
    yield live
    live.declarations_path.unlink()
    restart(*live.services)
    orphans(live)


@pytest.fixture
def second_query(two_shards: Stack) -> Iterator[Web]:
    """Another instance of query, which does not run yet."""
    folder, variables = two_shards.folder / "query-2", two_shards.query.variables
    query = Web(folder, free_port(), variables, application="query_service.asgi", log=two_shards.folder / "query-2.log")
    yield query
    query.stop()


def orphans(stack: Stack) -> list[str]:
    """Remove the keys that no declaration names any longer; what the command says."""
    command = [sys.executable, "-m", "manage_service", "orphans", "--remove"]
    return stack.manage.run(command, stack.manage.variables()).splitlines()


@contextlib.contextmanager
def writing(witness: Witness, name: str, lacking: list[str]) -> Iterator[None]:
    """Within the block somebody posts new users. `lacking`: what was counted, and is not a member right then."""
    stopping = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if stopping.wait(0.02):
                return
            username, is_counted = f"{name}-{number}", False
            with contextlib.suppress(OSError, http.client.HTTPException):  # ingest may be away
                is_counted = witness.post(username)
            for query in list(witness.queries) if is_counted else ():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    status, answer = ask(query, "GET", f"/v1/counts/users/member?username={username}")
                    if (status, answer.get("member")) != (200, True):
                        lacking.append(f"{query.name}: {username}: {status} {answer}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stopping.set()
        writer.join()


@pytest.mark.long
def test_P2_P4_more_shards_while_clients_write_and_read(two_shards: Stack, second_query: Web) -> None:
    """No answer is cold or wrong, and what is acknowledged as counted is in the next answer, also while one query reads the
    present shards and the other one the next."""
    stack, lacking = two_shards, list[str]()
    with Witness(stack) as witness, writing(witness, "more-shards", lacking):
        declare(stack, "shards = 2\nnext_shards = 4")
        restart(stack.ingest)
        restart(stack.manage, stack.keeper)
        wait_for(lambda: is_live(stack, "users@4"), "the next shards", seconds=30)
        assert is_live(stack, "users")

        declare(stack, "shards = 4")
        second_query.start()
        witness.queries.append(second_query)
        asked = len(witness.answers)
        wait_for(lambda: len(witness.answers) > asked + 50, "answers of both")
        restart(stack.query)
        restart(stack.ingest)
        restart(stack.manage, stack.keeper)
        (removed,) = orphans(stack)
        assert removed.startswith("users.") and removed.endswith("done=removed")
    assert not witness.refused and not witness.wrong and not lacking and len(witness.answers) > 100
    wait_for(lambda: count(stack) == distinct_users(stack), "the count to be exact")
