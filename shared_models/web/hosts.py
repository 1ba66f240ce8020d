"""The hosts that a service answers to, for the code in front of Django."""

from __future__ import annotations

from functools import lru_cache

from django.conf import settings
from django.http.request import split_domain_port, validate_host


@lru_cache(maxsize=256)
def is_allowed(host: str | bytes) -> bool:
    """Whether Django would answer a request with this Host."""
    domain, _ = split_domain_port(host if isinstance(host, str) else host.decode("latin-1"))
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)
