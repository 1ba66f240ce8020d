"""The types of problems: each is declared once, raised, and described; and every name of one in the texts exists."""

from __future__ import annotations

import ast
import re
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_code import PACKAGES, ROOT, SERVICES, calls, files, imports, literals, parse

SHARED = ROOT / "shared_models" / "web" / "problems.py"
# Of no operation: what is answered to an address or a method that is not described, and in ingest's admin.
NOT_DESCRIBED = {"NOT_FOUND", "METHOD_NOT_ALLOWED", "UNKNOWN_COLLECTION", "FORBIDDEN", "ADMIN_UNAVAILABLE"}
# The edge's own: no service has answered.
OF_THE_EDGE = {"no-answer"}


def declared(package: str) -> Iterator[tuple[str, str]]:
    """The name and the slug of each type that a package declares."""
    for path in files(package):
        for node in parse(path).body:
            match node:
                case ast.Assign(
                    targets=[ast.Name(name)],
                    value=ast.Call(func=ast.Name("ProblemType"), args=[_, ast.Constant(slug), *_]),
                ):
                    yield name, str(slug)


def raised(package: str) -> Iterator[str]:
    """The parts of each problem, from the code."""
    for path in files(package):
        for call in calls(path):
            if isinstance(call.func, ast.Name) and call.func.id == "Problem":
                yield ast.unparse(call.args[0])


def described_by(path: Path) -> set[str]:
    """The names that a description takes from where types are declared."""
    tree = parse(path)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("service", SERVICES)
def test_a_type_is_declared_once(service: str) -> None:
    shared, own = dict(declared("shared_models")), dict(declared(service))
    assert shared and own
    slugs = Tally([slug for package in ("shared_models", service) for _, slug in declared(package)])
    assert {slug for slug, times in slugs.items() if times > 1} == set()
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", slug) for slug in slugs)


def test_the_prefix_stands_once() -> None:
    found = [path for path in files(*PACKAGES) for text in literals(path) if "urn:rollcall" in text]
    assert found == [SHARED]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_problem_is_made_of_a_declared_type_and_each_type_is_used(package: str) -> None:
    known = {name for each in ("shared_models", package) for name, _ in declared(each)}
    assert set(raised(package)) <= known
    assert {name for name, _ in declared(package)} <= set(raised(package))


@pytest.mark.parametrize("service", SERVICES)
def test_each_type_of_a_service_is_described(service: str) -> None:
    (description,) = (path for path in files(service) if path.name == "openapi.py")
    assert "shared_models.web.openapi" in set(imports(description))
    assert {name for name, _ in declared(service)} - described_by(description) <= NOT_DESCRIBED


def test_each_type_that_all_services_have_is_described() -> None:
    descriptions = [path for path in files(*PACKAGES) if path.name == "openapi.py"]
    described = {name for path in descriptions for name in described_by(path)}
    assert {name for name, _ in declared("shared_models")} - described <= NOT_DESCRIBED


def test_every_type_that_is_named_anywhere_exists() -> None:
    slugs = {slug for package in PACKAGES for _, slug in declared(package)} | OF_THE_EDGE
    sources = [
        *files(*PACKAGES, "compose", "loadtest", "tests", kinds=(".py", ".js", ".html", ".template", ".md", ".lua")),
        *(path for path in files("tests", kinds=(".ts",)) if "node_modules" not in path.parts),
        *ROOT.glob("*.md"),
    ]
    named = {
        (path.relative_to(ROOT), slug)
        for path in sources
        if "node_modules" not in path.parts
        for slug in re.findall(r"urn:rollcall:([a-z-]+)", path.read_text())
    }
    assert {slug for _, slug in named} & slugs
    assert {(path, slug) for path, slug in named if slug not in slugs} == set()
