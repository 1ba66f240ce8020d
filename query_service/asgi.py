"""The ASGI application for gunicorn: the counts, memberships and streams, and Django for the page."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from time import perf_counter
from urllib.parse import parse_qs

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "query_service.settings")

import msgspec
from django.conf import settings
from django.core.asgi import get_asgi_application
from redis.exceptions import RedisError

from query_service import algebra, badges, memberships, metrics, openapi, problems, questions, stores, streams, tickets
from query_service.algebra import ALGEBRA, AlgebraReader
from query_service.answers import COUNTER, COUNTS, Condition
from query_service.badges import BADGE, EMBED
from query_service.counts import Counts
from query_service.directories import Generations
from query_service.groups import GroupReader
from query_service.memberships import Memberships
from query_service.openapi import HISTORY, MEMBER, MEMBERS, TICKETS
from query_service.problems import known_counter
from query_service.questions import GROUPS
from query_service.reads import read_samples
from query_service.shared_answers import Given, Question, SharedAnswers
from query_service.site.pages import QUERY
from query_service.streams import Streams
from query_service.tops import TopReader
from query_service.trips import Trips, Unreadable
from shared_models.declarations import Counter
from shared_models.stores import check_noeviction
from shared_models.web import request_log
from shared_models.web.application import Application, Limits
from shared_models.web.asgi import ASGI, Answer, Request, answer
from shared_models.web.bodies import SMALL_BYTES
from shared_models.web.health import Readiness
from shared_models.web.prometheus import exposition
from shared_models.web.tokens import Tokens, unauthorized


class Query(Application):
    """The application of one worker. `access_log`: standing answers get a log line, too."""

    def __init__(
        self,
        django: ASGI,
        limits: Limits,
        counts: Counts,
        asked: Memberships,
        open_streams: Streams,
        *,
        max_members: int,
        member_bytes: int,
        algebra_members: int,
        badges: bool = False,
        access_log: bool = False,
    ) -> None:
        super().__init__(django, limits)
        self.counts, self.memberships, self.streams = counts, asked, open_streams
        self.max_members, self.member_bytes, self.access_log = max_members, member_bytes, access_log
        self.badges = badges
        # A question about sets takes trips of its own, one for each shard: nobody waits behind it, except in Redis.
        self.trips, alone = Trips(asked.nodes), Trips(asked.nodes, most_commands=1)
        generations = Generations()
        groups = GroupReader(self.trips, TopReader(self.trips, alone, generations), generations)
        sets = AlgebraReader(alone, generations, algebra_members)
        self.shared = SharedAnswers(groups.read, keep_seconds=counts.refresh_seconds)
        self.shared_sets = SharedAnswers(sets.read, keep_seconds=counts.refresh_seconds)

    def standing_answer(self, request: Request) -> Answer | None:
        """The standing answer to a plain GET or HEAD, while the task reads counts."""
        known = self.counts.answers.get(request.path)
        if known is None or request.scope["query_string"] or request.method not in ("GET", "HEAD"):
            return None
        if b"cache-control" in request.headers and wants_fresh(request):
            return None
        self.counts.is_asked = True  # the reading goes on: while there are answers, it has not ended
        request.route, request.is_standing = known.route, True
        return known.pick(request.headers.get(b"if-none-match"))

    async def handle(self, request: Request) -> Answer | None:
        """Routes with a variable part, such as /v1/counts/{counter}/…; None if the answer has been sent already."""
        match request.path.split("/")[1:]:
            case ["v1", "counts"]:
                return await self.all_counts(request)
            case ["stats", "get", ""]:
                self.takes(request, "GET", parameters=())
                return await self.count_at(request)
            case ["v1", "counts", name]:
                self.takes(request, "GET", COUNTER)
                counter = known_counter(name)
                question = questions.read_count(counter, request.query)
                return await (self.shared_answer(request, question) if question else self.count_at(request))
            case ["v1", "counts", name, "groups"]:
                self.takes(request, "GET", GROUPS)
                return await self.shared_answer(request, questions.read_listing(known_counter(name), request.query))
            case ["v1", "algebra"]:
                self.takes(request, "POST", ALGEBRA, ())
                return await self.count_sets(request)
            case ["v1", "badge", name] if self.badges and name.endswith(".svg"):
                self.takes(request, "GET", BADGE)
                return await badges.badge(self, known_counter(name.removesuffix(".svg")), request)
            case ["embed", name] if self.badges:
                self.takes(request, "GET", EMBED)
                return await badges.embedded(self, known_counter(name), request)
            case ["v1", "counts", name, "history"]:
                self.takes(request, "GET", HISTORY, ())
                return await self.history(known_counter(name))
            case ["v1", "counts", name, "member"]:
                self.takes(request, "GET", MEMBER)
                counter = known_counter(name)
                asked = memberships.read_query(counter, request.query)
                (is_member,) = await self.memberships.ask(counter, [asked])
                return now(b'{"member":true}' if is_member else b'{"member":false}')
            case ["v1", "counts", name, "members"]:
                self.takes(request, "POST", MEMBERS, ())
                return await self.members(request, known_counter(name))
            case ["v1", "stream"]:
                await self.stream(request)
                return None
            case ["v1", "stream", "tickets"]:
                self.takes(request, "POST", TICKETS, ())
                return self.ticket(request)
        request.scope[QUERY] = self
        await self.hand_to_django(request)
        return None

    async def count_at(self, request: Request) -> Answer:
        """The answer about counts to a request that needs a new read of Redis, or is the first for a while."""
        await self.counts.read_anew()
        return self.counts.answers[request.path].pick(request.headers.get(b"if-none-match"))

    async def all_counts(self, request: Request) -> Answer:
        """/v1/counts, also of some counters only."""
        self.takes(request, "GET", COUNTS, ("counters",))
        names = self.choice(request)
        if names is None:
            return await self.count_at(request)
        self.counts.ask()
        if not self.counts.answers or wants_fresh(request):
            await self.counts.read_anew()
        return self.counts.answer_to_choice(names).pick(request.headers.get(b"if-none-match"))

    async def shared_answer(self, request: Request, question: Question) -> Answer:
        """An answer that others get, too, if they ask the same now."""
        given = await self.shared.ask(question, fresh=wants_fresh(request))
        return given.answer.pick(request.headers.get(b"if-none-match"))

    async def count_sets(self, request: Request) -> Answer:
        """How many members sets have together, in common, or alone."""
        question = algebra.read_body(await self.bodies.read(request, SMALL_BYTES))
        given: Given = await self.shared_sets.ask(question, fresh=wants_fresh(request))
        return now(given.answer.whole.body)

    async def history(self, counter: Counter) -> Answer:
        """The samples of the last hour."""
        try:
            read = await read_samples(self.trips, [counter], datetime.now(UTC))
        except Unreadable:
            read = {}
        if counter.name not in read:
            raise problems.redis_is_unavailable()
        samples = [(round(sample.at.timestamp(), 3), sample.count) for sample in read[counter.name]]
        return now(msgspec.json.encode({"counter": counter.name, "samples": samples}))

    async def members(self, request: Request, counter: Counter) -> Answer:
        """Whether each of many members is counted."""
        body = await self.bodies.read(request, self.member_bytes)
        if len(body) > SMALL_BYTES:  # it may be large, and slow to decode
            asked = await asyncio.to_thread(memberships.read_body, counter, body, self.max_members)
        else:
            asked = memberships.read_body(counter, body, self.max_members)
        return now(msgspec.json.encode({"members": await self.memberships.ask(counter, asked)}))

    async def stream(self, request: Request) -> None:
        """The events, until the client or the worker ends."""
        self.takes(request, "GET", streams.PATH, ("counters", "ticket"))
        await self.streams.serve(request, self.choice(request) or tuple(self.counts.names))

    @staticmethod
    def choice(request: Request) -> tuple[str, ...] | None:
        """The counters that `?counters=users,cities` names, each once; None if all are asked for. Raises Problem 404."""
        given = parse_qs(request.query, keep_blank_values=True).get("counters")
        return None if given is None else tuple(dict.fromkeys(known_counter(name).name for name in given[0].split(",")))

    def ticket(self, request: Request) -> Answer:
        """A ticket for a stream. Without tokens everybody may open a stream, and the ticket is ignored."""
        made, ends = "none-needed", 0
        if self.limits.tokens is not None:
            made, ends = tickets.make(self.limits.tokens, request.headers[b"authorization"])
        document = {"ticket": made, "expires_at": datetime.fromtimestamp(ends, UTC) if ends else None}
        return answer(201, msgspec.json.encode(document), more={"Cache-Control": "no-store"})

    def find_owner(self, request: Request, tokens: Tokens) -> None:
        """The name of the request's token; a stream may have a ticket instead."""
        if request.path == streams.PATH and b"authorization" not in request.headers:
            presented = parse_qs(request.query).get("ticket", [""])[0]
            request.owner = tickets.owner(tokens, presented) or ""
            if not request.owner:
                raise unauthorized(presented=bool(presented))
        else:
            super().find_owner(request, tokens)

    def note(self, request: Request) -> None:
        """Standing answers are counted together: measuring each one would take longer than answering."""
        if not request.is_standing:
            if (request.route, request.status) != (streams.PATH, 200):  # streams have done it themselves
                super().note(request)
            return
        metrics.given[request.route, request.status] += 1
        if self.access_log:
            request_log.write_line(request, perf_counter() - request.begun)

    def description(self) -> bytes:
        return openapi.describe_api()

    def readiness(self) -> Readiness:
        """Check that Redis answers, and does not evict. It makes new connections, to check that this works, too.

        Query is ready if some servers of a cluster answer: it has the counts of all counters that have no part on the others.
        """
        evicts, away, servers = [], [], []
        try:
            servers = stores.nodes_for_readiness().each()
        except RedisError as error:
            away.append(str(error))
        for client in servers:
            try:
                evicts.append(check_noeviction(client))
            except (RedisError, OSError) as error:
                away.append(str(error))
            finally:
                client.close()
        if not evicts:
            return Readiness({"redis": f"Redis cannot be read ({away[0]}); see REDIS_URL"}, needed=frozenset({"redis"}))
        checks = {"redis": next(filter(None, evicts), None)}
        if away:
            checks["redis_servers"] = f"{len(away)} of {len(servers)} servers of Redis cannot be read ({away[0]})"
        return Readiness(checks, needed=frozenset({"redis"}))

    async def metrics(self) -> bytes:
        """All metrics, with the present counts; the standing answers of other workers may lag by one read."""
        await self.counts.read_anew()
        known = self.counts.reading if self.counts.condition is not Condition.LOST else None
        metrics.set_counts(self.counts.names, known)
        metrics.note_standing_answers()
        return await asyncio.to_thread(exposition)

    def leave(self) -> None:
        self.streams.end()

    async def stop(self) -> None:
        await self.counts.close()
        await self.trips.nodes.aclose()


def wants_fresh(request: Request) -> bool:
    """Whether this request asks for a new read of Redis."""
    return b"no-cache" in request.headers.get(b"cache-control", b"").lower()


def now(body: bytes) -> Answer:
    """An answer that is correct now, and must not be cached."""
    return answer(200, body, more={"Cache-Control": "no-store"})


def make_application() -> Query:
    """The application of a worker, by its settings. It connects to nothing before the first request."""
    nodes = stores.connect_nodes()
    counts = Counts(
        Trips(nodes),
        refresh_seconds=settings.REFRESH_SECONDS,
        idle_seconds=settings.IDLE_SECONDS,
        stale_seconds=settings.STALE_SECONDS,
    )
    open_streams = Streams(
        counts,
        seconds=settings.STREAM_SECONDS,
        heartbeat_seconds=settings.HEARTBEAT_SECONDS,
        limit=settings.MAX_STREAMS,
        limit_per_client=settings.MAX_STREAMS_PER_CLIENT,
    )
    limits = Limits(
        tokens=settings.TOKENS,
        metrics_public=settings.METRICS_PUBLIC,
        origins=frozenset(origin.encode() for origin in settings.CORS_ORIGINS),
        open_folders=badges.FOLDERS if settings.BADGES else (),
    )
    return Query(
        get_asgi_application(),
        limits,
        counts,
        Memberships(nodes),
        open_streams,
        max_members=settings.MAX_MEMBERS,
        member_bytes=settings.MAX_BODY_BYTES,
        algebra_members=settings.ALGEBRA_MEMBERS,
        badges=settings.BADGES,
        access_log=settings.ACCESS_LOG,
    )


application = make_application()
