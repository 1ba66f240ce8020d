"""A Django project of one file with one handler for one message, as a first version would do it.

`naive`: the ORM's save(), then a Redis pipeline, for each request. No metrics, no log, no tokens; validation only
checks that the model's fields are there.
"""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

import dj_database_url
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from redis import Redis

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": dj_database_url.parse(os.environ["DATABASE_URL"], conn_max_age=600)},
    INSTALLED_APPS=["shared_models"],
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    LOGGING_CONFIG=None,
)
django.setup()

from shared_models.models import Message  # noqa: E402


@cache
def open_redis() -> Redis:
    """The client of this process."""
    return Redis.from_url(os.environ["REDIS_URL"])


def naive(request: HttpRequest) -> JsonResponse:
    """Stored, then counted, then answered. Its sets are its own: they are not Rollcall's counters."""
    sent: dict[str, Any] = json.loads(request.body)
    row = Message(**sent)
    row.save()
    pipe = open_redis().pipeline(transaction=False)
    pipe.sadd("bench:cities", json.dumps([row.state, row.city]))
    pipe.sadd("bench:users", row.username)
    pipe.execute()
    return JsonResponse({"id": row.id, "counted": True}, status=201)


urlpatterns = [path("naive", naive)]
application = get_wsgi_application()
