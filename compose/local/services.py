"""The three services, the keeper and the rotator of the logs, as processes of the stack."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Unpack

import redis

from compose.local.ordinary_user import CHECKOUT
from compose.local.processes import Options, Process, make_folder
from compose.local.redis_cluster import Cluster
from compose.local.servers import HOST, PROBE_SECONDS, Valkey, make_secret, read_secret, write_private
from shared_models.protocol import keys, moments, states
from shared_models.web import tokens

# The keeper ticks about every second; one that has been silent for this long hangs.
TICK_SECONDS = 15

# For manage to answer its status: it gives up on a stopped replica only after a while.
STATUS_SECONDS = 20

Variables = Callable[[], dict[str, str]]


class Service(Process):
    """A Python process of this checkout. `variables` is called at its start: passwords are not known before."""

    stop_seconds = 10.0

    def __init__(self, folder: Path, port: int | None, variables: Variables, **options: Unpack[Options]) -> None:
        super().__init__(folder, port, **options)
        self.variables = variables

    def environment(self) -> dict[str, str]:
        return self.variables()

    def working_folder(self) -> Path:
        return CHECKOUT


class Web(Service):
    """A service under gunicorn, set up by its own gunicorn.conf.py."""

    port: int

    def __init__(
        self, folder: Path, port: int, variables: Variables, *, application: str, **options: Unpack[Options]
    ) -> None:
        super().__init__(folder, port, variables, **options)
        self.application = application
        self.port_variable = f"{self.name.upper()}_PORT"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def metrics(self) -> Path:
        """The folder of its workers' metrics. gunicorn removes it at its end, unless it is killed."""
        return self.folder / "metrics"

    def create(self) -> None:
        super().create()
        shutil.rmtree(self.metrics, ignore_errors=True)
        make_folder(self.metrics)

    def environment(self) -> dict[str, str]:
        return {"PORT": str(self.port), "PROMETHEUS_MULTIPROC_DIR": str(self.metrics), **super().environment()}

    @property
    def token_path(self) -> Path:
        """The file with the token for people on this machine; there is none if the service needs no token."""
        return self.folder / "token"

    def make_token(self) -> None:
        """Make a token and its line for TOKENS, if there is none."""
        make_folder(self.folder)
        if not self.token_path.exists() or not (self.folder / "tokens").exists():
            token, line = tokens.make("local")
            write_private(self.folder / "tokens", line)
            write_private(self.token_path, token)

    def tokens_variable(self) -> dict[str, str]:
        """The variable with the service's tokens."""
        return {"TOKENS_FILE": str(self.folder / "tokens")}

    def authorization(self) -> dict[str, str]:
        """The header that requests to this service need."""
        return {"Authorization": f"Bearer {read_secret(self.token_path)}"} if self.token_path.exists() else {}

    def command(self) -> list[str]:
        package = self.application.partition(".")[0]
        return [sys.executable, "-m", "gunicorn", "-c", f"{package}/gunicorn.conf.py", self.application]

    def why_not_ready(self) -> str | None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            return None if answer.status == 200 else f"{answer.status} {detail_of(answer.read())}".strip()
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        finally:
            connection.close()


class Ingest(Web):
    """Ingest, with its admin pages, and a first user."""

    first_user = "admin"

    @property
    def admin_url(self) -> str:
        return f"{self.url}/admin/"

    @property
    def admin_password_path(self) -> Path:
        """The first user's password, until that user changes it."""
        return self.folder / "admin-password"

    @property
    def secret_key_path(self) -> Path:
        return self.folder / "secret-key"

    def make_token(self) -> None:
        """The token, and the secrets of the admin."""
        super().make_token()
        make_secret(self.admin_password_path)
        make_secret(self.secret_key_path)

    def run_command(self, *words: str, variables: Mapping[str, str]) -> str:
        """Run one of ingest's commands, with its own folder for metrics: a gunicorn that is ending removes the service's.

        Returns its output.
        """
        metrics = self.folder / "metrics-of-commands"
        make_folder(metrics)
        own_folder = {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        return self.run([sys.executable, "-m", "ingest_service", *words], {**variables, **own_folder})

    def make_first_user(self, owner: Mapping[str, str], database: str) -> None:
        """Make the first user's account, unless that was done in this database (its identity)."""
        made = self.folder / "admin-made"
        if made.exists() and read_secret(made) == database:
            return
        password = {"ADMIN_PASSWORD": read_secret(self.admin_password_path)}
        self.run_command("admin_user", self.first_user, variables={**owner, **password})
        write_private(made, database)


class Manage(Web):
    """Manage, which has the findings."""

    def findings(self) -> list[str]:
        """The findings, a sentence each; or why manage cannot answer."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=STATUS_SECONDS)
        try:
            connection.request("GET", "/v1/status", headers=self.authorization())
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                return [f"manage cannot answer its status: {answer.status} {detail_of(body)}"]
            return [finding["detail"] for finding in json.loads(body)["findings"]]
        except (OSError, http.client.HTTPException) as error:
            return [f"manage cannot answer its status: {str(error) or type(error).__name__}"]
        finally:
            connection.close()


class Keeper(Service):
    """Manage's background process. It has no port: Redis shows that it works."""

    def __init__(
        self, folder: Path, variables: Variables, *, valkey: Valkey | Cluster, **options: Unpack[Options]
    ) -> None:
        super().__init__(folder, None, variables, **options)
        self.valkey = valkey

    def command(self) -> list[str]:
        return [sys.executable, "-m", "manage_service", "keeper"]

    def why_not_ready(self) -> str | None:
        try:
            with self.valkey.client_of(keys.KEEPER) as client:
                (ticked,) = states.read_fields(client, keys.KEEPER, "ticked_at")
        except redis.RedisError as error:
            return str(error)
        ticked_at = moments.from_microseconds(ticked)
        # A tick from before the start is an earlier keeper's. After a kill, its lease has to expire first.
        if ticked_at is None or ticked_at.timestamp() < self.launched_at:
            return "has not ticked yet"
        age_seconds = time.time() - ticked_at.timestamp()
        return f"last ticked {age_seconds:.0f} s ago" if age_seconds > TICK_SECONDS else None


class Rotator(Process):
    """Keeps the logs small. It needs no store and has no port: it is ready while it runs."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "compose.local.logs", str(self.log.parent)]

    def working_folder(self) -> Path:
        return CHECKOUT

    def why_not_ready(self) -> None:
        return None


def detail_of(problem: bytes) -> str:
    """The detail of a problem document, or the start of another body."""
    try:
        found = json.loads(problem)
        return " ".join(str(found.get("detail") or found.get("title") or found).split())
    except (ValueError, AttributeError):
        return problem[:200].decode(errors="replace").strip()
