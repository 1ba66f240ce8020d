"""Ingest's worker where there is room for little. gunicorn is told of it by its name."""

from __future__ import annotations

from shared_models.http import worker
from shared_models.http.worker import Worker  # noqa: F401  (gunicorn looks for it)

worker.HELD_BYTES = 2 << 20
