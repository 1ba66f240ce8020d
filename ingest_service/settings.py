"""Ingest's settings, from the environment; each variable X may come from a file named by X_FILE instead."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
from environs import EnvError, FileAwareEnv, ValidationError, validate

import shared_models.declarations  # noqa: F401  (a mistake in rollcall.toml ends the start here, too)
from shared_models import logs
from shared_models.stores import is_redis_url
from shared_models.web.security_headers import SILENCED_CHECKS
from shared_models.web.tokens import open_tokens

env = FileAwareEnv(strip_whitespace=True)
positive = validate.Range(min=0, min_inclusive=False, error="must be more than 0")
not_negative = validate.Range(min=0, error="must not be less than 0")


def is_postgres_url(url: str) -> None:
    """Refuse a URL that is not Postgres', with a clearer message than dj_database_url's."""
    if urlsplit(url).scheme not in ("postgres", "postgresql"):
        raise ValidationError("must be postgres://user:password@host:port/name, of the primary")


# scheme://host[:port], as browsers send it.
is_origin = validate.Regexp(r"(https?://[^/\s,]+)?\Z", error="must be https://host")

try:
    # The primary: postgres://user:password@host:port/name. Several hosts with ?target_session_attrs=read-write work.
    DATABASE_URL = env.str("DATABASE_URL", validate=is_postgres_url)
    # The database that belongs to Rollcall alone: redis://user:password@host:port/0
    REDIS_URL = env.str("REDIS_URL", validate=is_redis_url)

    # Limits of one request. Bytes are counted after unpacking gzip.
    MAX_BODY_BYTES = env.int("MAX_BODY_BYTES", 1 << 20, validate=positive)
    MAX_BATCH_BYTES = env.int("MAX_BATCH_BYTES", 64 << 20, validate=positive)
    MAX_BATCH_ROWS = env.int("MAX_BATCH_ROWS", 100_000, validate=positive)

    # Batches that a worker reads and stores at a time, each in a thread with a connection to the primary; others wait.
    BATCH_THREADS = env.int("BATCH_THREADS", 4, validate=positive)

    # For how long a retry with the same Idempotency-Key gets the first answer.
    IDEMPOTENCY_KEEP_HOURS = env.float("IDEMPOTENCY_KEEP_HOURS", 48.0, validate=positive)
    # A worker that has committed nothing for this long commits an empty transaction: see pulse.py. 0 turns it off.
    PULSE_SECONDS = env.float("PULSE_SECONDS", 1.0, validate=not_negative)

    # Another host of the primary is tried after this long without an answer; libpq takes whole seconds, 2 at least.
    DATABASE_CONNECT_SECONDS = env.int("DATABASE_CONNECT_SECONDS", 3, validate=positive)
    # The largest batch takes a few seconds. A longer statement holds back the horizon of every counter. 0 means no limit.
    DATABASE_STATEMENT_SECONDS = env.float("DATABASE_STATEMENT_SECONDS", 10.0, validate=not_negative)
    # A stopped primary applies no limit of its own: ingest gives up a transaction without an answer by then. 0: never.
    DATABASE_ANSWER_SECONDS = env.float("DATABASE_ANSWER_SECONDS", 15.0, validate=not_negative)
    # How long a request waits for another one with the same Idempotency-Key, or for a migration. 0 means no limit.
    DATABASE_LOCK_SECONDS = env.float("DATABASE_LOCK_SECONDS", 5.0, validate=not_negative)
    # After this time a worker that is stopped in the middle of a transaction no longer holds back the horizon.
    DATABASE_IDLE_SECONDS = env.float("DATABASE_IDLE_SECONDS", 30.0, validate=not_negative)
    # Ingest notices after this time that a primary has vanished (power, network), and not after a quarter of an hour.
    DATABASE_SILENCE_SECONDS = env.float("DATABASE_SILENCE_SECONDS", 10.0, validate=positive)
    # A connection is replaced by a new one after this long, so that a new primary behind the same name gets its share.
    DATABASE_CONNECTION_SECONDS = env.int("DATABASE_CONNECTION_SECONDS", 600, validate=not_negative)

    # How long a request waits for Redis before it answers "counted": false. The largest batch takes a quarter of it.
    REDIS_TIMEOUT_SECONDS = env.float("REDIS_TIMEOUT_SECONDS", 1.0, validate=positive)
    # How many replicas of Redis have to have the members before the answer is "counted": true.
    WAIT_REPLICAS = env.int("WAIT_REPLICAS", 0, validate=validate.Range(0, 5, error="must be 0 to 5"))

    # The tokens: see shared_models/web/tokens.py. Without tokens a service that writes does not start, unless AUTH=off.
    AUTH = env.str("AUTH", "")
    TOKENS = open_tokens(AUTH, env.str("TOKENS", ""), os.environ.get("TOKENS_FILE"))
    # Prometheus may have a token like every client; this is for one that cannot.
    METRICS_PUBLIC = env.bool("METRICS_PUBLIC", False)
    # Requests a second for each token, over all workers; 0 is no limit.
    RATE_LIMIT_PER_SECOND = env.int("RATE_LIMIT_PER_SECOND", 0, validate=not_negative)

    DEBUG = env.bool("DEBUG", False)
    SECRET_KEY = env.str("SECRET_KEY", "")  # only the admin signs anything
    ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
    # How long browsers use HTTPS only. Set it if TLS ends in front of this service; 0 sends no header.
    SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", 0, validate=not_negative)
    LOG_JSON = env.bool("LOG_JSON", None)

    DATABASES: dict[str, Any] = {"default": dj_database_url.parse(DATABASE_URL)}

    # Turns the admin pages on: the primary again, as the role that may look at rows and delete them.
    ADMIN_DATABASE_URL = env.str("ADMIN_DATABASE_URL", "", validate=lambda url: is_postgres_url(url) if url else None)
    # Where browsers reach them, "https://ingest.example.org". Cookies are for HTTPS only, unless this says http://.
    ADMIN_ORIGIN = env.str("ADMIN_ORIGIN", "", validate=is_origin)
    if ADMIN_DATABASE_URL:
        if not SECRET_KEY:
            raise EnvError('"SECRET_KEY" not set, and the admin (ADMIN_DATABASE_URL) signs its cookies with it')
        DATABASES["admin"] = dj_database_url.parse(ADMIN_DATABASE_URL)
except (EnvError, ValueError) as error:  # ValueError: from dj_database_url, for a text that is not a URL
    sys.exit(f"ingest_service: {error}. See docs/configuration.md.")

logs.configure("ingest", LOG_JSON, delayed=True)
LOGGING_CONFIG = None
# A refusal (404, 422, a Host that is not allowed) is an answer, which has its line already; an exception is a fault.
logging.getLogger("django.request").addFilter(lambda record: bool(record.exc_info))


def in_milliseconds(seconds: float) -> int:
    """How Postgres takes its timeouts."""
    return round(seconds * 1000)


DATABASES["default"]["CONN_MAX_AGE"] = DATABASE_CONNECTION_SECONDS
_options = DATABASES["default"].setdefault("OPTIONS", {})
_options.update(
    application_name="rollcall-ingest",
    connect_timeout=DATABASE_CONNECT_SECONDS,
    tcp_user_timeout=in_milliseconds(DATABASE_SILENCE_SECONDS),
    # Two probes in the same span, for a connection that only waits for an answer.
    keepalives_idle=max(1, int(DATABASE_SILENCE_SECONDS / 2)),
    keepalives_interval=max(1, int(DATABASE_SILENCE_SECONDS / 4)),
    keepalives_count=2,
    options=" ".join(
        [
            # Acknowledged means stored: set here, whatever the server's or the role's default is.
            "-c synchronous_commit=on",
            # Otherwise Django sets it by a statement of its own, and would wait for a primary that stops just then.
            "-c timezone=UTC",
            f"-c statement_timeout={in_milliseconds(DATABASE_STATEMENT_SECONDS)}",
            f"-c lock_timeout={in_milliseconds(DATABASE_LOCK_SECONDS)}",
            f"-c idle_in_transaction_session_timeout={in_milliseconds(DATABASE_IDLE_SECONDS)}",
            _options.get("options", ""),
        ]
    ).strip(),
)

SERVICE = "ingest"
SILENCED_SYSTEM_CHECKS = SILENCED_CHECKS
INSTALLED_APPS = [
    "shared_models.apps.SharedModelsConfig",
    "shared_models.web",
    "ingest_service.apps.IngestServiceConfig",
    "django.contrib.staticfiles",
    "drf_spectacular_sidecar",  # Swagger UI, for /docs
]
MIDDLEWARE = [
    "shared_models.web.django.HeadersMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "shared_models.web.django.StaticFilesMiddleware",
    "django.middleware.common.CommonMiddleware",
    "shared_models.web.django.ProblemMiddleware",
]
ROOT_URLCONF = "ingest_service.urls"
ASGI_APPLICATION = "ingest_service.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
    }
]
STATIC_URL = "/static/"
# The packages serve their own static files: there is nothing to collect.
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False
APPEND_SLASH = False
USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

if ADMIN_DATABASE_URL:
    DATABASES["admin"]["OPTIONS"] = _options | {
        **DATABASES["admin"].get("OPTIONS", {}),
        "application_name": "rollcall-admin",
        # Its statements read a page from an index. These settings make sure of it: no plan scans or sorts a table because
        # statistics are old, and a statement that still takes long is cancelled.
        "options": f"-c timezone=UTC -c statement_timeout={in_milliseconds(5)} -c lock_timeout={in_milliseconds(2)} "
        "-c idle_in_transaction_session_timeout=10000 -c enable_seqscan=off -c enable_bitmapscan=off -c enable_sort=off",
    }
    DATABASE_ROUTERS = ["ingest_service.admin.routing.AdminRouter"]
    INSTALLED_APPS += [
        "django.contrib.admin.apps.SimpleAdminConfig",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
    ]
    MIDDLEWARE += [
        "ingest_service.admin.middleware.ConnectionMiddleware",
        "ingest_service.admin.middleware.Sessions",
        "ingest_service.admin.middleware.SignedIn",
        "ingest_service.admin.middleware.Notices",
    ]
    TEMPLATES[0]["OPTIONS"] = {
        "context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]
    }
    AUTH_PASSWORD_VALIDATORS = [
        {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
        {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    ]
    SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = LOGIN_REDIRECT_URL = "/admin/"
    SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Strict"
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not ADMIN_ORIGIN.startswith("http://")
    CSRF_COOKIE_HTTPONLY = True
    SESSION_COOKIE_AGE = 8 * 3600  # a working day
    CSRF_TRUSTED_ORIGINS = [ADMIN_ORIGIN] if ADMIN_ORIGIN else []
    # The admin signs cookies, so the key has to be a good one.
    SILENCED_SYSTEM_CHECKS = [check for check in SILENCED_CHECKS if check != "security.W009"]
