"""The settings of an ordinary Django project: nothing in them is Rollcall's."""

import os

import dj_database_url

DATABASES = {"default": dj_database_url.config()}  # what DATABASE_URL says
INSTALLED_APPS = ["crm"]
SECRET_KEY = os.environ.get("SECRET_KEY", "not used by this example")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
