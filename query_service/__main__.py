"""`python -m query_service <command>`: check."""

from shared_models.commands import run

COMMANDS = {"check": "Check the settings, without touching a store."}

if __name__ == "__main__":
    run("query_service", COMMANDS)
