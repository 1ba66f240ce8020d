"""What gunicorn serves."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "manage_service.settings")

from django.conf import settings
from django.core.wsgi import get_wsgi_application

django = get_wsgi_application()

from shared_models.http.door import put_door  # noqa: E402

application = put_door(django, settings)
