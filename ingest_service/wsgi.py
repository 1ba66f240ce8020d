"""What gunicorn serves."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingest_service.settings")
django = get_wsgi_application()

from ingest_service.front import Front  # noqa: E402

application = Front(django)
