"""The engine that runs containers: Docker with its Compose, or Podman with podman-compose. Both read docker-compose.yml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from compose.containers.names import Names

PROJECT = "rollcall-trial"
# Debian's packages for Podman without Docker; podman-compose comes from PyPI, because Debian's does not read our files.
PACKAGES = "podman runc netavark aardvark-dns iptables debootstrap"
PODMAN_COMPOSE = "podman-compose==1.6.0"
# Podman's defaults ask for more than a machine without systemd may give.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
"""
WAIT_SECONDS = 120.0


class EngineError(Exception):
    """Something that the engine refused, or that is missing; people read the message."""


class Engine:
    """`folder` is the folder of docker-compose.yml, where its .env is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = ["docker-compose.yml"]  # those that COMPOSE_FILE names
        self.is_docker = (
            subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
            if shutil.which("docker")
            else False
        )
        self.environment = {**os.environ, "COMPOSE_PROJECT_NAME": PROJECT}
        if self.is_docker:
            self.program, self._compose = "docker", ["docker", "compose"]
            return
        missing = [name for name in ("podman", "runc", "iptables", "debootstrap") if not shutil.which(name)]
        if missing:
            raise EngineError(
                f"There is no Docker with Compose, and for Podman there is no {' and no '.join(missing)}. "
                f"Install Docker, or, on Debian: apt-get install {PACKAGES}"
            )
        self.program = "podman"
        conf = folder / "containers.conf"
        conf.write_text(CONTAINERS_CONF)
        self.environment["CONTAINERS_CONF"] = str(conf)
        # Its own folders in memory would hide those of the compose file.
        self._compose = [str(podman_compose(folder)), "--podman-run-args=--read-only-tmpfs=false"]

    def run(self, *words: str, check: bool = True, seconds: float = 600.0, stdin: str | None = None) -> str:
        """A command of the engine; its output. Raises EngineError."""
        return self._run([self.program, *words], check=check, seconds=seconds, stdin=stdin)

    def compose(self, *words: str, check: bool = True, seconds: float = 600.0) -> str:
        """A command of Compose in the folder; its output. Raises EngineError."""
        # podman-compose does not see COMPOSE_FILE in .env.
        files = [] if self.is_docker else [word for name in self.files for word in ("--file", name)]
        return self._run([*self._compose, *files, *words], check=check, seconds=seconds)

    def _run(self, command: Sequence[str], *, check: bool, seconds: float, stdin: str | None = None) -> str:
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=seconds,
                input=stdin,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"{' '.join(command[:4])} … took longer than {seconds:.0f} s") from None
        if check and done.returncode:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            raise EngineError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
        return done.stdout

    def has(self, image: str) -> bool:
        """Whether the image is on this machine."""
        return bool(self.run("images", "--quiet", image).strip())

    def pull(self, image: str) -> bool:
        """Get an image from its registry; False if that cannot be reached, or does not have it."""
        try:
            self.run("pull", "--quiet", image, seconds=120)
        except EngineError:
            return False
        return True

    def containers(self, service: str) -> list[str]:
        """The names of the containers of a service, running or not."""
        found = json.loads(self.run("ps", "--all", "--format", "json") or "[]") if not self.is_docker else []
        if self.is_docker:
            names = self.run("ps", "--all", "--format", "{{.Names}}", "--filter", f"name=^{PROJECT}-{service}-").split()
        else:
            names = [each["Names"][0] for each in found]
        return sorted(name for name in names if name.replace("_", "-").startswith(f"{PROJECT}-{service}-"))

    def start(self, *services: str, many: int = 1) -> None:
        """Start services, and wait until they are healthy. Without systemd, Podman runs no health checks: they are run here."""
        scale = [word for service in services for word in ("--scale", f"{service}={many}")] if many > 1 else []
        # Those that are there stay as they are, also if their image or a variable has changed since.
        self.compose("up", "--detach", "--no-deps", "--no-recreate", *scale, *services)
        for service in services:
            self.wait_healthy(service)

    def run_once(self, service: str) -> None:
        """Start a service that ends, and wait for its end. Raises EngineError if it failed."""
        self.compose("up", "--detach", "--no-deps", service)
        (name,) = self.containers(service)
        code = self.run("wait", name, seconds=WAIT_SECONDS).strip()
        if code != "0":
            raise EngineError(f"{service} ended with {code}:\n{self.logs(service)}")

    def wait_healthy(self, service: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the health check of each container of the service succeeds; one without a check has to run."""
        deadline = time.monotonic() + seconds
        for name in self.containers(service):
            while not self.is_healthy(name):
                if time.monotonic() > deadline:
                    raise EngineError(f"{service} is not healthy after {seconds:.0f} s:\n{self.logs(service)}")
                time.sleep(0.2)

    def is_healthy(self, name: str) -> bool:
        """Whether this container runs and its health check, if it has one, succeeds now."""
        (found,) = json.loads(self.run("inspect", name))
        if not found["State"]["Running"]:
            return False
        check = (found["Config"].get("Healthcheck") or {}).get("Test") or ["NONE"]
        if check == ["NONE"]:
            return True
        if self.is_docker:
            return bool(found["State"]["Health"]["Status"] == "healthy")
        said = subprocess.run(["podman", "healthcheck", "run", name], env=self.environment, capture_output=True)
        return said.returncode == 0

    def logs(self, service: str) -> str:
        """The end of the log of a service."""
        return "\n".join(self.run("logs", "--tail", "8", name, check=False) for name in self.containers(service))

    def name_server(self) -> str:
        """Where the edge asks for names, for EDGE_RESOLVER. A container of the network `front` has to run."""
        if self.is_docker:
            return "127.0.0.11"
        (network,) = json.loads(self.run("network", "inspect", f"{PROJECT}_front"))
        names = Names(network["subnets"][0]["gateway"])
        names.start()
        return names.address

    def memory_bytes(self, name: str) -> int:
        """The memory of all processes of a container, that they do not share."""
        (found,) = json.loads(self.run("inspect", name))
        return sum(unshared_bytes(pid) for pid in tree(found["State"]["Pid"]))

    def size_bytes(self, image: str) -> int:
        """The size of an image, with all of its layers."""
        return int(self.run("image", "inspect", "--format", "{{.Size}}", image))

    def down(self) -> None:
        """Remove the containers, the networks and the volumes of the project. podman-compose forgets instances beyond the first."""
        for name in self.run("ps", "--all", "--format", "{{.Names}}").split():
            if name.startswith(PROJECT):
                self.run("rm", "--force", "--volumes", "--time", "20", name, check=False)
        self.compose("down", "--volumes", "--timeout", "20", check=False)


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, path.read_text().split())
    return [pid, *(each for child in children for each in tree(child))]


def unshared_bytes(pid: int) -> int:
    """A process's part of its memory (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def podman_compose(folder: Path) -> Path:
    """podman-compose, in an environment of its own."""
    place = folder / "podman-compose"
    if not (place / "bin" / "podman-compose").exists():
        venv.create(place, with_pip=True)
        done = subprocess.run(
            [str(place / "bin" / "pip"), "install", "--quiet", PODMAN_COMPOSE], capture_output=True, text=True
        )
        if done.returncode:
            raise EngineError(f"{PODMAN_COMPOSE} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    print(f"Podman, with {PODMAN_COMPOSE}", file=sys.stderr)
    return place / "bin" / "podman-compose"
