#!/usr/bin/env python
"""Django's commands for the example project: `python docs/examples/django_project/manage.py migrate`."""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
