"""Ingest's settings for this process, so that its command can be called here. No table of Rollcall's own is made."""

from __future__ import annotations

import os

import django

from tests.servers import started_primary

os.environ["DATABASE_URL"] = started_primary().url
os.environ["REDIS_URL"] = "redis://127.0.0.1:1/0"
os.environ["AUTH"] = "off"
os.environ["DJANGO_SETTINGS_MODULE"] = "ingest_service.settings"
django.setup()
