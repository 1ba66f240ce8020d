"""README and docs are correct: everything that they name exists, and they name everything. The site builds strictly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.protocol import elements
from tests.protocol.rules import RULES

ROOT = Path(__file__).resolve().parent.parent.parent
SERVICES = ("ingest_service", "manage_service", "query_service")
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "decisions" not in path.parts)
DOCS = "\n".join(path.read_text() for path in PAGES)


def page(name: str) -> str:
    """The text of a page of the docs."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def section(name: str, title: str) -> str:
    """The text under a heading of a page, up to the next one of its level."""
    level, _, _ = title.partition(" ")
    _, _, rest = page(name).partition(f"\n{title}\n")
    assert rest, f"there is no section {title!r} in {name}"
    return re.split(rf"\n{level} ", rest)[0]


def source(*patterns: str) -> str:
    return "\n".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def test_every_make_target_is_named_and_every_named_target_exists():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)`", section("command-line", "## make"))) == targets
    assert set(re.findall(r"`make ([a-z-]+)\b", DOCS)) <= targets


def test_make_help_lists_every_target():
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    assert re.findall(r"^make ([a-z-]+) ", listed, re.M) == targets


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_named(service):
    settings = source(f"{service}/settings.py", f"{service}/gunicorn.conf.py")
    read = set(re.findall(r"env\.\w+\(\s*\"([A-Z_]+)\"", settings)) | set(
        re.findall(r"environ(?:\.get\(|\[)['\"](\w+)", settings)
    )
    assert read
    assert read <= set(re.findall(r"`([A-Z_]+)`", page("configuration")))


def test_every_named_variable_is_read():
    places = ("shared_models/web/gunicorn_hooks.py", "shared_models/declarations.py")
    settings = source("*_service/settings.py", "*_service/gunicorn.conf.py", *places)
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", page("configuration")))
    assert {name for name in named if name not in settings} == set()
    ports = set(re.findall(r"`([A-Z_]+_(?:PORT|OFFSET))", section("command-line", "## The local stack")))
    assert {name for name in ports if name not in source("compose/local/ports.py")} == set()


def test_every_metric_is_named_and_every_named_metric_exists():
    code = source("*_service/metrics.py", "*_service/site/metrics.py", "shared_models/web/prometheus.py")
    declared = set(re.findall(r"\"(rollcall_[a-z_]+)\"", code))
    assert declared == set(re.findall(r"`(rollcall_[a-z_]+)`", section("metrics-and-logs", "## Metrics")))


@pytest.mark.parametrize("service", SERVICES)
def test_every_metric_stands_beside_the_service_that_has_it(service):
    declared = set(re.findall(r"\"(rollcall_[a-z_]+)\"", source(f"{service}/metrics.py", f"{service}/site/metrics.py")))
    who = service.removesuffix("_service")
    assert declared == set(
        re.findall(rf"^\| {who} \| `(rollcall_[a-z_]+)`", section("metrics-and-logs", "## Metrics"), re.M)
    )


def test_every_test_that_is_named_as_proof_exists():
    named = set(re.findall(r"`(test_[A-Za-z0-9_]+)`", DOCS))
    written = set(re.findall(r"def (test_\w+)", source("tests/*/test_*.py")))
    assert named and named <= written


@pytest.mark.parametrize("promise", [f"P{n}" for n in range(1, 9)])
def test_every_promise_has_a_test_of_its_name(promise):
    assert f"| {promise} |" in (ROOT / "README.md").read_text()
    assert re.search(rf"def test_{promise}_", source("tests/*/test_*.py"))


def test_every_file_that_is_named_exists():
    paths = set(re.findall(r"`((?:[a-z_]+/)+[a-z_0-9.-]*)`", DOCS))
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_picture_is_small():
    pictures = [path for path in (ROOT / "docs").rglob("*.png") if path.name in DOCS]
    assert pictures
    assert {picture.name for picture in pictures if picture.stat().st_size > 150_000} == set()


def test_the_page_of_examples_shows_the_files_themselves():
    """A formatter takes the line for Python where the block says `python`, and changes it."""
    shown = re.findall(r"^--8<-- \"([\w./]+)(?::script)?\"$", page("examples/index"), re.M)
    assert len(shown) == page("examples/index").count("--8") == 5
    assert all((ROOT / "docs" / "examples" / name).exists() for name in shown)


def test_every_command_that_is_named_exists():
    commands = set(re.findall(r"python -m (\w+_service) (\w+)", DOCS))
    own = {(path.parts[-4], path.stem) for path in ROOT.glob("*_service/management/commands/*.py")}
    of_django = {("ingest_service", "migrate"), ("ingest_service", "check"), ("manage_service", "check")}
    assert commands <= own | of_django
    assert {command for command in own if command[1] != "__init__"} <= commands


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_rule_of_the_protocol_has_a_section():
    headings = re.findall(r"^### (.+)$", page("protocol"), re.M)
    assert headings == [*RULES, *elements.RULES]


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path):
    """A link or an anchor that leads nowhere is a warning, and an error here."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # which advertises another program
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for path in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\" >]+)", path.read_text()
        )
        assert loaded == [], path.name
        assert "<p>$ " not in path.read_text(), f"{path}: commands that stand in a list need eight blanks before them"
        if not (ROOT / "docs" / path.relative_to(tmp_path)).exists():  # an example is copied as it is
            assert "assets/mermaid.tiny.js" in path.read_text(), "without it the theme would load it from another host"
