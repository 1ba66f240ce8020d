"""The API as Django answers it: memberships; and, described beside them, what asgi.py answers in front of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse
from ninja import NinjaAPI, Schema

from query_service import answers, questions, refusals
from query_service.counters import CounterIsCold, Unreadable, read_memberships, read_samples
from query_service.scope import get_board, get_members
from shared_models import declarations
from shared_models.declarations import Counter, UnknownCounter
from shared_models.web.openapi import complete
from shared_models.web.problems import Problem


class Api(NinjaAPI):
    """Ninja's, with refusals described as what they are."""

    def get_openapi_schema(self, **kwargs: Any) -> Any:
        document = super().get_openapi_schema(**kwargs)
        return complete(document, tokens=settings.TOKENS is not None, examples=read_examples())


def read_examples() -> dict[str, Any]:
    """A question that every operation answers, whatever is declared."""
    counter = declarations.COUNTERS[0]
    member = counter.example_member()
    return {"counter": counter.name, "fields": member, "/v1/counts/{counter}/members": {"members": [member]}}


api = Api(
    title="Rollcall: query",
    version="1",
    description="How many distinct members there are, and whether a value is one of them. Every count says how good it is.",
    docs_url="/docs",
    openapi_url="/openapi.json",
)


class Drift(Schema):
    """What the last reconcile found: members in the table only, and in the set only."""

    missing: int
    extra: int


class Progress(Schema):
    """How far the build of a cold counter has come, in members."""

    read: int
    expected: int


class Count(Schema):
    """One counter. `count` is null unless `state` is live or stale."""

    count: int | None
    state: str
    complete_through: datetime | None
    verified_at: datetime | None
    drift: Drift | None
    # Whether the reconcile that found the drift has mended it.
    repaired: bool | None = None
    # Why it is cold.
    reason: str | None = None
    progress: Progress | None = None


class NamedCount(Count):
    """One counter, by itself."""

    counter: str
    as_of: datetime


class Counts(Schema):
    """All counters, and when they were read."""

    declarations: dict[str, Count]
    as_of: datetime


class Stats(Schema, extra="allow"):
    """All counts: a number beside the name of each counter."""

    result: str


class History(Schema):
    """The last hour of a counter, the oldest sample first: when it was read (seconds since 1970), and the count then."""

    counter: str
    samples: list[list[float]]


class Membership(Schema):
    """Whether the member is counted."""

    member: bool


class Memberships(Schema):
    """Of each member asked for, in order, whether it is counted."""

    members: list[bool]


class Refusal(Schema, extra="allow"):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str


@api.exception_handler(Problem)
def answer_problem(request: HttpRequest, problem: Problem) -> HttpResponse:
    """Without this, ninja would log each of them as a fault."""
    return problem.response()


async def answer_from_board(request: HttpRequest) -> HttpResponse:
    """A standing answer, where asgi.py has not given it: the board was bare. Reads, so that `no-cache` is kept too."""
    board = get_board(request)
    await board.read_anew()
    answer = board.answers[request.path]
    return answers.as_response(answer.pick(request.headers.get("If-None-Match", "").encode(), request.method == "HEAD"))


@api.api_operation(["HEAD"], "/v1/counts", include_in_schema=False)
@api.get("/v1/counts", response={200: Counts, 400: Refusal, 503: Refusal}, tags=["counts"])
async def all_counts(request: HttpRequest) -> HttpResponse:
    """Every counter. One that is not complete has the state `cold` and no count; 503 where none is complete.

    `ETag` and `If-None-Match` are understood. `Cache-Control: no-cache` reads Redis before it answers.
    """
    return await answer_from_board(request)


@api.api_operation(["HEAD"], "/v1/counts/{counter}", include_in_schema=False)
@api.get("/v1/counts/{counter}", response={200: NamedCount, 400: Refusal, 404: Refusal, 503: Refusal}, tags=["counts"])
async def one_count(request: HttpRequest, counter: str) -> HttpResponse:
    """One counter; 503 with `Retry-After` while it is not complete."""
    find(counter)
    return await answer_from_board(request)


@api.get(
    "/v1/counts/{counter}/history", response={200: History, 400: Refusal, 404: Refusal, 503: Refusal}, tags=["counts"]
)
async def history(request: HttpRequest, counter: str) -> HttpResponse:
    """The counts of the last hour, one every ten seconds. Where the counter was not complete there is a gap."""
    name = find(counter).name
    try:
        read = await read_samples(get_members(request), [name], datetime.now(UTC))
    except Unreadable:
        raise refusals.redis_is_unavailable() from None
    samples = [(round(sample.at.timestamp(), 3), sample.count) for sample in read[name]]
    return answer_now({"counter": name, "samples": samples})


@api.api_operation(["HEAD"], "/stats/get/", include_in_schema=False)
@api.get(
    "/stats/get/",
    response={200: Stats, 400: Refusal, 503: Stats},
    tags=["counts"],
    openapi_extra={"x-own-refusals": ["503"]},
)
async def stats(request: HttpRequest) -> HttpResponse:
    """All counts in one flat object, for the frontends of the first demo; 503 unless every counter is complete."""
    return await answer_from_board(request)


@api.get("/v1/stream", tags=["counts"], response={200: str, 400: Refusal, 503: Refusal})
async def stream(request: HttpRequest) -> HttpResponse:
    """Server-sent events: `event: counts` with what `/v1/counts` says, at once and at every change; `event: stale`
    with the last that is known while Redis cannot be read."""
    raise Problem(501, "no-streams-here", "No streams here", "serve query_service.asgi:application to have streams")


FIELDS_OF_THE_COUNTERS = "; ".join(f"{c.name}: {', '.join(c.fields)}" for c in declarations.COUNTERS)
FIELDS_PARAMETERS = [
    {
        "in": "query",
        "name": "fields",
        "required": True,
        "description": f"each field of the counter, once ({FIELDS_OF_THE_COUNTERS})",
        "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        "style": "form",
        "explode": True,
    }
]


@api.get(
    "/v1/counts/{counter}/member",
    response={200: Membership, 400: Refusal, 404: Refusal, 503: Refusal},
    tags=["members"],
    openapi_extra={"parameters": FIELDS_PARAMETERS},
)
async def member(request: HttpRequest, counter: str) -> HttpResponse:
    """Whether one member is counted."""
    declared = find(counter)
    asked = questions.read_query(declared, request.META["QUERY_STRING"])
    (is_member,) = await ask(request, declared, [asked])
    return answer_now({"member": is_member})


# A number stands for its digits.
VALUE = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}]}
MEMBERS_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["members"],
                "additionalProperties": False,
                "properties": {
                    "members": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": VALUE,
                            "description": f"the fields of the counter ({FIELDS_OF_THE_COUNTERS})",
                        },
                        "maxItems": settings.MAX_MEMBERS,
                    }
                },
            }
        }
    },
}


@api.post(
    "/v1/counts/{counter}/members",
    response={200: Memberships, 400: Refusal, 404: Refusal, 408: Refusal, 413: Refusal, 503: Refusal},
    tags=["members"],
    openapi_extra={"requestBody": MEMBERS_BODY},
)
async def members(request: HttpRequest, counter: str) -> HttpResponse:
    """Of many members whether each is counted: all of them at one moment, in the order of the question."""
    declared = find(counter)
    try:
        asked = questions.read_body(declared, request.body, settings.MAX_MEMBERS)
    except RequestDataTooBig:
        raise refusals.too_many_members(settings.MAX_MEMBERS) from None
    return answer_now({"members": await ask(request, declared, asked)})


def find(name: str) -> Counter:
    """The declared counter, or the problem that names those that there are."""
    try:
        return declarations.get_counter(name)
    except UnknownCounter as error:
        raise refusals.unknown_counter(error) from None


def answer_now(document: dict[str, Any]) -> HttpResponse:
    """An answer that is true now, and not to be kept."""
    return JsonResponse(document, headers={"Cache-Control": "no-store"})


async def ask(request: HttpRequest, counter: Counter, asked: list[bytes]) -> list[bool]:
    """Which of them are counted. There is no stale answer to this question: it was never asked before."""
    try:
        return await read_memberships(get_members(request), counter.name, asked)
    except CounterIsCold as cold:
        raise refusals.counter_is_cold(cold.name, cold.state) from None
    except Unreadable:
        raise refusals.redis_is_unavailable() from None
