"""Attackers and clumsy clients at each service, without the edge: no worker ends, no memory grows without limit, nobody waits.

docs/hostile-clients.md has a line for each kind: what holds it, and what it costs. Each service is one worker here, with its
own configuration, default limits and a token.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared_models.web.bodies import HELD_BYTES
from tests.servers import DEADLINE_SECONDS, free_port, started_primary, started_valkey, wait_for

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "rollcall_of-a-test"
AUTHORIZATION = f"Authorization: Bearer {TOKEN}\r\n"
SCRIPT = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
# A path of each service that needs the token, and one that takes a body.
GUARDED = {"ingest": "/v1/messages", "query": "/v1/counts", "manage": "/v1/status"}
POSTED = {"ingest": "/v1/messages/batch", "query": "/v1/counts/users/members", "manage": "/v1/runs"}
SERVICES = tuple(GUARDED)

CLIENTS = 800
# A request among all of them takes milliseconds, and on a busy machine tenths of a second. One that had to wait for another
# client would wait for ten seconds at least.
NORMAL_SECONDS = 5.0


class Naked:
    """A service in processes of its own, without anything in front of it."""

    def __init__(self, service: str, folder: Path, **variables: str) -> None:
        self.service, self.port, self.log = service, free_port(), folder / f"{service}.log"
        self.variables = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"} | {
            "PORT": str(self.port),
            "WORKERS": "1",
            "TMPDIR": str(folder),
            "TOKENS": f"tester:{hashlib.sha256(TOKEN.encode()).hexdigest()}",
            "REDIS_URL": started_valkey().url,
            "DATABASE_URL": started_primary().url,
            **variables,
        }
        if service == "ingest":
            migrate = [sys.executable, "-m", "ingest_service", "migrate", "--verbosity=0"]
            subprocess.run(migrate, cwd=ROOT, env=self.variables, check=True)
        command = [sys.executable, "-m", "gunicorn", "-c", f"{service}_service/gunicorn.conf.py"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.variables, stdout=log, stderr=log)

    def wait(self) -> Naked:
        wait_for(self.answers, f"{self.service} to answer", seconds=60)
        (self.worker,) = self.workers()
        return self

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE_SECONDS * 2)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self.ask("GET", "/livez")[0] == 200
        return False

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """A request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **named})  # type: ignore[arg-type]
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE_SECONDS)

    def say(self, text: bytes, answers: int = 1) -> list[int]:
        """Send this, and nothing after as many answers; the status of each answer that came all the same."""
        received = b""
        with self.connect() as raw:
            raw.sendall(text)
            while piece := raw.recv(1 << 16):
                received += piece
                if received.count(b"HTTP/1.1 ") >= answers:
                    with contextlib.suppress(OSError):  # closed already
                        raw.shutdown(socket.SHUT_WR)
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]

    def workers(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def most_memory(self) -> Callable[[], int]:
        """Asks how many bytes the worker has needed, at most, beyond what it has now."""

        def most() -> int:
            return int(Path(f"/proc/{self.worker}/status").read_text().partition("VmHWM:")[2].split()[0]) << 10

        Path(f"/proc/{self.worker}/clear_refs").write_text("5")  # forget what was
        before = most()
        return lambda: most() - before


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Naked]]:
    """All three. In the end each still has the worker that it had, and no fault in its log."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = tmp_path_factory.mktemp("hostile")
    running = {service: Naked(service, folder) for service in SERVICES}
    try:
        yield {service: naked.wait() for service, naked in running.items()}
        for naked in running.values():
            assert naked.workers() == [naked.worker], naked.log.read_text()
            assert "Traceback" not in naked.log.read_text(), naked.log.read_text()[-3000:]
    finally:
        for naked in running.values():
            naked.stop()


def head(method: str, path: str, more: str = "") -> bytes:
    """A request's head, with a token."""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{AUTHORIZATION}{more}\r\n".encode()


def post(service: str, more: str) -> bytes:
    return head("POST", POSTED[service], f"Content-Type: application/json\r\n{more}")


# Of each kind: how many, what each says, and how much memory each may cost, in kB. Measured: docs/hostile-clients.md.
KINDS: dict[str, tuple[int, Callable[[str], bytes], int]] = {
    "silent": (CLIENTS, lambda service: b"", 40),
    "in the head": (CLIENTS, lambda service: head("GET", "/livez")[:-10], 40),
    "in the body": (CLIENTS, lambda service: post(service, "Content-Length: 50000\r\n") + b"{", 80),
    "in a chunk": (CLIENTS, lambda service: post(service, "Transfer-Encoding: chunked\r\n") + b"ffff\r\n{", 80),
    "in tiny chunks": (
        CLIENTS,
        lambda service: post(service, "Transfer-Encoding: chunked\r\n") + b"1\r\n \r\n" * 200,
        80,
    ),
    "a body that is announced": (
        CLIENTS,
        lambda service: post(service, "Expect: 100-continue\r\nContent-Length: 9\r\n"),
        80,
    ),
    # Fewer: a request costs the service as much as one of a good client, and each says hundreds.
    "pipelined, and not reading": (10, lambda service: head("GET", "/livez") * 700, 6_000),
    "files, and not reading": (40, lambda service: head("GET", SCRIPT) * 5, 600),
    "metrics, and not reading": (10, lambda service: head("GET", "/metrics") * 10, 600),
    "a stream, and not reading": (
        CLIENTS,
        lambda service: head("GET", "/v1/stream") if service == "query" else b"",
        80,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_slow_clients_hold_nobody_up(services: dict[str, Naked], kind: str) -> None:
    number, say, kilobytes = KINDS[kind]
    with contextlib.ExitStack() as opened:
        took = {}
        for service, naked in services.items():
            took[service] = naked.most_memory()
            for _ in range(number):
                connection = opened.enter_context(naked.connect())
                connection.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    connection.sendall(say(service))
        for service, naked in services.items():
            times = []
            for _ in range(5):
                began = time.monotonic()
                assert naked.ask("GET", "/livez")[0] == 200
                assert naked.ask("GET", GUARDED[service])[0] in (200, 405, 503)
                times.append(time.monotonic() - began)
            assert sorted(times)[len(times) // 2] < NORMAL_SECONDS  # the first wait until all is read
            assert took[service]() < (number * kilobytes << 10) + (32 << 20)


def test_many_large_uploads_at_once_are_held_within_a_limit_and_the_others_read_why(services: dict[str, Naked]) -> None:
    ingest, answers, together = services["ingest"], [], threading.Barrier(20)
    took, body = ingest.most_memory(), b" " * (60 << 20)

    def send() -> None:
        together.wait()
        answers.append(ingest.ask("POST", POSTED["ingest"], body, Content_Type="application/json"))

    in_threads([send] * 20)
    found = [json.loads(answer)["type"].rpartition(":")[2] for _, answer in answers]
    assert len(found) == 20
    assert set(found) == {"empty-body", "no-room"}
    assert took() < 3 * HELD_BYTES  # what grows side by side in the allocator's heap leaves holes


def test_what_unpacks_to_much_is_read_while_others_are_answered(services: dict[str, Naked]) -> None:
    """Some kilobytes each: spaces, brackets, one endless element, and more than the limit after unpacking."""
    ingest = services["ingest"]
    answers: list[int] = []
    waited: list[float] = []
    bodies = [
        b"[7" + b" " * (60 << 20) + b"]",
        b"[" * (60 << 20),
        b'[{"x":[' + b"1," * (30 << 20) + b"1]}]",
        b"0" * (80 << 20),
    ]
    packed = [gzip.compress(body, 1) for body in bodies]

    def send(body: bytes) -> None:
        hostile = {"Content_Type": "application/json", "Content_Encoding": "gzip"}
        answers.append(ingest.ask("POST", POSTED["ingest"], body, **hostile)[0])

    with asking_meanwhile(ingest, waited):
        in_threads([lambda body=body: send(body) for body in packed * 2])  # type: ignore[misc]
    assert sorted(answers) == [200, 200, 400, 400, 400, 400, 413, 413]
    # One call in C that decodes all of it holds the event loop for a second or more, each time.
    assert sorted(waited)[len(waited) * 9 // 10] < 1.0


@pytest.mark.parametrize("service", SERVICES)
def test_a_websocket_is_refused(services: dict[str, Naked], service: str) -> None:
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    for path in (GUARDED[service], "/v1/stream", "/livez"):
        assert services[service].say(head("GET", path, upgrade)) == [403]


@pytest.mark.parametrize("service", SERVICES)
def test_pipelined_requests_are_each_answered_once_and_in_their_order(services: dict[str, Naked], service: str) -> None:
    """More than 64 kB of them: to both kinds of routes, with bodies between them, each answered with its own id."""
    more = ["Content-Length: 5\r\n\r\nhello", "\r\n"]
    asked = [
        f"{'POST' if n % 2 == 0 else 'GET'} {'/livez' if n % 3 else '/nothing'} HTTP/1.1\r\nHost: localhost\r\n"
        f"{AUTHORIZATION}X-Request-ID: number-{n}\r\n{more[n % 2]}"
        for n in range(600)
    ]
    text = "".join(asked).encode() + head("GET", "/livez", "Connection: close\r\n")
    assert len(text) > 64 << 10
    received = b""
    with services[service].connect() as raw:
        sender = threading.Thread(target=raw.sendall, args=(text,))
        sender.start()
        while piece := raw.recv(1 << 16):
            received += piece
        sender.join()
    assert re.findall(rb"\r\nx-request-id: number-(\d+)\r\n", received) == [b"%d" % n for n in range(600)]
    assert received.count(b"HTTP/1.1 ") == 601


LIVEZ = head("GET", "/livez")
CHUNKED = "Transfer-Encoding: chunked\r\n"
TRICKS: dict[str, tuple[bytes, list[int]]] = {
    "a length and chunks": (head("POST", "/livez", f"Content-Length: 5\r\n{CHUNKED}") + b"0\r\n\r\n", [400]),
    "chunks and a length": (head("POST", "/livez", f"{CHUNKED}Content-Length: 5\r\n") + b"0\r\n\r\n", [400]),
    "two lengths": (head("POST", "/livez", "Content-Length: 5\r\nContent-Length: 5\r\n") + b"hello", [400]),
    "a length that is a list": (head("POST", "/livez", "Content-Length: 5, 5\r\n") + b"hello", [400]),
    "a length with a sign": (head("POST", "/livez", "Content-Length: +5\r\n") + b"hello", [400]),
    "chunks, not last": (head("POST", "/livez", "Transfer-Encoding: chunked, identity\r\n") + b"0\r\n\r\n", [400]),
    "almost chunks": (head("POST", "/livez", "Transfer-Encoding: xchunked\r\n") + b"0\r\n\r\n", [400]),
    "a chunk that is shorter than it says": (head("POST", "/livez", CHUNKED) + b"9\r\nhello\r\n0\r\n\r\n", [400]),
    "a folded header": (head("GET", "/livez", "X: a\r\n b\r\n"), [400]),
    "a blank before the colon": (head("GET", "/livez", "X : a\r\n"), [400]),
    "two hosts": (head("GET", "/livez", "Host: other.example\r\n"), [400]),
    "two hosts, the right one last": (b"GET /livez HTTP/1.1\r\nHost: other.example\r\nHost: localhost\r\n\r\n", [400]),
    "two tokens": (head("GET", "/v1/nothing", f"{AUTHORIZATION}"), [400]),
    "two keys": (head("POST", "/v1/nothing", "Idempotency-Key: a\r\nIdempotency-Key: b\r\n"), [400]),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", [400]),
    "another host": (b"GET /livez HTTP/1.1\r\nHost: other.example\r\n\r\n", [400]),
    "HTTP/1.0": (b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n", [200]),
    "HTTP/0.9": (b"GET /livez\r\n\r\n", [400]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100, [400]),
    "a method in lower case": (LIVEZ.replace(b"GET", b"get"), [400]),
    "TRACE": (LIVEZ.replace(b"GET", b"TRACE"), [405]),
    "CONNECT": (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + LIVEZ, [400]),
    "an absolute address": (LIVEZ.replace(b"/livez", b"http://other.example/livez"), [200]),
    "a very long address": (LIVEZ.replace(b"/livez", b"/" + b"a" * 100_000), [400]),
    "bytes that are no ASCII": (LIVEZ.replace(b"/livez", "/livé".encode()), [400]),
    "very many headers": (head("GET", "/livez", "a: b\r\n" * 10_000), [200]),
    "a charset that there is not": (head("POST", "/v1/nothing", "Content-Type: application/json; charset*=bogus''%ff\r\n"), [400]),
    "a body that a GET does not have": (head("GET", "/livez", "Content-Length: 5\r\n") + b"hello" + LIVEZ, [200, 200]),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_answered_as_it_should_be(services: dict[str, Naked], trick: str) -> None:
    text, statuses = TRICKS[trick]
    expected = dict.fromkeys(SERVICES, statuses)
    if trick == "a charset that there is not":
        expected["ingest"] = [404]  # it knows the collection first
    assert {service: naked.say(text, len(statuses)) for service, naked in services.items()} == expected


@pytest.mark.parametrize("service", SERVICES)
def test_no_form_of_an_address_is_a_way_round_the_token(services: dict[str, Naked], service: str) -> None:
    guarded, naked = GUARDED[service], services[service]
    forms = [
        guarded,
        f"/{guarded}",
        f"{guarded}/",
        guarded.replace("/v1", "/%76%31"),
        guarded.replace("/v1/", "/v1%2f"),
    ]
    for before in ("/livez", "/static", "/docs", "/admin", "/openapi.json", "/v1"):
        forms += [
            f"{before}/..{guarded}",
            f"{before}%2f..{guarded}",
            f"{before}/%2e%2e{guarded}",
            f"{before};{guarded}",
        ]
    forms += [
        f"http://localhost{guarded}",
        f"{guarded}%00",
        f"{guarded}?ticket=x",
        "//metrics",
        "/metrics?/livez",
        "/metrics/",
    ]
    answered = {form: naked.say(f"GET {form} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) for form in forms}
    assert {form: statuses for form, statuses in answered.items() if statuses not in ([401], [404])} == {}


@pytest.mark.parametrize("service", SERVICES)
def test_connections_that_break_off_leave_nothing_behind(services: dict[str, Naked], service: str) -> None:
    naked = services[service]
    halves = [
        post(service, "Content-Length: 900000\r\n") + b"[" * 70_000,
        head("GET", SCRIPT) * 3,
        post(service, "")[:50],
    ]
    took = naked.most_memory()
    for n in range(300):
        with naked.connect() as raw:
            raw.sendall(halves[n % 3])
            # Away with it, and with what was not read: the service is sent a reset.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    open_files = Path(f"/proc/{naked.worker}/fd")
    wait_for(lambda: len(list(open_files.iterdir())) < 100, "the connections to be forgotten")
    assert took() < 100 << 20
    assert naked.answers()


def test_a_head_without_end_costs_its_worker_in_good_order(tmp_path: Path) -> None:
    """The server keeps all of a head. The worker ends before the machine has no more memory, and another one is there."""
    query = Naked("query", tmp_path, WORKER_MEMORY_BYTES=str(128 << 20)).wait()
    try:
        with query.connect() as listening, query.connect() as endless:
            listening.sendall(head("GET", "/v1/stream"))
            assert listening.recv(100).startswith(b"HTTP/1.1 200 ")
            endless.sendall(head("GET", "/livez")[:-2])
            with contextlib.suppress(ConnectionError):
                while True:
                    endless.sendall(b"a: b\r\n" * 10_000)
            # Its stream is not cut off: it ends, and says when to come again.
            said = b"".join(iter(lambda: listening.recv(1 << 16), b""))
            assert said.endswith(b"0\r\n\r\n")
        wait_for(query.answers, "another worker")
        assert query.worker not in query.workers()
        assert "WORKER_MEMORY_BYTES" in query.log.read_text()
        assert not re.search("SIGSEGV|SIGABRT|SIGKILL|Traceback", query.log.read_text())
    finally:
        query.stop()


def in_threads(calls: list[Callable[[], None]]) -> None:
    """All of them at once."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def asking_meanwhile(naked: Naked, waited: list[float]) -> Iterator[None]:
    """Within this block somebody asks all the time, and notes how long each answer took."""
    done = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", naked.port, timeout=60)
        with contextlib.closing(connection):
            while not done.is_set():
                began = time.monotonic()
                connection.request("GET", "/livez")
                assert connection.getresponse().read()
                waited.append(time.monotonic() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()
