"""Everything that the runbook names exists under this name."""

from __future__ import annotations

import re

import yaml

from tests.contract.test_docs import ROOT, page, source

RUNBOOK = page("runbook")
CONTAINERS = yaml.safe_load((ROOT / "compose" / "docker-compose.yml").read_text())


def named(pattern: str) -> set[str]:
    found = set(re.findall(pattern, RUNBOOK))
    assert found
    return found


def test_every_test_that_is_named_exists() -> None:
    tests = named(r"`(test_\w+)`")
    assert tests <= set(re.findall(r"def (test_\w+)", source("tests/*/test_*.py")))


def test_every_file_that_is_named_exists() -> None:
    paths = named(r"`((?:compose|tests|shared_models)(?:/\w+)*/\w+\.\w+)`")
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_container_and_secret_that_is_named_exists() -> None:
    containers = named(r"`docker compose (?:exec|restart|stop) (\w+)") | named(r"`exec (\w+)`")
    assert {"keeper", "primary", "replica", "redis"} <= containers <= set(CONTAINERS["services"])
    assert named(r"secrets/(\w+)") <= set(CONTAINERS["secrets"])


def test_every_role_variable_and_metric_that_is_named_exists() -> None:
    assert named(r"\b(rollcall_(?!counter)[a-z]+)\b") <= set(
        re.findall(r"rollcall_\w+", source("compose/postgres/roles.sql"))
    )
    settings = source("*_service/settings.py")
    variables = named(r"`([A-Z][A-Z_]+_(?:URL|SECONDS|HOURS))`")
    assert {name for name in variables if name not in settings} == set()
    assert named(r"`(rollcall_counter\w+)`") <= set(
        re.findall(r"rollcall_\w+", source("*_service/metrics.py", "*_service/site/metrics.py"))
    )
