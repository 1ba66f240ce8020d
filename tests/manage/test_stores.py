"""The connections of requests: a few, kept, and each used by one request at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from manage_service import stores
from tests.manage.world import World


def test_requests_that_come_at_once_share_a_few_connections_to_the_replica_and_take_turns(world: World) -> None:
    in_use: set[int] = set()
    seen: set[int] = set()
    most, lock = 0, threading.Lock()
    full = threading.Barrier(stores.REQUESTS_AT_REPLICA)

    def ask(number: int) -> None:
        nonlocal most
        with stores.replica_of_requests() as replica, replica.snapshot():
            assert replica._connection is not None
            backend = replica._connection.info.backend_pid
            with lock:
                assert backend not in in_use
                in_use.add(backend)
                seen.add(backend)
                most = max(most, len(in_use))
            full.wait(20)  # as many as there may be at once are here at once
            with lock:
                in_use.remove(backend)

    turns = 3
    with ThreadPoolExecutor(turns * stores.REQUESTS_AT_REPLICA) as threads:
        list(threads.map(ask, range(turns * stores.REQUESTS_AT_REPLICA)))
    assert most == len(seen) == stores.REQUESTS_AT_REPLICA
