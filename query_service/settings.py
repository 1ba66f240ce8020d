"""Query's settings, from the environment; each variable X may come from a file named by X_FILE instead.

Everything is read from Redis: there are no DATABASES, and no driver of one is installed.
"""

from __future__ import annotations

import logging
import os
import sys

from environs import EnvError, FileAwareEnv, validate

import shared_models.declarations  # noqa: F401  (a mistake in rollcall.toml ends the start here, too)
from shared_models import logs
from shared_models.stores import is_redis_url
from shared_models.web.security_headers import SILENCED_CHECKS
from shared_models.web.tokens import open_tokens

env = FileAwareEnv(strip_whitespace=True)
positive = validate.Range(min=0, min_inclusive=False, error="must be more than 0")
not_negative = validate.Range(min=0, error="must not be less than 0")

# scheme://host[:port], as browsers send it; or * for all of them.
is_origin = validate.Regexp(r"(\*|https?://[^/\s,]+)\Z", error="must be https://host, or *")


try:
    # The database that belongs to Rollcall alone: redis://user:password@host:port/0
    REDIS_URL = env.str("REDIS_URL", validate=is_redis_url)

    # How often a worker reads the counts while clients ask for them, and how long it goes on after the last request.
    REFRESH_SECONDS = env.float("REFRESH_SECONDS", 0.05, validate=positive)
    IDLE_SECONDS = env.float("IDLE_SECONDS", 10.0, validate=positive)
    # How long query gives the last answer, marked as stale, while Redis cannot be read.
    STALE_SECONDS = env.float("STALE_SECONDS", 10.0)
    # The most members that one request may ask for.
    MAX_MEMBERS = env.int("MAX_MEMBERS", 1_000, validate=positive)
    # The most members that one question about sets may look at (/v1/algebra). 100,000 keep Redis busy for 6 to 25 ms.
    ALGEBRA_MEMBERS = env.int("ALGEBRA_MEMBERS", 100_000, validate=not_negative)
    # The shortest time between two events of a stream, and the longest between two heartbeats: complete_through,
    # or a comment, so that proxies do not close the stream.
    STREAM_SECONDS = env.float("STREAM_SECONDS", 0.1, validate=positive)
    HEARTBEAT_SECONDS = env.float("HEARTBEAT_SECONDS", 5.0, validate=positive)
    # The most streams open in one worker; each takes about 20 kB.
    MAX_STREAMS = env.int("MAX_STREAMS", 5_000, validate=positive)
    # The most of these for one client: one token, or one address if there are no tokens. 0 means that a client has
    # no limit of its own: behind a proxy all clients may have one address.
    MAX_STREAMS_PER_CLIENT = env.int("MAX_STREAMS_PER_CLIENT", 0, validate=not_negative)
    # The most bytes of a request's body: a thousand members with every character escaped take half of it.
    MAX_BODY_BYTES = env.int("MAX_BODY_BYTES", 4 << 20, validate=positive)

    # The tokens: see shared_models/web/tokens.py. Without tokens query is public: counts are made to be shown.
    AUTH = env.str("AUTH", "")
    TOKENS = open_tokens(AUTH, env.str("TOKENS", ""), os.environ.get("TOKENS_FILE"))
    METRICS_PUBLIC = env.bool("METRICS_PUBLIC", False)
    # Counts as pictures, and as pages for frames, for everybody: also if query wants tokens for all else.
    BADGES = env.bool("BADGES", False)
    # Pages of these origins may read the answers: "https://dash.example.org,https://…", or "*".
    CORS_ORIGINS: list[str] = env.list(
        "CORS_ORIGINS", [], validate=lambda origins: [is_origin(origin) for origin in origins]
    )

    DEBUG = env.bool("DEBUG", False)
    SECRET_KEY = env.str("SECRET_KEY", "")  # nothing here signs anything
    ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
    # How long browsers use HTTPS only. Set it if TLS ends in front of this service; 0 sends no header.
    SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", 0, validate=not_negative)
    LOG_JSON = env.bool("LOG_JSON", None)
    # Also write a log line for each standing answer and stream. Such a line costs more than the answer.
    ACCESS_LOG = env.bool("ACCESS_LOG", False)
except (EnvError, ValueError) as error:  # ValueError: what is wrong with TOKENS
    sys.exit(f"query_service: {error}. See docs/configuration.md.")

logs.configure("query", LOG_JSON, delayed=True)
LOGGING_CONFIG = None
# A refusal (404, 503 while a counter is cold) is an answer, which the metrics count; an exception is a fault.
logging.getLogger("django.request").addFilter(lambda record: bool(record.exc_info))

DATABASES: dict[str, dict[str, str]] = {}
SERVICE = "query"
SILENCED_SYSTEM_CHECKS = SILENCED_CHECKS
INSTALLED_APPS = [
    "shared_models.web",
    "query_service",
    "drf_spectacular_sidecar",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "shared_models.web.django.HeadersMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",  # gives every answer its length
    "shared_models.web.django.StaticFilesMiddleware",
    "shared_models.web.django.ProblemMiddleware",
]
ROOT_URLCONF = "query_service.urls"
ASGI_APPLICATION = "query_service.asgi.application"
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True},
]
STATIC_URL = "/static/"
# The packages serve their own static files: there is nothing to collect.
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False
APPEND_SLASH = False
USE_TZ = True
TIME_ZONE = "UTC"
