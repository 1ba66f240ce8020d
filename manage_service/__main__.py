"""`python -m manage_service <command>`: keeper, reconcile, status, orphans, check."""

from shared_models.commands import run

COMMANDS = {
    "keeper": "Build cold counters, catch up, and reconcile on schedule and when asked, until SIGTERM.",
    "reconcile": "Make counters equal the table, here and now, and report the drift; --check only looks.",
    "status": "Show how each counter, the replica and the keeper stand.",
    "orphans": "List the keys in Redis that no declaration names any longer; --remove removes them.",
    "check": "Look whether settings and counters can work; with --database default, whether the counters fit the database.",
}

if __name__ == "__main__":
    run("manage_service", COMMANDS)
