"""What gunicorn serves."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "manage_service.settings")

from django.conf import settings
from django.core.wsgi import get_wsgi_application

django = get_wsgi_application()

from manage_service.bodies import WholeBodies  # noqa: E402
from manage_service.site.console import PATH  # noqa: E402
from shared_models.http.door import put_door  # noqa: E402

# The console is open: it shows nothing until its reader gives it a token, which it then sends with each question.
application = put_door(WholeBodies(django), settings, also_open=frozenset({PATH}))
