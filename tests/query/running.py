"""query as it is run: gunicorn on a free port."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.servers import free_port, wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGURATION = "query_service/gunicorn.conf.py"


class Running:
    """gunicorn on a free port."""

    def __init__(
        self, url: str, folder: Path, *, port: int = 0, configuration: str = CONFIGURATION, **variables: str
    ) -> None:
        self.port = port or free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "REDIS_URL": url,
            "PORT": str(self.port),
            "WORKERS": "2",
            "TMPDIR": str(folder),
            **variables,
        }
        command = [sys.executable, "-m", "gunicorn", "-c", configuration]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        wait_for(self.answers, "gunicorn to answer")

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/livez")[0] == 200
        except OSError:
            return False

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = self.connect()
        try:
            connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)
