"""`python -m tests.images` runs the steps of compose/Dockerfile on this machine without an engine, for each of the three images.

Its commands run one after the other in an empty folder in place of the root folder, with this Python; then the image's start
command, as a user who cannot write there, and its health check. What this cannot show is the base image: its C library, its
Python, its users.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from compose.local.ordinary_user import CHECKOUT
from compose.local.processes import Process, StackError, has_ended, make_folder
from tests.servers import free_port

DOCKERFILE = CHECKOUT / "compose" / "Dockerfile"
SERVICES = ("ingest", "manage", "query")
# What each has to be told. Nobody listens there: neither to start nor to live needs a store.
DATABASE, REDIS = {"DATABASE_URL": "postgres://nobody:x@127.0.0.1:1/none"}, {"REDIS_URL": "redis://127.0.0.1:1/0"}
VARIABLES = {"ingest": DATABASE | REDIS | {"AUTH": "off"}, "manage": DATABASE | REDIS | {"AUTH": "off"}, "query": REDIS}
STOP_SECONDS = 15.0


class ImageFault(StackError):
    """The image would not be what it has to be."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile and its argument."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.M))
    for line in filter(None, text.splitlines()):
        name, _, argument = line.partition(" ")
        yield name, argument.strip()


def stages(text: str) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Each stage by its name: what it is made from, and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for instruction, argument in instructions(text):
        if instruction == "FROM":
            base, _, name = argument.split()
            found[name] = (base, [])
        elif name:
            found[name][1].append((instruction, argument))
    return found


@dataclass
class Image:
    """One target, built below `root`."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def path(self, path: str) -> Path:
        return self.root / str(Path(self.folder) / path).lstrip("/")

    def moved(self, text: str) -> str:
        """The text, with the root folder's paths in it below ours."""
        return re.sub(r"(?<![\w/.])/(?=(?:venv|app|metrics)\b)", f"{self.root}/", text)

    def build(self, target: str, everything: dict[str, tuple[str, list[tuple[str, str]]]]) -> None:
        base, own_instructions = everything[target]
        if base in everything:
            self.build(base, everything)
        for instruction, argument in own_instructions:
            match instruction:
                case "ENV":
                    for word in shlex.split(argument):
                        name, _, value = word.partition("=")
                        self.environment[name] = self.moved(value).replace("$PATH", python_path())
                case "WORKDIR":
                    self.folder = argument
                    self.path("").mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self.copy(target, argument.split(), everything)
                case "RUN":
                    self.run(argument)
                case "CMD":
                    self.command = json.loads(argument)
                case "HEALTHCHECK":
                    self.health = json.loads(argument[argument.index("CMD ") + 4 :])
                case "USER" | "EXPOSE":
                    pass
                case other:
                    raise ImageFault(f"{DOCKERFILE} has an instruction that is not known here: {other}")

    def copy(self, target: str, words: list[str], everything: dict[str, tuple[str, list[tuple[str, str]]]]) -> None:
        if words[0].startswith("--from="):
            # Built where it will be: an environment of Python's cannot be moved.
            stage = Image(self.root)
            stage.build(words[0].removeprefix("--from="), everything)
            return
        *sources, destination = words
        for source in sources:
            found = CHECKOUT / source
            if found.is_dir():
                shutil.copytree(found, self.path(destination), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(found, self.path(destination) / found.name)

    def run(self, command: str) -> None:
        environment = {"PATH": python_path(), "HOME": str(self.root)} | self.environment
        if cache := os.environ.get("PIP_CACHE_DIR") or str(Path.home() / ".cache" / "pip"):
            # Not downloaded again each time; by its hashes, the installed package is the same.
            environment |= {"PIP_CACHE_DIR": cache, "PIP_NO_CACHE_DIR": "0"}
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        done = subprocess.run(
            ["sh", "-c", self.moved(command)],
            cwd=self.path(""),
            env=kept | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise ImageFault(f"RUN {command} ended with status {done.returncode}:\n{done.stdout[-2000:]}")

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}


def python_path() -> str:
    """A PATH on which `python` is this one, outside of any environment."""
    return f"{sys.base_prefix}/bin:{os.environ['PATH']}"


class Container(Process):
    """The start command of an image."""

    port: int

    def __init__(self, folder: Path, image: Image, variables: dict[str, str]) -> None:
        super().__init__(folder, free_port(), dies_with_parent=True)
        self.image, self.variables = image, variables
        self.temporary = self.folder / "tmp"

    def create(self) -> None:
        super().create()
        make_folder(self.temporary)

    def environment(self) -> dict[str, str]:
        own_variables = {"BIND": f"127.0.0.1:{self.port}", "TMPDIR": str(self.temporary)}
        return self.image.environment | own_variables | self.variables

    def working_folder(self) -> Path:
        return self.image.path("")

    def command(self) -> list[str]:
        return [str(self.image.root / "venv" / "bin" / self.image.command[0]), *self.image.command[1:]]

    def why_not_ready(self) -> str | None:
        health = [word.replace(":8000", f":{self.port}") for word in self.image.health]
        try:
            self.run([str(self.image.root / "venv" / "bin" / health[0]), *health[1:]])
        except StackError as error:
            return str(error)
        return None


def check(service: str, scratch: Path) -> str:
    """Build and start the image of a service; one line of what it is. Raises StackError."""
    began = time.monotonic()
    folder = scratch / service
    folder.mkdir()
    image = Image(folder / "root")
    image.root.mkdir()
    image.build(service, stages(DOCKERFILE.read_text()))
    built = time.monotonic()
    packages = {path.name for path in image.path("").iterdir()}
    if packages != {"shared_models", f"{service}_service"}:
        raise ImageFault(f"{service}: /app holds {', '.join(sorted(packages))}")
    installed = {path.name.split("-")[0].lower() for path in image.root.glob("venv/lib/*/site-packages/*.dist-info")}
    if service == "query" and installed & {"psycopg2_binary", "dj_database_url"}:
        raise ImageFault("query has a driver of a database")
    before = image.files()
    container = Container(folder / "run", image, VARIABLES[service])
    container.start()
    started = time.monotonic()
    process = container.running()
    if process is None:
        raise ImageFault(f"{service} has ended by itself")
    process.terminate()
    ended = has_ended(process, STOP_SECONDS)
    container.stop()
    if not ended:
        raise ImageFault(f"{service} does not end within {STOP_SECONDS:g} s of SIGTERM")
    if new := image.files() - before:
        raise ImageFault(f"{service} writes outside /tmp: {', '.join(sorted(new)[:5])}")
    size = sum(path.stat().st_size for path in image.root.rglob("*") if path.is_file() and not path.is_symlink())
    return (
        f"{service:<7} {len(installed)} packages, {len(before):,} files, {size / 1e6:.0f} MB beside the base image; "
        f"made in {built - began:.0f} s, healthy after {started - built:.1f} s, ended by SIGTERM"
    )


def main() -> int:
    scratch = Path(tempfile.mkdtemp(prefix="rollcall-images-")).resolve()
    scratch.chmod(0o755)
    try:
        for service in SERVICES:
            print(check(service, scratch), flush=True)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
