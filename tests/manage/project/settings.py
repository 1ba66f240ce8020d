"""Its settings."""

import os

import dj_database_url

DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"])}
INSTALLED_APPS = ["django.contrib.contenttypes", "tests.manage.project.crm"]
SECRET_KEY = "theirs"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
