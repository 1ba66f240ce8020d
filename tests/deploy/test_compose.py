"""compose/docker-compose.yml, read without an engine: it is valid, complete, locked, and agrees with settings and docs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from compose import credentials
from shared_models.web import bodies

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = ROOT / "compose"
FILES = ("docker-compose.yml", "tls.yml", "admin.yml")
TEXT = (COMPOSE / "docker-compose.yml").read_text()
EXAMPLE = (COMPOSE / "env.example").read_text()
FILE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ADMIN = yaml.safe_load((COMPOSE / "admin.yml").read_text())
OURS = {"ingest": "ingest", "manage": "manage", "query": "query"}

# Variables of docs/configuration.md that a deployment does not choose, and why.
NOT_CHOSEN = {
    "BIND": "the image's",
    "PORT": "the image's",
    "DEBUG": "not in production",
    "AUTH": "tokens are secrets; query is public without",
}


def interpolated(text: str) -> set[str]:
    """The variables that a compose file takes from .env by name."""
    return set(re.findall(r"\$\{(\w+)[:}]", text))


def environment(service: str) -> dict[str, Any]:
    """What a service is told, with the admin on."""
    beside = ADMIN["services"].get(service, {})
    return SERVICES[service].get("environment", {}) | beside.get("environment", {})


def handed_on() -> set[str]:
    """Those that it takes under the name that the service knows."""
    return {name for service in SERVICES for name, value in environment(service).items() if value is None}


def of_docs(service: str) -> set[str]:
    """The variables of a service, by the table in docs/configuration.md."""
    table = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| ([a-z, ]+) \| (`[A-Z`, _]+`) \|", table, re.M)
    assert rows
    return {
        name
        for services, names in rows
        if services == "all" or service in services.split(", ")
        for name in re.findall(r"`(\w+)`", names)
    }


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_what_the_compose_specification_allows(name):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE / name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_the_example_names_is_what_the_files_take():
    named = set(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=", EXAMPLE, re.M))
    of_docker = {"COMPOSE_PROFILES", "COMPOSE_FILE"}
    taken = interpolated(TEXT) | interpolated((COMPOSE / "tls.yml").read_text()) | handed_on()
    assert named - of_docker == taken, "env.example and docker-compose.yml name the same variables"


def test_a_default_in_the_example_is_the_default_in_the_file():
    shown = dict(re.findall(r"^# ([A-Z][A-Z_]+)=(.*)$", EXAMPLE, re.M))
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT):
        assert shown.get(name, default) == default, name


@pytest.mark.parametrize("service", OURS)
def test_every_variable_of_a_service_can_be_set_and_is_read_by_it(service):
    here = {name.removesuffix("_FILE") for name in environment(service)} - {"FORWARDED_ALLOW_IPS"}  # gunicorn's own
    in_table = {name.removesuffix("_FILE") for name in of_docs(service)} - set(NOT_CHOSEN)
    if service != "ingest":
        in_table.remove("SECRET_KEY")  # they sign nothing
    assert here == in_table, (
        "docker-compose.yml hands on every variable: add `NAME:` there, and `# NAME=default` to env.example"
    )


@pytest.mark.parametrize("service", OURS)
def test_the_defaults_that_are_repeated_here_are_the_services_own(service):
    written = "".join((ROOT / f"{service}_service" / name).read_text() for name in ("settings.py", "gunicorn.conf.py"))
    repeated = {
        name: value.partition(":-")[2].rstrip("}")
        for name, value in environment(service).items()
        if isinstance(value, str) and ":-" in value and name != "TOKENS"
    }
    assert repeated
    for name, default in repeated.items():
        (own,) = re.findall(rf'"{name}",\s*"?([\d_]+(?: << \d+)?)"?[,)]', written)
        number, _, shift = own.partition(" << ")
        assert int(default) == int(number) << int(shift or 0), name


def test_no_secret_has_a_default_or_stands_in_a_file_of_the_repository():
    for name in SERVICES:
        for variable, value in environment(name).items():
            if re.search("PASSWORD|TOKEN|SECRET|_URL|KEY", variable):
                assert variable.endswith("_FILE") or value in ("${QUERY_TOKENS:-}", None), (name, variable)
    assert {"compose/.env", "compose/secrets/"} <= set((ROOT / ".gitignore").read_text().splitlines())


def test_the_secrets_are_those_that_are_made_and_each_service_has_those_it_uses(tmp_path):
    made = credentials.make(tmp_path / "secrets", "replica")
    assert set(made) == set(FILE["secrets"]) | set(ADMIN["secrets"])
    for name, service in (*SERVICES.items(), *ADMIN["services"].items()):
        given = set(service.get("secrets", []))
        used = set(re.findall(r"/run/secrets/(\w+)", json.dumps(service)))
        if "entrypoint" not in service:  # a script of ours, which tests/deploy/test_stores.py runs
            assert used == given, name
    of_superuser = {name for name, service in SERVICES.items() if "postgres_superuser" in service.get("secrets", [])}
    assert of_superuser == {"roles", "primary"}


def test_nobody_holds_what_opens_the_admin_unless_it_is_turned_on():
    holders = {name for name, service in SERVICES.items() if "admin_database_url" in service.get("secrets", [])}
    assert holders == {"roles"}  # which sets the password
    assert "admin_secret_key" not in json.dumps(FILE)
    assert set(ADMIN["services"]) == {"ingest", "migrate"}


def test_secrets_that_are_there_are_kept_and_only_their_owner_reaches_them(tmp_path):
    folder = tmp_path / "secrets"
    credentials.make(folder, "primary")
    before = {path.name: path.read_text() for path in folder.iterdir()}
    (folder / "redis_admin").unlink()
    assert credentials.make(folder, "primary") == ["redis_admin"]
    after = {path.name: path.read_text() for path in folder.iterdir()}
    assert after.pop("redis_admin") != before.pop("redis_admin")
    assert after == before
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "@primary:" in before["manage_database_url"]
    assert len({url.split(":")[2].split("@")[0] for name, url in before.items() if name.endswith("_url")}) == 7


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_locked(name):
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["profiles"]
    # Its image's user is no root: ours by the Dockerfile, Prometheus' and Grafana's by theirs.
    assert "user" in service or "build" in service or name in ("prometheus", "grafana")
    assert "container_name" not in service and "privileged" not in service


@pytest.mark.parametrize("name", (*OURS, "keeper"))
def test_metrics_lie_where_no_request_does(name):
    """They are mapped memory: a worker that writes to it where there is no room is killed."""
    folders = {mount.split(":")[0] for mount in SERVICES[name]["tmpfs"]}
    assert folders == {"/tmp", environment(name)["PROMETHEUS_MULTIPROC_DIR"]}


def test_what_the_edge_holds_of_requests_has_room_in_its_tmp_and_it_is_said_what_ingest_holds():
    (size,) = (mount.split("size=")[1] for mount in SERVICES["edge"]["tmpfs"] if mount.startswith("/tmp:"))
    gigabytes = int(re.fullmatch(r"\$\{EDGE_TMP:-(\d+)g\},mode=1777", size)[1])  # type: ignore[index]
    template = (COMPOSE / "edge" / "nginx.conf.template").read_text()
    largest = max(map(int, re.findall(r"client_max_body_size (\d+)m;", template)))
    assert gigabytes << 10 >= 10 * largest
    assert f"at most {bodies.HELD_BYTES >> 20} MiB for each of INGEST_WORKERS" in EXAMPLE


def test_what_may_be_many_has_no_port_of_the_machine_and_nothing_that_others_could_overwrite():
    for name in ("ingest", "manage", "keeper", "query"):
        volumes = SERVICES[name].get("volumes", [])
        assert "ports" not in SERVICES[name] and all(each.endswith(":ro") for each in volumes), name


def test_only_the_edge_is_reached_from_outside_and_query_reaches_no_database():
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"edge", "prometheus", "grafana"}
    for name in ("prometheus", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
    assert {name for name, network in FILE["networks"].items() if not network.get("internal")} == {"outside"}
    assert set(SERVICES["query"]["networks"]) == {"front", "redis"}
    assert set(SERVICES["edge"]["networks"]) == {"outside", "front"}


def test_the_profiles_are_whole():
    """Nothing in a profile needs what is not in it, unless it says that it can do without."""
    for profile in ("all", "single"):
        inside = {name for name, service in SERVICES.items() if profile in service["profiles"]}
        for name in inside:
            needs = SERVICES[name].get("depends_on", {})
            assert {need for need, how in needs.items() if how.get("required", True)} <= inside, (profile, name)
        assert ("replica" in inside) == (profile == "all")


def test_every_file_that_is_mounted_exists():
    for name in FILES:
        for service in yaml.safe_load((COMPOSE / name).read_text())["services"].values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                assert not source.startswith(".") or (COMPOSE / source).exists(), source


def test_prometheus_asks_the_services_under_the_names_that_they_have():
    scraping = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    asked = {name for job in scraping for where in job["dns_sd_configs"] for name in where["names"]}
    assert asked == set(OURS)
    assert all("front" in SERVICES[name]["networks"] for name in (*asked, "prometheus"))
    assert {where["port"] for job in scraping for where in job["dns_sd_configs"]} == {8000}


def test_the_dashboard_shows_metrics_that_exist_from_the_source_that_is_provisioned():
    dashboard = json.loads((COMPOSE / "grafana" / "dashboards" / "rollcall.json").read_text())
    (source,) = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    listed = (ROOT / "docs" / "metrics-and-logs.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    metrics = set(re.findall(r"`(rollcall_[a-z_]+)`", listed))
    assert len(dashboard["panels"]) >= 10
    shown = set()
    for panel in (each for each in dashboard["panels"] if each["type"] != "row"):
        assert panel["datasource"]["uid"] == source["uid"]
        for target in panel["targets"]:
            names = set(re.findall(r"rollcall_[a-z_]+", target["expr"]))
            assert names, panel["title"]
            shown |= {name if name in metrics else re.sub("_(total|bucket|count|sum)$", "", name) for name in names}
    assert shown <= metrics
