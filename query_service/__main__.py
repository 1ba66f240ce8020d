"""`python -m query_service <command>`: check, diffsettings, …"""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "query_service.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(["query_service", *sys.argv[1:]])
