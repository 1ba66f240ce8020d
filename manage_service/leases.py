"""Leases: a process says what it is doing, so that no other process does the same.

A token, a time to live, renewal, compare-and-delete: like redis-py's Lock, with an exception of its own. Two processes
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

from shared_models.nodes import Nodes
from shared_models.protocol import keys

# Longer than one statement on the replica may take (`snapshots.ANSWER_SECONDS`) plus a fifth of a lease, which may have
# passed since its renewal; and short enough that another keeper continues soon after a crash. A process that is blocked
# for longer finds that its lease is lost, and stops.
LEASE_SECONDS = 9.0


class LeaseLost(Exception):
    """The lease expired while its holder was stopped; another process may hold it now. Stop, and take it again."""


class Lease:
    """A lease of LEASE_SECONDS, renewed by its holder between two steps."""

    def __init__(self, nodes: Nodes[Redis], name: str) -> None:
        self._nodes, self._key = nodes, keys.of_lock(name)
        self._made: Lock | None = None
        self._renewed_at = 0.0

    @property
    def _lock(self) -> Lock:
        """The lock, at the server that holds it now. Raises redis.RedisError."""
        redis = self._nodes.of(self._key)
        if self._made is None:
            self._made = Lock(redis, self._key, timeout=LEASE_SECONDS, blocking=False, thread_local=False)
        self._made.redis = redis
        return self._made

    def acquire(self) -> bool:
        """Take it, unless another process has it; returns whether this process has it now."""
        # The token says who holds the lease; the random part makes it unique.
        taken = bool(self._lock.acquire(token=f"{socket.gethostname()}:{os.getpid()}:{token_hex(8)}"))
        if taken:
            self._renewed_at = time.monotonic()
        return taken

    def renew(self) -> None:
        """Renew it. Call this between any two steps; only some calls cost a round trip. Raises LeaseLost."""
        if time.monotonic() - self._renewed_at < LEASE_SECONDS / 5:
            return
        try:
            self._lock.reacquire()
        except LockError as error:
            raise LeaseLost(str(error)) from error
        self._renewed_at = time.monotonic()

    def release(self) -> None:
        """Release it, if this process still has it."""
        try:
            self._lock.release()
        except LockError:
            pass  # expired, or never held: the same result


class Holder(msgspec.Struct):
    """A process, by its host and id."""

    host: str
    pid: int


def read_holder(nodes: Nodes[Redis], name: str) -> Holder | None:
    """The process that holds the lease of this name now; None if none does."""
    key = keys.of_lock(name)
    token = cast("bytes | None", nodes.of(key).get(key))
    match (token or b"").decode().rsplit(":", 2):
        case [host, pid, _]:
            return Holder(host, int(pid))
    return None


@contextmanager
def held(lease: Lease) -> Iterator[bool]:
    """The lease for a block; False if another process has it."""
    taken = lease.acquire()
    try:
        yield taken
    finally:
        if taken:
            lease.release()
