"""The application of one worker, for gunicorn."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingest_service.settings")

from django.core.asgi import get_asgi_application

django = get_asgi_application()

from ingest_service.api.application import Ingest, read_limits  # noqa: E402

application = Ingest(django, read_limits())
