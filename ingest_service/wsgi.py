"""What gunicorn serves."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingest_service.settings")

from django.conf import settings
from django.core.wsgi import get_wsgi_application

django = get_wsgi_application()

from ingest_service.front import Front  # noqa: E402
from shared_models.http.door import put_door  # noqa: E402

front = Front(django)
# The admin asks for a name and a password itself.
ADMIN = bool(settings.ADMIN_DATABASE_URL)
application = put_door(
    front,
    settings,
    also_open=frozenset({"/admin"} if ADMIN else ()),  # it leads to the folder
    open_folders=("/admin/",) if ADMIN else (),
)
