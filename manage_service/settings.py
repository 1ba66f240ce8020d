"""Manage's settings, from the environment; each variable X may come from a file named by X_FILE instead.

There is no DATABASES: manage reads the replica with its own SQL (`replica/sql.py`) over one connection, not by the ORM.
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

try:
    # The replica (or, on a small site, the only database): postgres://user:password@host:port/name
    DATABASE_URL = env.str("DATABASE_URL")
    # The database that belongs to Rollcall alone: redis://user:password@host:port/0
    REDIS_URL = env.str("REDIS_URL", validate=is_redis_url)

    # How often the keeper catches up, and how often it reconciles each counter.
    CATCH_UP_SECONDS = env.float("CATCH_UP_SECONDS", 0.25, validate=positive)
    RECONCILE_SECONDS = env.float("RECONCILE_SECONDS", 3600.0, validate=positive)
    # How long a run waits until the replica shows what ingest has acknowledged, before it fails with the reason.
    FENCE_SECONDS = env.float("FENCE_SECONDS", 60.0, validate=positive)

    # The tokens: see shared_models/web/tokens.py. Without tokens a service that writes does not start, unless AUTH=off.
    AUTH = env.str("AUTH", "")
    TOKENS = open_tokens(AUTH, env.str("TOKENS", ""), os.environ.get("TOKENS_FILE"))
    # Prometheus may have a token like every client; this is for one that cannot.
    METRICS_PUBLIC = env.bool("METRICS_PUBLIC", False)
    # Requests a second for each token, over all workers; 0 is no limit.
    RATE_LIMIT_PER_SECOND = env.int("RATE_LIMIT_PER_SECOND", 0, validate=not_negative)

    DEBUG = env.bool("DEBUG", False)
    SECRET_KEY = env.str("SECRET_KEY", "")  # nothing here signs anything
    ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
    # How long browsers use HTTPS only. Set it if TLS ends in front of this service; 0 sends no header.
    SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", 0, validate=not_negative)
    LOG_JSON = env.bool("LOG_JSON", None)
except (EnvError, ValueError) as error:  # ValueError: what is wrong with TOKENS
    sys.exit(f"manage_service: {error}. See docs/configuration.md.")

logs.configure("manage", LOG_JSON)
LOGGING_CONFIG = None
# A refusal (404, 422, a Host that is not allowed) is an answer; an exception is a fault.
logging.getLogger("django.request").addFilter(lambda record: bool(record.exc_info))

SERVICE = "manage"
SILENCED_SYSTEM_CHECKS = SILENCED_CHECKS
INSTALLED_APPS = [
    "shared_models",
    "shared_models.web",
    "manage_service",
    "drf_spectacular_sidecar",  # Swagger UI's files, for /docs
    "django.contrib.staticfiles",
]
# Tokens, request ids, limits and the log line are not Django's work: see shared_models/web/application.py.
MIDDLEWARE = [
    "shared_models.web.django.HeadersMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "shared_models.web.django.StaticFilesMiddleware",
    "django.middleware.common.CommonMiddleware",
    "shared_models.web.django.ProblemMiddleware",
]
ROOT_URLCONF = "manage_service.urls"
ASGI_APPLICATION = "manage_service.asgi.application"
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True},
]
STATIC_URL = "/static/"
# The packages serve their own static files: there is nothing to collect.
WHITENOISE_USE_FINDERS = True
APPEND_SLASH = False
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
