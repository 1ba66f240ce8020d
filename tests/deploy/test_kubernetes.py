"""The manifests for Kubernetes: they fit its schemas, and say the same as the compose file. They were never run."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from compose.local.ordinary_user import CHECKOUT

FOLDER = CHECKOUT / "compose" / "kubernetes"
# The oldest that is supported, and the newest.
VERSIONS = ("1.33", "1.37")
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
COMPOSE = yaml.safe_load((CHECKOUT / "compose" / "docker-compose.yml").read_text())


def documents() -> list[dict[str, Any]]:
    """Each document of the files that the kustomization names."""
    return [each for name in KUSTOMIZATION["resources"] for each in yaml.safe_load_all((FOLDER / name).read_text())]


def pods() -> dict[str, dict[str, Any]]:
    """The specification of each pod, by its name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in documents()
        if "template" in each.get("spec", {})
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_fit_the_schemas(version: str) -> None:
    for each in documents():
        kubernetes_validate.validate(each, version, strict=True)


def test_every_file_is_part_of_it() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    (declarations,) = KUSTOMIZATION["configMapGenerator"]
    # kustomize reads no file outside its folder.
    packaged = (CHECKOUT / "shared_models" / "rollcall.toml").read_text()
    assert (FOLDER / declarations["files"][0]).read_text() == packaged


@pytest.mark.parametrize("service", ["ingest", "manage", "keeper", "query", "migrate"])
def test_a_pod_runs_what_the_container_of_the_same_name_runs(service: str) -> None:
    (container,) = pods()[service]["containers"]
    composed = COMPOSE["services"][service]
    assert container["image"] == composed["image"].partition(":")[0]
    assert container.get("command") == composed.get("command")
    assert container["securityContext"]["readOnlyRootFilesystem"] and composed["read_only"]
    assert container["securityContext"]["capabilities"]["drop"] == composed["cap_drop"] == ["ALL"]
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    assert {"/tmp", "/metrics"} <= mounted
    assert pods()[service]["securityContext"]["runAsNonRoot"]


def test_an_instance_that_is_asked_says_when_it_is_ready() -> None:
    for name in ("ingest", "manage", "query"):
        (container,) = pods()[name]["containers"]
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
