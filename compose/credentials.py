"""`python3 -m compose.credentials`: makes the secrets of a deployment in compose/secrets. Needs nothing but Python.

It keeps existing secrets. Run it again after an upgrade: it adds new ones. A role's password is only in the URL of
the service that uses it: compose/postgres/make_roles.sh and compose/redis/start.sh read it from there.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "secrets"

NO_TOKENS = "# name:sha256, one a line: python -m shared_models.web.tokens NAME\n"


def contents(store_of_manage: str) -> dict[str, str]:
    """Each file and its contents. Passwords are letters and digits, so that no URL needs escapes."""

    def password() -> str:
        return secrets.token_hex(24)

    def database(role: str, host: str) -> str:
        return f"postgres://rollcall_{role}:{password()}@{host}:5432/rollcall"

    def redis(user: str) -> str:
        return f"redis://{user}:{password()}@redis:6379/0"

    return {
        "postgres_superuser": password(),
        "postgres_replica": password(),
        "owner_database_url": database("owner", "primary"),
        "ingest_database_url": database("ingest", "primary"),
        "admin_database_url": database("admin", "primary"),
        "admin_secret_key": secrets.token_hex(32),  # Django wants 50 characters
        "manage_database_url": database("manage", store_of_manage),
        "redis_admin": password(),
        "ingest_redis_url": redis("ingest"),
        "manage_redis_url": redis("manage"),
        "query_redis_url": redis("query"),
        "ingest_tokens": NO_TOKENS,
        "manage_tokens": NO_TOKENS,
        "grafana_admin": password(),
    }


def make(folder: Path, store_of_manage: str) -> list[str]:
    """Write the missing files; returns their names.

    Only the owner may enter the folder. Everybody may read the files themselves: they are mounted into containers
    one by one, with this mode, and the processes there have another user id.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    made = []
    for name, text in contents(store_of_manage).items():
        path = folder / name
        if not path.exists():
            path.write_text(text)
            path.chmod(0o644)
            made.append(name)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m compose.credentials", description=make.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder for the secrets")
    parser.add_argument("--single", action="store_true", help="manage reads the primary: there is no replica")
    options = parser.parse_args()
    made = make(options.folder, "primary" if options.single else "replica")
    print(f"Made {', '.join(made)} in {options.folder}." if made else f"All of them are in {options.folder} already.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
