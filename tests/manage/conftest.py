"""Manage's settings for this process, a migrated database, and an empty world for each test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import django
import pytest

from tests.declared import declare_ours
from tests.servers import started_primary, started_replica, started_valkey

os.environ["DATABASE_URL"] = started_replica().url
os.environ["REDIS_URL"] = started_valkey().url
os.environ["AUTH"] = "off"
os.environ["DJANGO_SETTINGS_MODULE"] = "manage_service.settings"
subprocess.run(
    [sys.executable, "-m", "ingest_service", "migrate", "--verbosity=0", "--skip-checks"],
    env={**os.environ, "DATABASE_URL": started_primary().url, "DJANGO_SETTINGS_MODULE": "ingest_service.settings"},
    check=True,
)
declare_ours()
django.setup()

from manage_service.asgi import application  # noqa: E402
from manage_service.keeper.loop import Keeper  # noqa: E402
from tests.asgi import Client  # noqa: E402
from tests.manage.keepers import keeper_at_work  # noqa: E402
from tests.manage.world import World  # noqa: E402


@pytest.fixture
def world() -> Iterator[World]:
    """Empty tables and an empty Redis; the replica is where the primary is."""
    world = World(started_primary(), started_replica(), started_valkey())
    world.empty()
    yield world
    world.close()


@pytest.fixture
def client() -> Iterator[Client]:
    """A client of the service in this process."""
    client = Client(application)
    yield client
    client.close()


@pytest.fixture
def keeper(world: World) -> Iterator[Keeper]:
    """A keeper of this world that the test ticks."""
    with keeper_at_work() as keeper:
        yield keeper
