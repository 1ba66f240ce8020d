"""Manage as in production: gunicorn with its configuration, in processes of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.servers import DEADLINE_SECONDS, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]


CONFIGURATION = "manage_service/gunicorn.conf.py"


class Gunicorn:
    """The service on a port of its own, with this process's stores."""

    def __init__(self, folder: Path, *, port: int = 0, **variables: str) -> None:
        self.port = port or free_port()
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", CONFIGURATION],
                cwd=ROOT,
                env={**os.environ, "PORT": str(self.port), "TMPDIR": str(folder), **variables},
                stdout=log,
                stderr=log,
            )
        wait_for(self.answers, "gunicorn to answer")

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self) -> int:
        """Its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(DEADLINE_SECONDS)
