"""The scripts that set up the containers' Postgres and Redis, run unchanged with the servers of the tests."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
from collections.abc import Iterator
from http.client import HTTPResponse
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import psycopg2
import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from compose import credentials
from compose.local.ordinary_user import own
from compose.local.processes import Process, make_folder
from compose.local.servers import HOST, POSTGRES_SETTINGS, Postgres, postgres_program, redis_program
from compose.local.services import Web
from shared_models.web import tokens
from tests.servers import FAST, free_port, servers_folder, start, wait_for

COMPOSE = Path(__file__).resolve().parent.parent.parent / "compose"
POSTGRES_BIN = Path(postgres_program("postgres")).parent


@pytest.fixture(scope="module")
def secrets() -> Path:
    """The secrets of a deployment, made as people make them."""
    folder = servers_folder() / "secrets"
    credentials.make(folder, "replica")
    own(folder)
    return folder


SERVICES = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["services"]
ADMIN = yaml.safe_load((COMPOSE / "admin.yml").read_text())["services"]


def given_to(service: str, secrets: Path) -> str:
    """A folder as the container of this service has it: with the secrets that it is given, and no others."""
    folder = secrets / f"of-{service}"
    make_folder(folder)
    for name in SERVICES[service]["secrets"]:
        if not (folder / name).exists():
            (folder / name).symlink_to(secrets / name)
    return str(folder)


def secret(secrets: Path, name: str) -> str:
    return (secrets / name).read_text()


class Deployed(Postgres):
    """A Postgres of docker-compose.yml: its command there, on a port and in a folder of its own."""

    service: str

    def __init__(self, folder: Path, port: int, secrets: Path) -> None:
        super().__init__(folder, port, dies_with_parent=True, settings=FAST)
        self.secrets = secrets

    @property
    def password(self) -> str:
        return secret(self.secrets, "postgres_superuser")

    @property
    def url(self) -> str:
        return f"postgres://postgres:{self.password}@{HOST}:{self.port}/rollcall"

    def options(self) -> list[str]:
        """Those of docker-compose.yml, and where the tests want them otherwise, theirs behind."""
        given = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in SERVICES[self.service]["command"]]
        given = [word.replace("/rollcall/", f"{COMPOSE / 'postgres'}/") for word in given if word != "postgres"]
        ours = POSTGRES_SETTINGS | self.settings | {"port": str(self.port)}
        return [*given, *(word for name, value in ours.items() for word in ("-c", f"{name}={value}"))]


class DeployedPrimary(Deployed):
    service = "primary"

    def __init__(self, folder: Path, port: int, secrets: Path) -> None:
        super().__init__(folder, port, secrets)
        # As on many a server: it keeps statements, as they are where they are no queries.
        self.settings["shared_preload_libraries"] = "pg_stat_statements"

    def create(self) -> None:
        """What the image does at its first start, with the same arguments."""
        super().create()
        arguments = SERVICES["primary"]["environment"]["POSTGRES_INITDB_ARGS"].split()
        password_file = f"--pwfile={self.secrets / 'postgres_superuser'}"
        initdb = [postgres_program("initdb"), "-D", str(self.data), "-U", "postgres", "--no-sync", password_file]
        self.run([*initdb, *arguments])
        single = [postgres_program("postgres"), "--single", "-D", str(self.data), "postgres"]
        self.run(single, input="CREATE DATABASE rollcall\n")

    def command(self) -> list[str]:
        return [postgres_program("postgres"), "-D", str(self.data), *self.options()]

    def make_roles(self) -> None:
        variables = {"PGHOST": HOST, "PGPORT": str(self.port), "PGUSER": "postgres", "PGDATABASE": "rollcall"}
        self.run(
            ["sh", str(COMPOSE / "postgres" / "make_roles.sh")],
            variables
            | {"SECRETS_FOLDER": given_to("roles", self.secrets), "PATH": f"{POSTGRES_BIN}:{os.environ['PATH']}"},
        )


class DeployedReplica(Deployed):
    service = "replica"

    def __init__(self, folder: Path, port: int, secrets: Path, primary: DeployedPrimary) -> None:
        super().__init__(folder, port, secrets)
        self.primary = primary

    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{POSTGRES_BIN}:{os.environ['PATH']}",
            "PGDATA": str(self.data),
            "SECRETS_FOLDER": given_to("replica", self.secrets),
            "PRIMARY_HOST": HOST,
            "PRIMARY_PORT": str(self.primary.port),
        }

    def command(self) -> list[str]:
        return ["sh", str(COMPOSE / "postgres" / "replica.sh"), *self.options()]


@pytest.fixture(scope="module")
def deployed(secrets: Path) -> DeployedPrimary:
    primary = DeployedPrimary(servers_folder() / "deployed-primary", free_port(), secrets)
    start(primary)
    primary.make_roles()
    return primary


@pytest.fixture(scope="module")
def seeded(deployed: DeployedPrimary, secrets: Path) -> DeployedReplica:
    replica = DeployedReplica(servers_folder() / "deployed-replica", free_port(), secrets, deployed)
    start(replica)
    return replica


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def url_of(server: Deployed, role: str) -> str:
    """The URL of the secrets, with the place where the tests have this server."""
    url = urlsplit(secret(server.secrets, f"{role}_database_url"))
    return url._replace(netloc=f"{url.username}:{url.password}@{HOST}:{server.port}").geturl()


@pytest.mark.parametrize("role", ["owner", "ingest", "admin", "manage"])
def test_each_role_gets_in_with_the_password_of_its_url(deployed: DeployedPrimary, role: str) -> None:
    assert ask(url_of(deployed, role), "SELECT current_user") == [(f"rollcall_{role}",)]


def test_nobody_gets_in_without_or_to_another_database(deployed: DeployedPrimary) -> None:
    good = url_of(deployed, "ingest")
    for bad in (
        re.sub(r":\w+@", ":wrong@", good),
        good.replace("/rollcall", "/postgres"),
        f"postgres://rollcall_replica:{secret(deployed.secrets, 'postgres_replica')}@{HOST}:{deployed.port}/rollcall",
    ):
        with pytest.raises(psycopg2.OperationalError, match=r"authentication failed|no pg_hba.conf entry"):
            psycopg2.connect(bad)


def test_no_password_is_in_the_log_or_in_the_data(deployed: DeployedPrimary, seeded: DeployedReplica) -> None:
    passwords = [re.sub(r".*:(\w+)@.*", r"\1", path.read_text()) for path in deployed.secrets.glob("*_database_url")]
    passwords.append(secret(deployed.secrets, "postgres_replica"))
    said = deployed.log.read_text() + seeded.log.read_text()
    said += "".join(path.read_text() for path in seeded.data.glob("*.conf"))
    assert len(passwords) == 5 and not [password for password in passwords if password in said]


def test_no_password_is_in_the_statements_that_the_server_keeps(deployed: DeployedPrimary) -> None:
    ask(deployed.url, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    deployed.make_roles()
    kept = [query for (query,) in ask(deployed.url, "SELECT query FROM pg_stat_statements")]
    assert [query for query in kept if "pg_stat_statements" in query]
    assert [query for query in kept if "PASSWORD" in query.upper()] == []


def test_a_changed_password_takes_effect_when_the_roles_are_made_again(deployed: DeployedPrimary) -> None:
    path = deployed.secrets / "ingest_database_url"
    old = url_of(deployed, "ingest")
    path.write_text(re.sub(r":\w+@", ":changed1@", path.read_text()))
    deployed.make_roles()
    assert ask(url_of(deployed, "ingest"), "SELECT 1") == [(1,)]
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        psycopg2.connect(old)


def test_a_password_that_a_url_would_have_to_escape_is_refused_by_name(deployed: DeployedPrimary) -> None:
    path = deployed.secrets / "manage_database_url"
    good = path.read_text()
    path.write_text(re.sub(r":\w+@", ":p%40ss@", good))
    try:
        with pytest.raises(Exception, match="manage_database_url: has to be postgres://role:password"):
            deployed.make_roles()
    finally:
        path.write_text(good)


def test_the_replica_seeds_itself_streams_and_goes_on_after_a_restart(
    deployed: DeployedPrimary, seeded: DeployedReplica
) -> None:
    ask(deployed.url, "CREATE TABLE seen (n int)")

    def shown() -> int | None:
        try:
            return ask(seeded.url, "SELECT count(*)::int FROM seen")[0][0]
        except psycopg2.errors.UndefinedTable:
            return None

    ask(deployed.url, "INSERT INTO seen VALUES (1)")
    wait_for(lambda: shown() == 1, "the row on the replica")
    assert ask(seeded.url, "SELECT pg_is_in_recovery()") == [(True,)]
    assert ask(deployed.url, "SELECT slot_name, active FROM pg_replication_slots") == [("replica", True)]
    seeded.stop()
    ask(deployed.url, "INSERT INTO seen VALUES (2)")
    seeded.start()
    wait_for(lambda: shown() == 2, "what was written while it was away")
    assert seeded.log.read_text().count("Copying the primary") == 1


def test_a_copy_that_was_interrupted_is_made_anew(deployed: DeployedPrimary, seeded: DeployedReplica) -> None:
    seeded.stop()
    # As a container that was killed in the middle leaves it; the slot is there already.
    shutil.rmtree(seeded.data)
    half = seeded.data.with_name("data.new")
    make_folder(half)
    (half / "PG_VERSION").write_text("18\n")
    seeded.start()
    assert ask(seeded.url, "SELECT pg_is_in_recovery()") == [(True,)]
    assert not half.exists()
    assert seeded.log.read_text().count("Copying the primary") == 2


class DeployedRedis(Process):
    """The Redis of docker-compose.yml, started by its script; the server itself is Valkey."""

    port: int

    def __init__(self, folder: Path, port: int, secrets: Path) -> None:
        super().__init__(folder, port, dies_with_parent=True)
        self.secrets = secrets

    def create(self) -> None:
        super().create()
        link = self.folder / "redis-server"
        link.unlink(missing_ok=True)
        link.symlink_to(redis_program())

    def environment(self) -> dict[str, str]:
        path = f"{self.folder}:{os.environ['PATH']}"
        return {"PATH": path, "SECRETS_FOLDER": given_to("redis", self.secrets), "TMPDIR": str(self.folder)}

    def command(self) -> list[str]:
        options = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in SERVICES["redis"]["command"]]
        options[options.index("/data")] = str(self.folder)
        return ["sh", str(COMPOSE / "redis" / "start.sh"), *options, "--bind", HOST, "--port", str(self.port)]

    def client(self, user: str, password: str) -> redis.Redis:
        once = Retry(NoBackoff(), 0)
        return redis.Redis(host=HOST, port=self.port, username=user, password=password, retry=once, protocol=2)

    def why_not_ready(self) -> str | None:
        try:
            with self.client("admin", secret(self.secrets, "redis_admin")) as client:
                client.ping()
        except redis.RedisError as error:
            return str(error)
        return None


@pytest.fixture(scope="module")
def deployed_redis(secrets: Path) -> Iterator[DeployedRedis]:
    server = DeployedRedis(servers_folder() / "deployed-redis", free_port(), secrets)
    start(server)
    yield server
    server.stop()


@pytest.mark.parametrize("user", ["ingest", "manage", "query"])
def test_each_user_of_redis_gets_in_with_the_password_of_its_url(deployed_redis: DeployedRedis, user: str) -> None:
    url = urlsplit(secret(deployed_redis.secrets, f"{user}_redis_url"))
    assert url.username == user
    with deployed_redis.client(user, url.password or "") as client:
        assert client.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.flushall()
    with deployed_redis.client(user, "wrong") as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()


def test_redis_drops_nothing_and_keeps_what_it_has(deployed_redis: DeployedRedis) -> None:
    admin = secret(deployed_redis.secrets, "redis_admin")
    with deployed_redis.client("admin", admin) as client:
        assert client.config_get("maxmemory*") | {"maxmemory": "1073741824", "maxmemory-policy": "noeviction"} == (
            client.config_get("maxmemory*")
        )
        client.set("kept", 1)
    deployed_redis.stop()
    deployed_redis.start()
    with deployed_redis.client("admin", admin) as client:
        assert client.get("kept") == b"1"
        assert client.info("persistence")["aof_enabled"] == 1
    assert hashlib.sha256(admin.encode()).hexdigest() in (deployed_redis.folder / "users.acl").read_text()


def told(service: str, primary: DeployedPrimary, server: DeployedRedis) -> dict[str, str]:
    """The variables of a container with the admin on; its secrets say where the tests have the stores."""
    folder = primary.secrets / f"of-{service}-with-admin"
    make_folder(folder)
    for name in (*SERVICES[service]["secrets"], *ADMIN[service]["secrets"]):
        moved = secret(primary.secrets, name).replace("@primary:5432", f"@{HOST}:{primary.port}")
        (folder / name).write_text(moved.replace("@redis:6379", f"@{HOST}:{server.port}"))
    variables = SERVICES[service]["environment"] | ADMIN[service]["environment"]
    mounted = ("PROMETHEUS_MULTIPROC_DIR", "ROLLCALL_FILE")
    variables = {name: value for name, value in variables.items() if name not in mounted}
    return {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value).replace("/run/secrets", str(folder))
        for name, value in variables.items()
        if value is not None
    }


def test_the_admin_that_is_turned_on_lets_in_whom_the_owner_made(
    deployed: DeployedPrimary, deployed_redis: DeployedRedis
) -> None:
    """The commands of docs/deploy.md in their containers, then a browser that came to the edge by TLS."""
    (deployed.secrets / "ingest_tokens").write_text(tokens.make("till-7")[1])
    ingest = Web(
        servers_folder() / "deployed-ingest",
        free_port(),
        lambda: told("ingest", deployed, deployed_redis),
        application="ingest_service.asgi:application",
        dies_with_parent=True,
    )
    owner, password = told("migrate", deployed, deployed_redis), "correct horse battery"
    ingest.create()
    ingest.run([sys.executable, *SERVICES["migrate"]["command"][1:]], owner)
    ingest.run([sys.executable, "-m", "ingest_service", "admin_user", "ann"], owner | {"ADMIN_PASSWORD": password})
    start(ingest)
    edge = {"Host": "ingest.example.org", "X-Forwarded-Proto": "https"}
    cookies: SimpleCookie = SimpleCookie()

    def ask_admin(method: str, path: str, body: str | None = None, **headers: str) -> HTTPResponse:
        connection = http.client.HTTPConnection(HOST, ingest.port, timeout=30)
        sent = "; ".join(f"{name}={cookie.value}" for name, cookie in cookies.items())
        try:
            connection.request(method, path, body, edge | {"Cookie": sent} | headers)
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        for line in answer.headers.get_all("Set-Cookie") or ():
            cookies.load(line)
        return answer

    assert ask_admin("GET", "/admin/login/").status == 200
    form = urlencode({"csrfmiddlewaretoken": cookies["csrftoken"].value, "username": "ann", "password": password})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    elsewhere = ask_admin("POST", "/admin/login/", form, Origin="https://elsewhere.example.org", **kind)
    assert elsewhere.status == 403
    signed_in = ask_admin("POST", "/admin/login/", form, Origin="https://ingest.example.org", **kind)
    assert (signed_in.status, signed_in.headers["Location"]) == (302, "/admin/")
    assert all(cookie["secure"] for cookie in cookies.values())
    assert ask_admin("GET", "/admin/shared_models/message/").status == 200
