"""Ingest's settings with the admin on, each connection with the role that it has in production."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import django
import pytest

from tests.declared import declare_ours
from tests.servers import sql, started_primary, started_valkey

primary = started_primary()
os.environ["DATABASE_URL"] = primary.url_of("ingest")
os.environ["ADMIN_DATABASE_URL"] = primary.url_of("admin")
os.environ["ADMIN_ORIGIN"] = "http://localhost"
os.environ["SECRET_KEY"] = "only for these tests, and long enough for the checks"
os.environ["REDIS_URL"] = started_valkey().url
os.environ["AUTH"] = "off"
os.environ["DJANGO_SETTINGS_MODULE"] = "ingest_service.settings"
OWNER = {**os.environ, "DATABASE_URL": primary.url_of("owner"), "ADMIN_PASSWORD": "correct horse battery"}


def run_as_owner(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of ingest, by the role that makes tables and users."""
    return subprocess.run(
        [sys.executable, "-m", "ingest_service", *command],
        env=OWNER | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


assert run_as_owner("migrate", "--verbosity=0").returncode == 0
assert run_as_owner("admin_user", "boss").returncode == 0
assert run_as_owner("admin_user", "viewer", "--view-only").returncode == 0
declare_ours()
django.setup()

from django.core.handlers.wsgi import WSGIRequest  # noqa: E402
from django.test import Client  # noqa: E402

# Django's client makes requests of WSGI's kind; the route is noted in ASGI's scope.
WSGIRequest.scope = {}  # type: ignore[attr-defined]

ROWS = 1_000


@pytest.fixture
def rows() -> Iterator[None]:
    """The table, filled: `common` has most of it, and the oldest of it."""
    sql(primary, "TRUNCATE message, django_admin_log, django_session RESTART IDENTITY")
    sql(
        primary,
        f"""INSERT INTO message (state, city, username, message)
            SELECT CASE WHEN n < {ROWS // 2} THEN 'ZZ' ELSE 'A' || n % 7 END, 'City ' || n % 100,
                   CASE WHEN n < {ROWS // 2} THEN 'common' ELSE 'user-' || n % 900 END, repeat('x', 50)
            FROM generate_series(1, {ROWS}) AS n""",
    )
    sql(primary, "ANALYZE message")
    yield
    sql(primary, "TRUNCATE message, django_admin_log, django_session")


def signed_in(name: str) -> Client:
    """A browser in which this user has signed in."""
    from django.contrib.auth.models import User

    client = Client(raise_request_exception=False, SERVER_NAME="localhost")
    client.force_login(User.objects.get_by_natural_key(name))
    return client


@pytest.fixture
def boss(rows: None) -> Client:
    """Somebody who may look and delete."""
    return signed_in("boss")


@pytest.fixture
def viewer(rows: None) -> Client:
    """Somebody who may look."""
    return signed_in("viewer")
