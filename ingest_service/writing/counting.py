"""Adds the members of stored rows to their counters, if Redis can be written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import msgspec
import structlog
from django.conf import settings
from redis import Redis
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from ingest_service import metrics, stores
from ingest_service.catalog import Collection
from shared_models.declarations import Counter
from shared_models.nodes import Nodes
from shared_models.protocol import elements, keys, steps, storages, trips
from shared_models.protocol.storages import Found
from shared_models.protocol.trips import Trip

log = structlog.get_logger()

# The elements of some rows, by the name of their counter.
Members: TypeAlias = dict[str, list[bytes]]

# After Redis has not answered, no request asks it for this long. Otherwise every request would wait for the whole time
# limit, and a few threads would serve only a few requests a second while Redis hangs.
PAUSE_SECONDS = 0.5
# Servers of a cluster that a request has not asked after so many times REDIS_TIMEOUT_SECONDS are not asked: one has hung while
# ingest connected to it, and then another one.
BEGIN_SHARE = 1.5
# The part of REDIS_TIMEOUT_SECONDS that a request waits for replicas (WAIT_REPLICAS) …
WAIT_SHARE = 0.5
# … and how long the next ones wait if replicas did not acknowledge in time: until one of these waits succeeds, or PAUSE_SECONDS
# have passed, and then twice as many each time, up to LONGEST_PAUSE_SECONDS.
SHORT_WAIT_MILLISECONDS = 10
LONGEST_PAUSE_SECONDS = 30.0

# Why a member may not be counted.
UNCOUNTED = (RedisError, steps.TooLate, steps.TooManyGroups, steps.NotCopied)

# By server: monotonic seconds. Written by any thread without a lock: the worst is that two of them try at once.
_paused_until: WeakKeyDictionary[Redis, float] = WeakKeyDictionary()
# The same for its replicas, and how long that pause is.
_replicas_late: WeakKeyDictionary[Redis, tuple[float, float]] = WeakKeyDictionary()


def count(collection: Collection, found: Members, rows: int, xact: int, source: str) -> bool:
    """Add the members of these committed rows to their counters; whether all of them are in the sets now, and in those of
    WAIT_REPLICAS replicas.

    False is not an error: the rows are stored, and catch-up counts them. If one server of a cluster does not answer, members
    that it does not hold are counted.
    """
    nodes, reasons, added = stores.redis_nodes(), [], 0
    try:
        servers = by_server(nodes, collection, found)
        on_each = (_count_on(client, parts, xact, source) for client, parts in servers)
        for result in trips.finish_all(on_each, UNCOUNTED, BEGIN_SHARE * settings.REDIS_TIMEOUT_SECONDS):
            if isinstance(result, int):
                added += result
            else:
                nodes.look_again()
                reasons.append(str(result))
                added += result.added if isinstance(result, steps.NotCopied) else 0
    except RedisError as error:  # nobody says which server holds them
        reasons.append(str(error))
    except Exception:
        # A bug in Rollcall. The rows are stored, and a client that gets an error would send them again.
        log.exception("record.not_counted", collection=collection.name, rows=rows)
        return False
    metrics.NEW_MEMBERS.labels(collection.name).inc(added)
    if reasons:
        log.warning("record.not_counted", collection=collection.name, rows=rows, reason="; ".join(reasons))
    return not reasons


def _count_on(client: Redis, parts: Sequence[tuple[Counter, list[bytes]]], xact: int, source: str) -> Trip[int]:
    """Add the elements of these parts, which this server has; how many were new."""
    with _unless_paused(client), _copies_on(client) as copies:
        some = {part.name: elements_of for part, elements_of in parts}
        return (yield from steps.recorded(client, some, xact, source, copies=copies))


def by_server(
    nodes: Nodes[Redis], collection: Collection, found: Members
) -> list[tuple[Redis, list[tuple[Counter, list[bytes]]]]]:
    """The elements of each part of the counters, by the client of the server that holds it. Raises redis.RedisError."""
    parts = [each for counter in collection.counters for each in elements.by_part(counter, found[counter.name])]
    return nodes.by_client(parts, lambda each: keys.home_of(each[0]))


def are_counted(collection: Collection, rows: Sequence[msgspec.Struct]) -> list[bool]:
    """For each of these rows, whether all its members are in the sets now (as `count`); False if Redis does not say.

    False, too, if counters need the day on which a row was written: nobody knows that day any longer.
    """
    if collection.times:
        return [False] * len(rows)
    try:
        encoded = {counter.name: encode(counter, rows, ()) for counter in collection.counters}
        counted: set[tuple[str, bytes]] = set()
        servers = by_server(stores.redis_nodes(), collection, encoded)
        for client, parts in servers:
            with _unless_paused(client):
                for part, some in parts:
                    for chunk in steps.chunks(some):
                        answers = storages.find(client, keys.of_counter(part.name), chunk)
                        counted |= {
                            (part.whole, each)
                            for each, answer in zip(chunk, answers, strict=True)
                            if answer is Found.THERE
                        }
        if settings.WAIT_REPLICAS:
            results = trips.finish_all((_copied_on(client, parts[0][0]) for client, parts in servers), UNCOUNTED)
            errors = [result for result in results if isinstance(result, Exception)]
            if errors:
                raise errors[0]
    except UNCOUNTED as error:
        stores.redis_nodes().look_again()
        log.warning("record.not_looked_up", collection=collection.name, rows=len(rows), reason=str(error))
    except Exception:
        log.exception("record.not_looked_up", collection=collection.name, rows=len(rows))
    else:
        return [all((name, some[n]) in counted for name, some in encoded.items()) for n in range(len(rows))]
    return [False] * len(rows)


def members_of(collection: Collection, rows: Sequence[msgspec.Struct], days: Sequence[str] = ()) -> Members:
    """The distinct elements that these rows have in each counter of the collection; `days`: the values of `Collection.times`."""
    known, found = dict(zip(collection.times, days, strict=True)), Members()
    for counter in collection.counters:
        of_counter = [known[each] for each in counter.terms if each.unit]
        # With the next number of shards the elements are the same.
        found[counter.name] = found.get(counter.next_of) or encode(counter, rows, of_counter, distinct=True)
    return found


def encode(
    counter: Counter, rows: Sequence[msgspec.Struct], days: Sequence[str], *, distinct: bool = False
) -> list[bytes]:
    """The elements of these rows. `days`: the counter's days, which are the same for all rows."""
    columns = [each.column for each in counter.terms if not each.unit]
    found = map(attrgetter(*columns), rows) if columns else [()] * len(rows)
    values: Iterable[Any] = set(found) if distinct else found
    tuples = zip(values, strict=True) if len(columns) == 1 else values
    if days:
        tuples = (with_days(counter, row, days) for row in tuples)
    return elements.encode_all(counter, tuples)


def with_days(counter: Counter, row: Sequence[Any], days: Sequence[str]) -> tuple[Any, ...]:
    """The values of a row, and the days, in the order of the terms."""
    of_row, of_day = iter(row), iter(days)
    return tuple(next(of_day if each.unit else of_row) for each in counter.terms)


@contextmanager
def _unless_paused(client: Redis) -> Iterator[None]:
    """Raise at once if this server has just failed to answer; remember it if it fails now."""
    if time.monotonic() < _paused_until.get(client, 0.0):
        raise ConnectionError("Redis did not answer a moment ago")
    try:
        yield
    except (ConnectionError, TimeoutError):
        _paused_until[client] = time.monotonic() + PAUSE_SECONDS
        raise


def _copied_on(client: Redis, part: Counter) -> Trip[None]:
    """Wait until replicas have all that the server of this part has. Raises NotCopied, redis.RedisError."""
    with _unless_paused(client), _copies_on(client) as copies:
        if copies:
            yield from steps.copied(client, part.name, copies)


@contextmanager
def _copies_on(client: Redis) -> Iterator[steps.Copies | None]:
    """How many replicas of this server have to have the members; None if that does not matter."""
    if not settings.WAIT_REPLICAS:
        yield None
        return
    until, pause = _replicas_late.get(client, (0.0, PAUSE_SECONDS / 2))
    is_late = time.monotonic() < until
    whole = settings.REDIS_TIMEOUT_SECONDS * WAIT_SHARE * 1000
    milliseconds = min(whole, SHORT_WAIT_MILLISECONDS) if is_late else whole
    try:
        yield steps.Copies(settings.WAIT_REPLICAS, max(1, int(milliseconds)))
        _replicas_late.pop(client, None)
    except steps.NotCopied:
        if not is_late:  # otherwise nobody would ever wait for the whole time again
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            _replicas_late[client] = time.monotonic() + pause, pause
        raise
