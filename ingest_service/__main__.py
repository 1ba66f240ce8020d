"""`python -m ingest_service <command>`: migrate, load, write_messages, check, …"""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingest_service.settings")
    # These two are made for requests. A migration may build an index for an hour, and wait for its lock meanwhile.
    os.environ.setdefault("DATABASE_STATEMENT_SECONDS", "0")
    os.environ.setdefault("DATABASE_LOCK_SECONDS", "0")
    from django.core.management import execute_from_command_line

    execute_from_command_line(["ingest_service", *sys.argv[1:]])
