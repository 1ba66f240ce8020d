"""Ingest's settings for this process, a migrated database, and empty stores for each test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import django
import pytest
from redis import Redis

from tests.declared import declare_ours
from tests.servers import sql, started_primary, started_valkey

os.environ["DATABASE_URL"] = started_primary().url
os.environ["REDIS_URL"] = started_valkey().url
os.environ["AUTH"] = "off"
os.environ["DJANGO_SETTINGS_MODULE"] = "ingest_service.settings"
subprocess.run([sys.executable, "-m", "ingest_service", "migrate", "--verbosity=0"], check=True)
declare_ours()
django.setup()

from django.db import connection  # noqa: E402

from ingest_service import asgi, stores  # noqa: E402
from ingest_service.api.application import Ingest, read_limits  # noqa: E402
from ingest_service.writing import transactions  # noqa: E402
from tests.ingest.producing import Producer  # noqa: E402
from tests.ingest.severing import Severing  # noqa: E402


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Producer]:
    """Somebody who sends requests, and can look into both stores, which are empty."""
    sql(started_primary(), "TRUNCATE message, receipt")
    monkeypatch.setattr(transactions, "_paused_until", 0.0)
    stores.redis_nodes.cache_clear()
    with started_valkey().client() as redis:
        redis.flushdb()
        application = Ingest(asgi.django, read_limits())
        yield Producer(redis, application)
        application.rows.close()
    connection.close()
    for each in stores.redis_nodes().forget_all():
        each.close()
    stores.redis_nodes.cache_clear()


@pytest.fixture
def redis(producer: Producer) -> Redis:
    """Redis itself."""
    return producer.redis


@pytest.fixture
def use_redis(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let ingest use another Redis."""

    def use(url: str) -> None:
        for each in stores.redis_nodes().forget_all():
            each.close()
        stores.redis_nodes.cache_clear()
        monkeypatch.setattr("django.conf.settings.REDIS_URL", url)

    return use


@pytest.fixture
def severing(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Severing]:
    """Ingest reaches the primary over a connection that a test can cut at a chosen moment."""
    connection.close()
    with Severing(started_primary().port) as proxy:
        monkeypatch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
        monkeypatch.setitem(connection.settings_dict, "PORT", proxy.port)
        yield proxy
        connection.close()
