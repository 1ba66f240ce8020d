"""The ASGI application around everything that a service answers: the checks of every request, the headers of every answer.

A request has to name a known host, have a token if one is needed, and stay within its limits. Then an answer from memory
(a standing answer, one dictionary lookup), a route of the service's own, or Django answers it. A problem that any code
raises becomes an answer here. Each worker has one such application, in its event loop.

The server in front of it (uvicorn, under gunicorn) waits for slow clients; each costs one connection.
`bodies` limits how long, and how much of their bodies it holds.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter as Tally
from dataclasses import dataclass
from types import FrameType

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from shared_models import logs
from shared_models.web import request_log
from shared_models.web.asgi import (
    ASGI,
    Answer,
    ClientGone,
    Headers,
    Message,
    Receive,
    Request,
    Scope,
    Send,
    answer,
    raise_unless_gone,
    refusal,
)
from shared_models.web.bodies import Bodies, parse_content_type
from shared_models.web.health import ALIVE, Readiness
from shared_models.web.hosts import is_allowed
from shared_models.web.parameters import check_parameters
from shared_models.web.problems import BAD_REQUEST, Problem, fault, method_not_allowed
from shared_models.web.prometheus import exposition
from shared_models.web.rate_limits import RateLimit
from shared_models.web.tokens import Tokens, needs_token, unauthorized

log = structlog.get_logger()

# Where Django's views find the name of the token, and write their route. No header can set either.
OWNER, ROUTE = "rollcall.owner", "rollcall.route"

# A request has at most one of each. If there were two, a proxy may have checked the other one.
SENT_ONCE = frozenset({b"host", b"authorization", b"content-type", b"content-encoding", b"idempotency-key", b"origin"})

# The headers that a page of another origin may send, and those that it may read.
PREFLIGHT = Answer(
    204,
    [
        (b"access-control-allow-methods", b"GET, HEAD, POST"),
        (b"access-control-allow-headers", b"authorization, cache-control, content-type, if-none-match, x-request-id"),
        (b"access-control-max-age", b"3600"),
    ],
)
OF_ORIGIN = (b"vary", b"origin")
EXPOSED = (b"access-control-expose-headers", b"etag, retry-after, rollcall-state, x-request-id")
ANY_ORIGIN: Headers = [(b"access-control-allow-origin", b"*"), EXPOSED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The rules of access: tokens, rate limits, origins."""

    tokens: Tokens | None
    metrics_public: bool = False
    open_paths: frozenset[str] = frozenset()  # pages of this service that need no token
    open_folders: tuple[str, ...] = ()  # … and those that identify their users themselves
    rate: RateLimit | None = None
    origins: frozenset[bytes] = frozenset()  # whose pages may read the answers; * is all of them
    body_bytes: int = 1 << 20  # of a request that Django answers

    def asks(self, path: str) -> bool:
        """Whether a request to this path needs a token."""
        known = needs_token(path, metrics_public=self.metrics_public, also_open=self.open_paths)
        return known and not path.startswith(self.open_folders)


class Application:
    """The application of one worker. A service adds its own routes by `handle`, and overrides what it knows better."""

    def __init__(self, django: ASGI, limits: Limits) -> None:
        self.django, self.limits = django, limits
        self.bodies = Bodies()
        self.looking: asyncio.Task[Readiness] | None = None

    # What a service may override.

    def standing_answer(self, request: Request) -> Answer | None:
        """The answer that is ready in memory for this request; None if there is none."""
        return None

    async def handle(self, request: Request) -> Answer | None:
        """The answer to a request of the service's own routes; None if it has been sent already. Django answers others."""
        await self.hand_to_django(request)
        return None

    def description(self) -> bytes:
        """The API, as an OpenAPI document."""
        raise NotImplementedError

    def readiness(self) -> Readiness:
        """The checks of what the service needs. Runs in a thread: it may wait."""
        raise NotImplementedError

    async def metrics(self) -> bytes:
        """The metrics, as Prometheus reads them."""
        return await asyncio.to_thread(exposition)

    async def start(self) -> None:
        """The event loop runs; the first request comes after this."""

    def leave(self) -> None:
        """The worker was told to end, and still answers: end everything that would keep it running."""

    async def stop(self) -> None:
        """All requests are answered."""

    # The steps of a request.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, also if it fails, then log and measure it."""
        if scope["type"] != "http":
            await self.live(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            given = self.admit(request) or await self.find_answer(request)
        except Problem as problem:
            given = refusal(problem)
        except ClientGone:
            return
        except Exception:
            log.exception("request.error", route=request.route, request_id=request.id)
            given = None if request.status else refusal(fault())
        finally:
            if request.held_bytes:
                self.bodies.release(request)
        if given is not None:
            request.status, more = given.status, request.more_headers
            headers = [*given.headers, *more] if more else given.headers
            try:
                await send({"type": "http.response.start", "status": given.status, "headers": headers})
                await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else given.body})
            except RuntimeError as error:
                raise_unless_gone(error)
        if request.status:  # otherwise the client had gone before Django had an answer
            self.note(request)

    def admit(self, request: Request) -> Answer | None:
        """Check the request, and return its answer from memory, if there is one. Raises Problem."""
        limits, headers = self.limits, request.headers
        if len(headers) != len(request.scope["headers"]):
            check_doubles(request.scope["headers"])
        sent = headers.get(b"x-request-id")
        if sent is not None:
            self.name(request, sent.decode("latin-1"))
        if limits.origins:
            more = self.cross_origin(headers.get(b"origin", b""))
            request.more_headers = [*request.more_headers, *more] if request.more_headers else more
            if request.method == "OPTIONS" and b"access-control-request-method" in headers:
                return PREFLIGHT  # before the token: a browser's preflight request has none
        if not is_allowed(headers.get(b"host", b"")):
            raise Problem(BAD_REQUEST, "this service does not answer to this Host")
        if limits.tokens is not None and limits.asks(request.path):
            self.find_owner(request, limits.tokens)
        return self.standing_answer(request)

    async def find_answer(self, request: Request) -> Answer | None:
        """Find what answers a request that has passed all checks. Raises Problem."""
        if not request.id:
            self.name(request, "")
        logs.bound.set(request_log.facts_of(request))
        if self.limits.rate is not None and self.limits.asks(request.path):
            await self.limits.rate.check(request.owner)
        return await self.find_handler(request)

    async def find_handler(self, request: Request) -> Answer | None:
        """The answers that all services have in common, and the service's own."""
        if request.path == "/livez":
            self.takes(request, "GET")
            return ALIVE
        if request.path == "/readyz":
            self.takes(request, "GET")
            return (await self.look()).answer()
        if request.path == "/metrics":
            self.takes(request, "GET")
            return answer(200, await self.metrics(), CONTENT_TYPE_LATEST)
        if request.path == "/openapi.json":
            self.takes(request, "GET")
            return answer(200, self.description())
        return await self.handle(request)

    def takes(self, request: Request, method: str, route: str = "", parameters: tuple[str, ...] | None = None) -> None:
        """Check that this is what the route takes, and give the request its name. HEAD is allowed where GET is. If
        `parameters` is None, the handler reads the query string itself. Raises Problem 400 or 405."""
        request.route = route or request.path
        if request.method != method and (method, request.method) != ("GET", "HEAD"):
            raise method_not_allowed("GET, HEAD" if method == "GET" else method)
        if parameters is not None and request.scope["query_string"]:
            check_parameters(request.query, parameters)

    async def hand_to_django(self, request: Request) -> None:
        """Let Django answer. It gets the complete body: it would accept a body of any size, and wait for it without limit."""
        parse_content_type(request.headers.get(b"content-type", b""))  # Django decodes it, too, and fails if it cannot
        body = await self.bodies.read(request, self.limits.body_bytes)
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive() -> Message:
            if pending:
                return pending.pop()
            while (message := await request.receive())["type"] == "http.request":
                pass  # of a request without a body; the body was not read
            return message

        request.scope[OWNER] = request.owner
        await self.django(request.scope, receive, request.send)
        request.route = request.scope.get(ROUTE, request.route)

    # Its parts.

    async def look(self) -> Readiness:
        """Whether the service is ready. Requests during a check share its answer. A check may take seconds
        and needs no token, so many at once would occupy all threads."""
        if self.looking is None or self.looking.done():
            self.looking = asyncio.create_task(asyncio.to_thread(self.readiness))
        return await asyncio.shield(self.looking)

    @staticmethod
    def name(request: Request, sent: str) -> None:
        """Give the request the id that the client has chosen, if it may go into a log, or a new one."""
        request.id = request_log.id_of(sent)
        request.more_headers = [*request.more_headers, (b"x-request-id", request.id.encode())]

    def find_owner(self, request: Request, tokens: Tokens) -> None:
        """The name of the request's token. Raises Problem 401."""
        authorization = request.headers.get(b"authorization", b"")
        request.owner = tokens.find(authorization) or ""
        if not request.owner:
            raise unauthorized(presented=bool(authorization))

    def cross_origin(self, origin: bytes) -> Headers:
        """The headers that tell browsers and caches whether a page of this origin may read the answer."""
        if b"*" in self.limits.origins:
            return ANY_ORIGIN
        if origin in self.limits.origins:
            return [OF_ORIGIN, (b"access-control-allow-origin", origin), EXPOSED]
        return [OF_ORIGIN]

    def note(self, request: Request) -> None:
        """Log and measure a request that has been answered."""
        request_log.note(request)

    # Start and end.

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's lifespan protocol, and the refusal of a WebSocket."""
        await receive()
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        self.hear_of_the_end()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def hear_of_the_end(self) -> None:
        """Have `leave` called on SIGTERM, before the handler that is there now. The lifespan protocol reports the end
        only when all connections have ended, and an event stream ends only when it is told to."""
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def end(number: int, frame: FrameType | None) -> object:
            loop.call_soon_threadsafe(self.leave)
            return before(number, frame) if callable(before) else None

        signal.signal(signal.SIGTERM, end)


def check_doubles(sent: Headers) -> None:
    """Raises Problem 400 if a header that may stand once is sent twice."""
    for name, times in Tally(name for name, _ in sent).items():
        if times > 1 and name in SENT_ONCE:
            raise Problem(BAD_REQUEST, f"the header {name.decode()} is sent {times} times")
