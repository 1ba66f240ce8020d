"""Adds the members of stored rows to their counters, if Redis can be written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter
from typing import Any, TypeAlias

import msgspec
import structlog
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from ingest_service import metrics, stores
from ingest_service.catalog import Collection
from shared_models.declarations import Counter
from shared_models.protocol import keys, members, steps

log = structlog.get_logger()

# The members of some rows, by the name of their counter: {"users": {b"ann"}}.
Members: TypeAlias = dict[str, list[bytes]]

# After Redis has not answered, no request asks it for this long. Otherwise every request would wait for the whole time
# limit, and a few threads would serve only a few requests a second while Redis hangs.
PAUSE_SECONDS = 0.5

# Monotonic seconds. Written by any thread without a lock: the worst is that two of them try at once.
_paused_until = 0.0


def count(collection: Collection, found: Members, rows: int, xact: int, source: str) -> bool:
    """Add the members of these committed rows to their counters; whether all of them are in the sets now.

    False is not an error: the rows are stored, and catch-up counts them.
    """
    try:
        with _unless_paused():
            added = steps.record(stores.open_redis(), found, xact, source)
    except (RedisError, steps.TooLate) as error:
        log.warning("record.not_counted", collection=collection.name, rows=rows, reason=str(error))
        return False
    except Exception:
        # A bug in Rollcall. The rows are stored, and a client that gets an error would send them again.
        log.exception("record.not_counted", collection=collection.name, rows=rows)
        return False
    metrics.NEW_MEMBERS.labels(collection.name).inc(added)
    return True


def are_counted(collection: Collection, rows: Sequence[msgspec.Struct]) -> list[bool]:
    """For each of these rows, whether all its members are in the sets now; False if Redis does not say."""
    try:
        with _unless_paused():
            pipe = stores.open_redis().pipeline(transaction=False)
            for counter in collection.counters:
                for chunk in steps.chunks(encode(counter, map(attrgetter(*counter.fields), rows))):
                    pipe.smismember(keys.of_counter(counter.name).members, list(chunk))
            found = list(chain.from_iterable(pipe.execute()))
    except RedisError as error:
        log.warning("record.not_looked_up", collection=collection.name, rows=len(rows), reason=str(error))
    except Exception:
        log.exception("record.not_looked_up", collection=collection.name, rows=len(rows))
    else:
        # The answers to all rows for the first counter, then those for the next.
        return [all(found[n :: len(rows)]) for n in range(len(rows))]
    return [False] * len(rows)


def members_of(collection: Collection, rows: Sequence[msgspec.Struct]) -> Members:
    """The distinct members that these rows have in each counter of the collection."""
    return {
        counter.name: encode(counter, set(map(attrgetter(*counter.fields), rows))) for counter in collection.counters
    }


def encode(counter: Counter, values: Iterable[Any]) -> list[bytes]:
    """The members for the results of attrgetter on rows: the value of one field, or a tuple of several."""
    tuples = zip(values, strict=True) if len(counter.fields) == 1 else values
    return members.encode_all(tuples, len(counter.fields))


@contextmanager
def _unless_paused() -> Iterator[None]:
    """Raise at once if Redis has just failed to answer; remember it if Redis fails now."""
    global _paused_until
    if time.monotonic() < _paused_until:
        raise ConnectionError("Redis did not answer a moment ago")
    try:
        yield
    except (ConnectionError, TimeoutError):
        _paused_until = time.monotonic() + PAUSE_SECONDS
        raise
