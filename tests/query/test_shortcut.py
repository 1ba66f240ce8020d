"""The shortcut gives what the long way gives, byte for byte, and nothing that it should have left to it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from django.conf import settings
from gunicorn.asgi.protocol import FlowControl  # type: ignore[import-untyped]

from compose.local.servers import Valkey
from query_service import worker
from query_service.asgi import make_application
from query_service.door import Door
from query_service.shortcut import Shortcut
from tests.query.driving import Query
from tests.query.rolls_in_redis import Rolls
from tests.query.test_service import Running

PLAIN = b"GET /v1/counts/users HTTP/1.1\r\nHost: localhost\r\n"
LAST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"  # ends a connection that has not ended by itself
SHORT_AND_LONG = {"short": {}, "long": {"ACCESS_LOG": "1"}}  # who wants a line for each request has it written there


@pytest.fixture(scope="module")
def services(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    """The service twice: with the shortcut and without."""
    made = {
        name: Running(valkey.url, tmp_path_factory.mktemp(name), WORKERS="1", **variables)
        for name, variables in SHORT_AND_LONG.items()
    }
    yield made
    for service in made.values():
        service.stop()


def exchange(service: Running, sent: bytes) -> bytes:
    """All that is said to these bytes, without what is another at another moment."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(sent + LAST)
        said = b"".join(iter(lambda: client.recv(65536), b""))
    said = re.sub(rb"\r\nDate: [^\r]+", b"", said)
    said = re.sub(rb'"as_of":"[^"]+"', b'"as_of":""', said)
    return re.sub(rb"(x-request-id: )[0-9a-f]{16}(?=\r)", rb"\1a new one", said, flags=re.IGNORECASE)


def wait_until_up(service: Running) -> None:
    """The board holds what Redis holds now."""
    assert service.get("/v1/counts/users", cache_control="no-cache")[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        PLAIN + b"\r\n",
        PLAIN.replace(b"/users", b"") + b"\r\n",
        PLAIN.replace(b"/v1/counts/users", b"/stats/get/") + b"\r\n",
        PLAIN
        + b"Accept: text/html\r\nCookie: a=b\r\nOrigin: https://elsewhere.example\r\nAuthorization: Bearer x\r\n\r\n",
        PLAIN + b'If-None-Match: "0123456789abcdef"\r\n\r\n',
        PLAIN + b"If-None-Match: *\r\n\r\n",
        PLAIN + b"X-Request-Id: abc-123\r\n\r\n",
        PLAIN + b"X-Request-Id: not \x01 fit\r\n\r\n",
        PLAIN + b"X-Request-Id: <script>\r\n\r\n",
        PLAIN + b"Cache-Control: no-cache\r\n\r\n",
        PLAIN + b"Cache-Control: max-age=0\r\n\r\n",
        PLAIN + b"Connection: keep-alive\r\n\r\n",
        PLAIN + b"Connection: close\r\n\r\n",
        PLAIN + b"Connection: close\r\n\r\n" + PLAIN + b"\r\n",
        PLAIN + b"\r\n" + PLAIN + b"\r\n" + PLAIN + b"X-Request-Id: third\r\n\r\n",
        PLAIN + b"Content-Length: 0\r\n\r\n",
        PLAIN + b"Content-Length: 4\r\n\r\nbody" + PLAIN + b"\r\n",
        PLAIN + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        PLAIN + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody",
        PLAIN + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        PLAIN
        + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n",
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n\r\n",
        PLAIN.replace(b"GET", b"HEAD") + b"\r\n",
        PLAIN.replace(b"GET", b"POST") + b"\r\n",
        PLAIN.replace(b"GET", b"get") + b"\r\n",
        PLAIN.replace(b"/users", b"/users?x=1") + b"\r\n",
        PLAIN.replace(b"/users", b"?country=DE") + b"\r\n",
        PLAIN.replace(b"/users", b"/users?") + b"\r\n",
        PLAIN.replace(b"/users", b"/users?&") + b"\r\n",
        PLAIN.replace(b"/users", b"%2Fusers") + b"\r\n",
        PLAIN.replace(b"/users", b"/user%73") + b"\r\n",
        PLAIN.replace(b"/users", b"//users") + b"\r\n",
        PLAIN.replace(b"/users", b"/nobody") + b"\r\n",
        PLAIN.replace(b"/v1", b"http://localhost/v1") + b"\r\n",
        PLAIN.replace(b"localhost", b"elsewhere.example") + b"\r\n",
        PLAIN.replace(b"Host: localhost\r\n", b"") + b"\r\n",
        PLAIN + b"Host: elsewhere.example\r\n\r\n",
    ],
    ids=lambda sent: repr(sent)[2:-1].replace("\\r\\n", "|")[:100],
)
def test_both_ways_say_the_same(services: dict[str, Running], rolls: Rolls, sent: bytes) -> None:
    rolls.make_all_live(users=2, cities=3)
    for service in services.values():
        wait_until_up(service)
    said = {name: exchange(service, sent) for name, service in services.items()}
    assert said["short"] == said["long"] != b""


def test_both_ways_say_that_a_counter_is_cold(services: dict[str, Running], rolls: Rolls) -> None:
    rolls.make_live("cities", [b"one"])
    for service in services.values():
        assert service.get("/v1/counts/users", cache_control="no-cache")[0] == 503
    said = {name: exchange(service, PLAIN + b"\r\n") for name, service in services.items()}
    assert said["short"] == said["long"] and said["short"].startswith(b"HTTP/1.1 503 ")


def test_what_the_shortcut_answers_is_measured_too(services: dict[str, Running], rolls: Rolls) -> None:
    rolls.make_all_live()
    service = services["short"]

    def answered() -> float:
        text = service.get("/metrics")[2].decode()
        route = 'route="/v1/counts/{counter}"'
        lines = [line for line in text.splitlines() if line.startswith("rollcall_request_seconds_count")]
        return sum(float(line.split()[-1]) for line in lines if route in line and 'status="200"' in line)

    wait_until_up(service)
    before = answered()
    exchange(service, (PLAIN + b"\r\n") * 7)
    wait_until_up(service)  # a read of the board passes the numbers on
    wait_until_up(service)
    assert answered() - before >= 8


def test_a_client_that_asks_and_does_not_listen_is_not_answered_further(query: Query) -> None:
    """Answers would pile up in memory. The next request is taken when this function returns, and not before."""
    written: list[bytes] = []
    connection = SimpleNamespace(
        worker=SimpleNamespace(shortcut=SimpleNamespace(find=lambda request: b"answer")),
        _will_close=lambda request, response_requires_close: False,
        _safe_write=written.append,
        _flow_control=FlowControl(None),
        req_count=1,
    )

    async def scenario() -> None:
        assert await worker.serve(connection, request(), None, None)
        connection._flow_control.pause_writing()
        served = asyncio.create_task(worker.serve(connection, request(), None, None))
        await asyncio.sleep(0.01)
        assert not served.done()
        connection._flow_control.resume_writing()
        assert await served

    query.run(scenario())
    assert written == [b"answer"] * 2


def test_questions_sent_at_once_are_not_all_answered_before_anybody_else(query: Query) -> None:
    connection = SimpleNamespace(
        worker=SimpleNamespace(shortcut=SimpleNamespace(find=lambda request: b"answer")),
        _will_close=lambda request, response_requires_close: False,
        _safe_write=lambda answer: None,
        _flow_control=FlowControl(None),
        req_count=0,
    )

    async def ask_much() -> None:
        for connection.req_count in range(1, 10 * worker.IN_A_ROW):
            await worker.serve(connection, request(), None, None)

    async def scenario() -> int:
        asking, turns = asyncio.create_task(ask_much()), 0
        while not asking.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert query.run(scenario()) >= 9


def test_a_worker_finds_the_shortcut_of_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the services above have that differ."""
    made = object.__new__(worker.Worker)
    made.app = SimpleNamespace(wsgi=make_application)
    made.load_wsgi()
    assert isinstance(made.shortcut, Shortcut)
    monkeypatch.setattr(settings, "ACCESS_LOG", True)
    made.load_wsgi()
    assert made.shortcut is None


def request(
    path: str = "/v1/counts/users", *headers: tuple[bytes, bytes], method: str = "GET", query: str = ""
) -> SimpleNamespace:
    """What gunicorn's parser makes of a head."""
    named = [(b"host", b"localhost"), *headers]
    return SimpleNamespace(method=method, version=(1, 1), path=path, query=query, headers_bytes=named)


def test_a_plain_question_is_answered_here_and_no_other(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()
    query.get("/v1/counts")
    shortcut = Shortcut(query.board)
    answered = query.run(find(shortcut, request()))
    assert answered is not None and answered.startswith(b"HTTP/1.1 200 OK\r\n") and b'"count":2' in answered
    for other in (
        request("/v1/counts/nobody"),
        request("/"),
        request(method="HEAD"),
        request(query="country=DE"),
        request("/v1/counts", (b"cache-control", b"no-cache")),
        request("/v1/counts", (b"content-length", b"4")),
        request("/v1/counts", (b"host", b"elsewhere.example")),
    ):
        assert query.run(find(shortcut, other)) is None


async def find(shortcut: Shortcut, asked: SimpleNamespace) -> bytes | None:
    return shortcut.find(asked)


def test_a_bare_board_gives_nothing(query: Query, rolls: Rolls) -> None:
    rolls.make_all_live()
    assert query.run(find(Shortcut(query.board), request())) is None


@pytest.mark.parametrize(
    ("tokens", "origins"), [(object(), ()), (None, ("https://page.example",))], ids=["tokens", "origins"]
)
def test_no_shortcut_passes_by_a_door_that_has_something_to_ask(
    query: Query, tokens: object, origins: tuple[str, ...]
) -> None:
    def door(tokens: object, origins: tuple[str, ...]) -> Door:
        return Door(
            query.application,
            tokens=tokens,  # type: ignore[arg-type]
            metrics_public=True,
            origins=origins,
            body_bytes=1,
            streams_per_client=0,
            shortcut=Shortcut(query.board),
        )

    assert door(None, ()).shortcut is not None
    assert door(tokens, origins).shortcut is None
