"""The steps of the trial: what docs/deploy.md tells an operator to do, one after the other."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.cookiejar import CookieJar
from typing import Any
from uuid import uuid4

import trustme

from compose.containers import standins
from compose.containers.engine import PROJECT, Engine, EngineError

# In the order in which they need each other. Docker finds it by itself; the older Podman does not.
STORES, ONCE, SERVICES = ("primary", "replica", "redis"), ("roles", "migrate"), ("ingest", "manage", "keeper", "query")
HOSTS = {"ingest": "ingest.localhost", "manage": "manage.localhost", "query": "counts.localhost"}
COUNTER = "users"
SECONDS_TO_COUNT = 30.0
SECONDS_TO_REBUILD = 60.0
# The edge keeps the addresses of a name for five seconds, and an answer may take two.
EDGE_LOOKS_SECONDS = 7.5
# How long a client tries again.
PATIENCE_SECONDS = 30.0


def told(tally: dict[str, int]) -> str:
    """What clients have met, in words."""
    return f"{tally['posts']} posts and {tally['counts']} counts, none failed; {tally['tried again']} were tried again"


@dataclass
class Trial:
    """A deployment in containers, and what was found out about it."""

    engine: Engine
    edge_port: int
    scheme: str = "http"
    trust: ssl.SSLContext | None = None
    tokens: dict[str, str] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    held: list[tuple[str, str, str]] = field(default_factory=list)  # step, result, figures
    variables: dict[str, str] = field(default_factory=dict)

    # -- what an operator writes and asks

    def set(self, **variables: str) -> None:
        """Write variables into .env."""
        self.variables |= variables
        self.engine.files = self.variables.get("COMPOSE_FILE", "docker-compose.yml").split(":")
        lines = [f"{name}={value}" for name, value in self.variables.items()]
        (self.engine.folder / ".env").write_text("\n".join([*lines, ""]))

    def ask(self, role: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """One request through the edge: its status, and its body (from JSON if it is)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if role in self.tokens:
            named["Authorization"] = f"Bearer {self.tokens[role]}"
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.scheme}://127.0.0.1:{self.edge_port}{path}",
            data,
            {"Host": HOSTS[role], "Content-Type": "application/json", **named},
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.trust) as answer:
                status, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, said = error.code, error.read()
        try:
            return status, json.loads(said)
        except ValueError:
            return status, said.decode(errors="replace")

    def post(self, *names: str, key: str = "") -> str:
        """Send messages of these users, with a key; why they were not taken, or nothing."""
        rows = [{"state": "NY", "city": "Ithaca", "username": name, "message": "hello"} for name in names]
        try:
            status, said = self.ask("ingest", "/v1/messages/batch", rows, Idempotency_Key=f'"{key or uuid4().hex}"')
        except OSError as error:
            return str(error)
        if status != 200:
            return f"{status} {said}"
        self.sent.update(names)
        return ""

    def must_post(self, *names: str) -> None:
        """The same. Raises EngineError if they were not taken."""
        if complaint := self.post(*names):
            raise EngineError(complaint)

    def ask_count(self) -> str:
        """Ask for the count; why there is none, or nothing."""
        try:
            status, said = self.ask("query", f"/v1/counts/{COUNTER}")
        except OSError as error:
            return str(error)
        return "" if status == 200 else f"{status} {said}"

    def count(self) -> int | None:
        """The count of users; None if there is none at present. Raises EngineError if it is a wrong one."""
        try:
            status, said = self.ask("query", f"/v1/counts/{COUNTER}")
        except OSError:
            return None
        if status != 200 or said.get("state") != "live":
            return None
        if said["count"] > len(self.sent):
            raise EngineError(f"a wrong number: {said['count']} users, and {len(self.sent)} were sent")
        return int(said["count"])

    def until(self, condition: Callable[[], object], what: str, seconds: float = SECONDS_TO_COUNT) -> float:
        """Wait for something; how many seconds it took. Raises EngineError."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > seconds:
                raise EngineError(f"waited {seconds:.0f} s for {what}")
            time.sleep(0.1)
        return time.monotonic() - began

    def until_counted(self, seconds: float = SECONDS_TO_COUNT) -> float:
        """Wait until all that was sent is counted."""
        return self.until(lambda: self.count() == len(self.sent), f"{len(self.sent)} users to be counted", seconds)

    @contextlib.contextmanager
    def under_load(self) -> Iterator[dict[str, int]]:
        """Clients that post and ask for as long as the block runs. Raises EngineError if one request failed.

        As the answers say, a client that is told 503 tries again; how often that was is counted.
        """
        tally, stop = {"posts": 0, "counts": 0, "tried again": 0}, threading.Event()
        failures: list[str] = []

        def until_answered(what: str, attempt: Callable[[], str]) -> None:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while complaint := attempt():
                if time.monotonic() > deadline:
                    failures.append(f"{what}: {complaint}")
                    return
                tally["tried again"] += 1
                time.sleep(0.5)
            tally[what] += 1

        def write() -> None:
            while not stop.is_set():
                name = f"load {uuid4().hex}"
                until_answered("posts", partial(self.post, name, key=name.removeprefix("load ")))

        def read() -> None:
            while not stop.is_set():
                until_answered("counts", self.ask_count)
                time.sleep(0.01)

        threads = [threading.Thread(target=each) for each in (write, write, read, read)]
        for thread in threads:
            thread.start()
        try:
            yield tally
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        if failures:
            raise EngineError(f"{len(failures)} requests failed; {failures[0]}")

    # -- the steps

    def images(self) -> str:
        found = standins.provide(self.engine)
        self.set(
            COMPOSE_PROFILES="all", EDGE_PORT=str(self.edge_port), EDGE_ADDRESS="127.0.0.1", ROLLCALL_VERSION="trial"
        )
        standins.build_services(self.engine, "trial")
        for image, what in found.items():
            print(f"  {image}: {what}")
        sizes = [
            f"{name} {self.engine.size_bytes(f'rollcall-{name}:trial') / 1e6:.0f} MB"
            for name in ("ingest", "manage", "query")
        ]
        return ", ".join(sizes)

    def credentials(self, *words: str) -> str:
        checkout = self.engine.folder.parent
        subprocess.run(
            [sys.executable, "-m", "compose.credentials", *words], cwd=checkout, check=True, capture_output=True
        )
        for role in ("ingest", "manage"):
            said = self.engine.run(
                "run", "--rm", f"rollcall-{role}:trial", "python", "-m", "shared_models.web.tokens", "trial"
            )
            token = said.splitlines()[0].split()[-1]
            (line,) = re.findall(r"\btrial:[0-9a-f]{64}\b", said)
            with (self.engine.folder / "secrets" / f"{role}_tokens").open("a") as file:
                file.write(line + "\n")
            self.tokens[role] = token
        return "a password for each role, and tokens"

    def up(self, *stores: str) -> str:
        began = time.monotonic()
        self.engine.start("primary")
        for each in ONCE:
            if each == "migrate":
                self.engine.start("redis")  # it needs a Redis to talk about, not to talk to
            self.engine.run_once(each)
        self.engine.start(*[each for each in stores or STORES if each not in ("primary", "redis")], *SERVICES)
        self.set(EDGE_RESOLVER=self.engine.name_server())
        self.engine.start("edge")
        self.until(lambda: not self.post("first"), "the first message to be taken")
        self.until_counted()
        return f"first count {time.monotonic() - began:.0f} s after the first container"

    def messages(self) -> str:
        self.must_post(*(f"user {number}" for number in range(2_000)))
        took = self.until_counted()
        status, said = self.ask("manage", "/v1/status")
        if status != 200:
            raise EngineError(f"status: {status} {said}")
        self.until(lambda: self.ask("manage", "/v1/status")[1]["healthy"], "the status to be healthy")
        return f"2,000 users counted after {took:.1f} s; status healthy"

    def memory(self) -> str:
        found = {}
        for service in ("ingest", "manage", "keeper", "query", "edge", "redis", "primary", "replica"):
            names = self.engine.containers(service)
            if names:
                found[service] = self.engine.memory_bytes(names[0]) / 1e6
        return ", ".join(f"{service} {size:.0f}" for service, size in found.items()) + " MB"

    def scale(self) -> str:
        self.engine.start("query", many=3)
        self.engine.start("ingest", many=2)
        many = {service: len(self.engine.containers(service)) for service in ("query", "ingest")}
        if many != {"query": 3, "ingest": 2}:
            raise EngineError(f"there are {many}")
        self.let_edge_look()
        with self.under_load() as tally:
            time.sleep(3)
        self.until_counted()
        return f"3 of query, 2 of ingest; {told(tally)}"

    def restarts(self) -> str:
        with self.under_load() as tally:
            for service in ("query", "ingest", "manage", "keeper"):
                for name in self.engine.containers(service):
                    self.engine.run("restart", "--time", "40", name)
                    self.engine.wait_healthy(service)
                    self.let_edge_look()
        self.until_counted()
        return told(tally)

    def admin(self) -> str:
        self.set(COMPOSE_FILE="docker-compose.yml:admin.yml", ADMIN_ORIGIN=f"http://ingest.localhost:{self.edge_port}")
        self.again("ingest")
        self.engine.compose("rm", "--force", "migrate", check=False)
        for name in self.engine.containers("migrate"):
            self.engine.run("rm", "--force", "--volumes", name)
        self.engine.run_once("migrate")
        password = uuid4().hex
        self.engine.compose(
            *("run", "--rm", "--no-deps", "-e", f"ADMIN_PASSWORD={password}", "migrate"),
            *("python", "-m", "ingest_service", "admin_user", "ann"),
        )
        self.until(partial(self.signs_in, "ann", password), "the admin to let in whom the owner made")
        return "an account made by the owner signs in"

    def tls(self) -> str:
        authority = trustme.CA()
        certificate = authority.issue_cert(*HOSTS.values(), "127.0.0.1")
        secrets = self.engine.folder / "secrets"
        (secrets / "edge_certificate").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        (secrets / "edge_key").write_bytes(certificate.private_key_pem.bytes())
        for name in ("edge_certificate", "edge_key"):
            (secrets / name).chmod(0o644)
        self.set(COMPOSE_FILE="docker-compose.yml:tls.yml")
        self.scheme, self.trust = "https", ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        self.again("edge")
        self.must_post("over tls")
        self.until_counted()
        return "messages and counts over https"

    def lost_redis(self) -> str:
        self.remove("redis", volume="redis")
        self.engine.start("redis")
        seen: list[int | None] = []

        def is_back() -> bool:
            seen.append(self.count())  # raises if it is wrong
            return seen[-1] == len(self.sent)

        took = self.until(is_back, "the counters to be built again", SECONDS_TO_REBUILD)
        wrong = {each for each in seen if each is not None and each != len(self.sent)}
        if wrong:
            raise EngineError(f"live counts of {wrong}, and {len(self.sent)} were sent")
        return f"no count for {took:.1f} s, then the right one"

    def lost_replica(self) -> str:
        self.remove("replica", volume="replica")
        self.must_post("without a replica")
        self.until_counted()
        began = time.monotonic()
        self.engine.start("replica")
        self.until(lambda: self.ask("manage", "/v1/status")[1].get("healthy"), "the status to be healthy", 90)
        self.until_counted()
        return (
            f"counted without it; a new one was there, and the status healthy, after {time.monotonic() - began:.0f} s"
        )

    def upgrade(self) -> str:
        for service in ("ingest", "manage", "query"):
            self.engine.run("tag", f"rollcall-{service}:trial", f"localhost/rollcall-{service}:next")
        self.set(ROLLCALL_VERSION="next")
        with self.under_load() as tally:
            for service in ("query", "ingest", "manage", "keeper"):
                many = len(self.engine.containers(service))
                for name in self.engine.containers(service):
                    self.engine.run("stop", "--time", "40", name)
                    self.engine.run("rm", "--volumes", name)
                    self.engine.start(service, many=many)
                    self.let_edge_look()
        self.until_counted()
        image = json.loads(self.engine.run("inspect", self.engine.containers("query")[0]))[0]["Config"]["Image"]
        if not image.endswith(":next"):
            raise EngineError(f"query runs {image}")
        return told(tally)

    def metrics(self) -> str:
        port = self.edge_port + 1
        self.set(COMPOSE_PROFILES="all,metrics", PROMETHEUS_PORT=str(port))
        self.engine.start("prometheus")

        def targets() -> list[str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/targets", timeout=5) as answer:
                    return [each["health"] for each in json.load(answer)["data"]["activeTargets"]]
            except OSError:
                return []

        self.until(lambda: len(targets()) >= 5 and set(targets()) == {"up"}, "all targets to be up", 60)
        return f"{len(targets())} targets up; Grafana was not run" + (
            "" if self.engine.is_docker else ": there is no package of it"
        )

    def down(self) -> str:
        self.engine.down()
        left = [
            name
            for name in self.engine.run("ps", "--all", "--format", "{{.Names}}").split()
            if name.startswith(PROJECT)
        ]
        if left:
            raise EngineError(f"left: {', '.join(left)}")
        self.sent.clear()
        self.scheme, self.trust = "http", None
        return "containers, networks and volumes are gone"

    def single(self) -> str:
        for name in (self.engine.folder / "secrets").iterdir():
            name.unlink()
        self.set(COMPOSE_FILE="docker-compose.yml", COMPOSE_PROFILES="single", ROLLCALL_VERSION="trial")
        self.credentials("--single")
        said = self.up("primary", "redis")
        return said + "; " + self.messages()

    # -- helpers of the steps

    def signs_in(self, name: str, password: str) -> bool:
        """Whether somebody can sign in to the admin; False if it says 503. Raises EngineError, OSError."""
        jar = CookieJar()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        url = f"http://127.0.0.1:{self.edge_port}/admin/login/"
        headers = {"Host": f"ingest.localhost:{self.edge_port}"}
        try:
            opener.open(urllib.request.Request(url, headers=headers), timeout=20).read()
            csrf = next(cookie.value for cookie in jar if cookie.name.endswith("csrftoken"))
            form = f"username={name}&password={password}&csrfmiddlewaretoken={csrf}&next=/admin/".encode()
            request = urllib.request.Request(url, form, {**headers, "Referer": url})
            page = opener.open(request, timeout=20).read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return False
            raise
        if "Log out" not in page and "logout" not in page:
            raise EngineError("nobody is signed in after the form was sent")
        return True

    def again(self, service: str) -> None:
        """Make the containers of a service anew, as `up` does when its definition has changed."""
        many = len(self.engine.containers(service))
        for name in self.engine.containers(service):
            self.engine.run("rm", "--force", "--volumes", "--time", "40", name)
        self.engine.start(service, many=many)
        self.let_edge_look()

    def let_edge_look(self) -> None:
        """Wait until the edge has the addresses of new instances. It looks for them every five seconds."""
        time.sleep(EDGE_LOOKS_SECONDS)

    def remove(self, service: str, volume: str) -> None:
        """A service and its data are gone."""
        for name in self.engine.containers(service):
            self.engine.run("rm", "--force", "--volumes", "--time", "20", name)
        self.engine.run("volume", "rm", f"{PROJECT}_{volume}")

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """All steps, in their order."""
        return [
            ("images", self.images),
            ("credentials", self.credentials),
            ("up, profile all", self.up),
            ("post and count", self.messages),
            ("memory", self.memory),
            ("scale", self.scale),
            ("restart each under load", self.restarts),
            ("the admin", self.admin),
            ("TLS at the edge", self.tls),
            ("a lost Redis", self.lost_redis),
            ("a lost replica", self.lost_replica),
            ("upgrade under load", self.upgrade),
            ("profile metrics", self.metrics),
            ("down", self.down),
            ("up, profile single", self.single),
            ("down again", self.down),
        ]

    def run(self) -> bool:
        """All steps; a step that fails ends the trial. Returns whether all held."""
        for name, step in self.steps():
            began = time.monotonic()
            print(f"{name} …", flush=True)
            try:
                said = step()
            except (EngineError, OSError, subprocess.SubprocessError, KeyError) as error:
                self.held.append((name, "FAILED", f"{type(error).__name__}: {error}"))
                return False
            self.held.append((name, f"{time.monotonic() - began:.0f} s", said))
        return True
