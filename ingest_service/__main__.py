"""`python -m ingest_service <command>`: migrate, load, write_messages, admin_user, adopt, partition, retain, check."""

import os
import sys

from shared_models.commands import run

COMMANDS = {
    "migrate": "Make or update the tables, and grant the roles their rights. Run by the owner of the tables.",
    "showmigrations": "List the migrations, and which of them have run.",
    "load": "Store the rows of a file, and count them; --resume continues an interrupted load.",
    "write_messages": "Write generated messages, as many and as fast as you say.",
    "admin_user": "Let somebody sign in to the admin, or no longer (--disable). Run by the owner of the tables.",
    "adopt": "Make a table of your own countable, or undo that (--undo): print the SQL, or run it (--apply). Run by its owner.",
    "partition": "Partition a table by month while rows come in, without moving a row. Run by the owner of the tables.",
    "retain": "Retire the partitions that hold only old rows, and have their members leave the counts. Run by the owner.",
    "check": "Check settings, tables and counters, without touching a store.",
}

if __name__ == "__main__":
    # These two limits are for requests. A migration may build an index for an hour, and wait for its lock meanwhile.
    os.environ.setdefault("DATABASE_STATEMENT_SECONDS", "0")
    os.environ.setdefault("DATABASE_LOCK_SECONDS", "0")
    if sys.argv[1:2] in (["adopt"], ["partition"]):  # settings want one; these use none
        os.environ.setdefault("REDIS_URL", "redis://unused")
    run("ingest_service", COMMANDS)
