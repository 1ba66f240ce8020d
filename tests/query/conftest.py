"""Query's settings for this process, and the service driven in it: no socket between a test and the application."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from redis import Redis

from tests.declared import declare_ours
from tests.servers import started_valkey

os.environ["REDIS_URL"] = started_valkey().url
os.environ["DJANGO_SETTINGS_MODULE"] = "query_service.settings"
declare_ours()
django.setup()

from tests.query.driving import Query  # noqa: E402
from tests.query.rolls_in_redis import Rolls  # noqa: E402


@pytest.fixture
def rolls() -> Iterator[Rolls]:
    """An empty Redis, and the steps by which manage and ingest write there."""
    with started_valkey().client() as client:
        client.flushdb()
        yield Rolls(client)


@pytest.fixture
def start_query() -> Iterator[Callable[..., Query]]:
    """A factory of the service: `start_query(url, refresh_seconds=…)`. What it made is closed at the end."""
    made: list[Query] = []

    def start(url: str | None = None, **changed: Any) -> Query:
        made.append(Query(url or started_valkey().url, **changed))
        return made[-1]

    yield start
    for query in made:
        query.close()


@pytest.fixture
def query(rolls: Rolls, start_query: Callable[..., Query]) -> Query:
    """The service over an empty Redis."""
    return start_query()


@pytest.fixture
def redis(rolls: Rolls) -> Redis:
    """The empty Redis itself."""
    return rolls.client
