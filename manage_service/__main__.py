"""`python -m manage_service <command>`: keeper, reconcile, status, orphans, check."""

from shared_models.commands import run

COMMANDS = {
    "keeper": "Build cold counters, catch up, and reconcile on schedule and when asked, until SIGTERM.",
    "reconcile": "Reconcile counters with their tables here and now, and report the drift; --check only compares.",
    "status": "Show the state of each counter, the replica and the keeper.",
    "orphans": "List the keys in Redis that no declaration names any longer; --remove removes them.",
    "check": "Check the settings and the counters; with --database default, also whether the counters fit the database.",
}

if __name__ == "__main__":
    run("manage_service", COMMANDS)
