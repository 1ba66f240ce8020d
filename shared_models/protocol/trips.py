"""Round trips to several servers of Redis at the same time, in one thread: all commands are sent before an answer is read.

A trip is a generator that yields once, when its commands are sent, and returns what came of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from math import inf
from typing import Any, TypeAlias, TypeVar, cast

from hiredis import pack_command
from redis import Redis
from redis.exceptions import ResponseError, TimeoutError

T = TypeVar("T")
Trip: TypeAlias = Generator[None, None, T]
Argument: TypeAlias = bytes | str | int
Command: TypeAlias = tuple[Argument, ...]
# A server that had its time while the replies of others were read gets only so long: it may have replied meanwhile.
LEAST_SECONDS = 0.01
PACK = cast("Callable[[Command], bytes]", pack_command)  # its stub allows one argument only


def send(client: Redis, commands: Sequence[Command]) -> Trip[list[Any]]:
    """The replies to these commands, over one connection, as Redis sends them; an error is a reply, too. Raises redis.RedisError.

    The first reply is awaited for `socket_timeout` since sending: so several servers that hang take no longer than one.
    redis-py's own pipeline cannot wait between sending and reading, and packs commands three times as slowly.
    """
    pool = client.connection_pool
    connection = pool.get_connection()
    is_read = False
    try:
        connection.send_packed_command([b"".join(map(PACK, commands))])
        sent_at, seconds = time.monotonic(), connection.socket_timeout
        yield
        replies: list[Any] = []
        for _ in commands:
            first = {}
            if not replies and seconds is not None:
                first["timeout"] = max(seconds - (time.monotonic() - sent_at), LEAST_SECONDS)
            try:
                replies.append(connection.read_response(**first))
            except ResponseError as error:
                replies.append(error)
        is_read = True
        return replies
    finally:
        if not is_read:
            connection.disconnect()  # or the next user would read replies that are not for him
        pool.release(connection)


def finish(trip: Trip[T]) -> T:
    """Its result. Raises its errors."""
    while True:
        try:
            next(trip)
        except StopIteration as ended:
            found: T = ended.value
            return found


def finish_all(
    trips: Iterable[Trip[T]], expected: tuple[type[Exception], ...], begin_seconds: float = inf
) -> list[T | Exception]:
    """The results of trips that go on at the same time, in their order. An expected exception is a result, too.

    Connecting is one after the other. A trip that has not begun after `begin_seconds` does not begin: its result is
    redis.TimeoutError.
    """
    until = time.monotonic() + begin_seconds
    results: list[T | Exception | None] = []
    under_way: list[tuple[int, Trip[T]]] = []
    try:
        for place, trip in enumerate(trips):
            results.append(None)
            if time.monotonic() > until:
                results[place] = TimeoutError("other servers took too long")
                continue
            try:
                next(trip)
                under_way.append((place, trip))
            except StopIteration as ended:
                results[place] = ended.value
            except expected as error:
                results[place] = error
        for place, trip in under_way:
            try:
                results[place] = finish(trip)
            except expected as error:
                results[place] = error
    finally:
        for _, trip in under_way:
            trip.close()
    return results  # type: ignore[return-value]  # each place has been set
