"""Leases: a process says what it is doing, so that no other one does it, too.

A token, a time to live, renewal, compare-and-delete: redis-py's Lock, with a name for what went wrong. Two processes
may hold the same lease for a moment, if one was stopped for longer than its time to live. That does no harm: the
protocol is safe without leases.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import cast

import msgspec
from redis import Redis
from redis.exceptions import LockError
from redis.lock import Lock

from shared_models.protocol import keys

# Longer than one statement on the replica may take (`snapshots.ANSWER_SECONDS`) and the fifth of a lease that may have passed
# since it was renewed; and short enough that another keeper goes on soon after a crash. A process that is held up for
# longer finds its lease lost, and stops.
LEASE_SECONDS = 9.0


class LeaseLost(Exception):
    """The lease ran out while its holder was stopped; somebody else may hold it now. Stop, and ask again."""


class Lease:
    """A lease of LEASE_SECONDS, renewed by its holder between two steps."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._lock = Lock(redis, keys.of_lock(name), timeout=LEASE_SECONDS, blocking=False, thread_local=False)
        self._renewed_at = 0.0

    def acquire(self) -> bool:
        """Take it, unless somebody else has it."""
        # The token says who holds the lease; the random part makes it unique.
        taken = bool(self._lock.acquire(token=f"{socket.gethostname()}:{os.getpid()}:{token_hex(8)}"))
        if taken:
            self._renewed_at = time.monotonic()
        return taken

    def renew(self) -> None:
        """Keep it. To be called between any two steps; only some calls cost a round trip. Raises LeaseLost."""
        if time.monotonic() - self._renewed_at < LEASE_SECONDS / 5:
            return
        try:
            self._lock.reacquire()
        except LockError as error:
            raise LeaseLost(str(error)) from error
        self._renewed_at = time.monotonic()

    def release(self) -> None:
        """Give it back, if it is still ours."""
        try:
            self._lock.release()
        except LockError:
            pass  # ran out, or never held: the same end


class Holder(msgspec.Struct):
    """A process, by its host and id."""

    host: str
    pid: int


def read_holder(redis: Redis, name: str) -> Holder | None:
    """The process that holds the lease of this name at the moment; None if none does."""
    token = cast("bytes | None", redis.get(keys.of_lock(name)))
    match (token or b"").decode().rsplit(":", 2):
        case [host, pid, _]:
            return Holder(host, int(pid))
    return None


@contextmanager
def held(lease: Lease) -> Iterator[bool]:
    """The lease for a block; False if somebody else has it."""
    taken = lease.acquire()
    try:
        yield taken
    finally:
        if taken:
            lease.release()
