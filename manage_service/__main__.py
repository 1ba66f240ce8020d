"""`python -m manage_service <command>`: keeper, reconcile, status, check, …"""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "manage_service.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(["manage_service", *sys.argv[1:]])
