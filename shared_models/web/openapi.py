"""The description of an API: an OpenAPI 3.1 document, made from a table of operations and the structs that they take
and return.

msgspec makes the JSON schemas from the same structs that read requests and write answers. The refusals are the types of
problems that the code raises. Each service has a module `openapi` with its table; this one makes the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from shared_models.web import problems
from shared_models.web.asgi import JSON
from shared_models.web.problems import MEDIA_TYPE, ProblemType
from shared_models.web.tokens import needs_token

# A JSON object of the document.
Json: TypeAlias = dict[str, Any]

REFERENCE = "#/components/schemas/{name}"


class Problem(msgspec.Struct):
    """An error (RFC 9457). The `type` is stable; the `detail` says what to do."""

    type: str
    title: str
    status: int
    detail: str


class Alive(msgspec.Struct):
    """The process answers."""

    alive: bool


class Ready(msgspec.Struct):
    """The service can do its work. degraded: something that it does not require does not answer; checks name it."""

    ready: bool
    degraded: bool
    checks: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of an operation: the struct of its JSON, or the schema of another media type; None: no body."""

    shape: type | Json | None
    description: str = ""  # if empty, the struct's own
    media_type: str = JSON
    headers: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation:
    """One operation. `id` is what a generated client calls its function.

    `parameters` are OpenAPI's own objects, and so are the contents of `body`, by media type. The refusals that
    all operations have in common are added.
    """

    method: str
    path: str
    id: str
    tag: str
    summary: str
    description: str = ""
    parameters: Sequence[Json] = ()
    body: Mapping[str, Json] = field(default_factory=dict)
    answers: Mapping[int, Answer]
    refusals: Sequence[ProblemType] = ()


# The problems of any request, of one below /v1, and of one that has a body.
ALWAYS = (problems.BAD_REQUEST, problems.INTERNAL_ERROR)
OF_A_BODY = (problems.REQUEST_TIMEOUT, problems.BODY_TOO_LARGE, problems.NO_ROOM)


def parameter(name: str, where: str, schema: Json, description: str, **more: object) -> Json:
    """A parameter in the "path", the "query", or a "header"."""
    required = {"required": True} if where == "path" else {}
    return {"name": name, "in": where, "description": description, "schema": schema, **required, **more}


def header(description: str, schema: Json | None = None) -> Json:
    """A header of an answer."""
    return {"description": description, "schema": schema or {"type": "string"}}


RETRY_AFTER = header("After how many seconds to ask again.", {"type": "integer"})
REQUEST_ID = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}


def reference(struct: type | str) -> dict[str, str]:
    """The reference to a struct in the document."""
    return {"$ref": REFERENCE.format(name=struct if isinstance(struct, str) else struct.__name__)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The rules of access, as far as the description shows them."""

    tokens: bool
    metrics_public: bool = False
    limited: bool = False

    def refusals(self, path: str) -> tuple[ProblemType, ...]:
        """The refusals of a request that has no access, or not now."""
        if not needs_token(path, metrics_public=self.metrics_public):
            return ()
        return (problems.UNAUTHORIZED,) * self.tokens + (problems.TOO_MANY_REQUESTS,) * self.limited


def describe(title: str, description: str, operations: Sequence[Operation], *asked: type, access: Access) -> bytes:
    """The document. `asked`: the structs of requests."""
    operations = (*operations, *HEALTH)
    refusals = {each: find_refusals(each, access) for each in operations}
    kinds = dict.fromkeys(kind for of_one in refusals.values() for kind in of_one)
    answered = [
        answer.shape for each in operations for answer in each.answers.values() if isinstance(answer.shape, type)
    ]
    beside = [kind.members for kind in kinds if kind.members]
    schemas = schemas_of([*answered, *beside, Problem], always=True) | schemas_of(asked)
    paths: Json = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = describe_operation(each, refusals[each], access)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": title, "version": "1", "description": description},
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {
                "schemas": dict(sorted((schemas | {name_of(kind): describe_kind(kind) for kind in kinds}).items())),
                "headers": {"RequestId": header("The id of the request in the log: the client's own, or a new one.")},
                **({"securitySchemes": {"token": TOKEN}} if access.tokens else {}),
            },
        }
    )


def describe_operation(operation: Operation, refusals: Sequence[ProblemType], access: Access) -> Json:
    """One operation."""
    responses = {str(status): describe_answer(answer) for status, answer in operation.answers.items()}
    for status in sorted({kind.status for kind in refusals}):
        responses[str(status)] = describe_refusal([kind for kind in refusals if kind.status == status])
    described: Json = {"operationId": operation.id, "tags": [operation.tag], "summary": operation.summary}
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body:
        described["requestBody"] = {"required": True, "content": dict(operation.body)}
    described["responses"] = responses
    asks = access.tokens and needs_token(operation.path, metrics_public=access.metrics_public)
    return {**described, "security": [{"token": []}] if asks else []}


def describe_answer(answer: Answer) -> Json:
    """A response that is not a refusal."""
    shape = answer.shape
    described = {"description": answer.description, "headers": {**REQUEST_ID, **answer.headers}}
    if isinstance(shape, type):
        described["description"] = answer.description or (shape.__doc__ or "").partition("\n")[0]
        shape = reference(shape)
    return described if shape is None else described | {"content": {answer.media_type: {"schema": dict(shape)}}}


def describe_refusal(kinds: Sequence[ProblemType]) -> Json:
    """The response with one status, which may stand for several problems."""
    schemas = [reference(name_of(kind)) for kind in kinds]
    lines = [f"`{kind.urn}`: {kind.when}" for kind in kinds]
    return {
        "description": "\n".join(f"- {line}" for line in lines) if len(kinds) > 1 else lines[0],
        "headers": REQUEST_ID | ({"Retry-After": RETRY_AFTER} if any(kind.retry_seconds for kind in kinds) else {}),
        "content": {MEDIA_TYPE: {"schema": schemas[0] if len(kinds) == 1 else {"oneOf": schemas}}},
    }


def describe_kind(kind: ProblemType) -> Json:
    """A type of problem as a schema: a client sees by `type` which one it has."""
    exactly = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "const": kind.urn},
            "status": {"type": "integer", "const": kind.status},
        },
        "required": ["type", "status"],
    }
    beside = [reference(kind.members)] if kind.members else []
    return {"title": kind.title, "description": kind.when, "allOf": [reference(Problem), *beside, exactly]}


def name_of(kind: ProblemType) -> str:
    """Of "counter-cold": "CounterCold"."""
    return kind.slug.title().replace("-", "")


def find_refusals(operation: Operation, access: Access) -> tuple[ProblemType, ...]:
    """All problems that an operation may answer with, in the order of their statuses."""
    of_body = OF_A_BODY if operation.body else ()
    found = dict.fromkeys((*ALWAYS, *access.refusals(operation.path), *operation.refusals, *of_body))
    return tuple(sorted(found, key=lambda kind: kind.status))


def schemas_of(structs: Iterable[type], *, always: bool = False) -> dict[str, Json]:
    """The JSON schemas of structs, and of the structs in them, by name. Generators treat a field with a default as always
    present, so the schemas name no default. `always`: Rollcall writes these structs, and such a field is always present."""
    _, schemas = msgspec.json.schema_components(tuple(dict.fromkeys(structs)), ref_template=REFERENCE)
    for schema in schemas.values():
        say_type(schema)
        fields = schema.get("properties", {})
        written = [name for name, of_field in fields.items() if of_field.pop("default", schema) is not schema]
        if always and written:
            schema["required"] = [name for name in fields if name in (*written, *schema["required"])]
    return schemas


def say_type(schema: object) -> None:
    """Give an enumeration of texts its type, at any depth. JSON Schema does not require it; generators do."""
    if isinstance(schema, dict):
        if all(isinstance(value, str) for value in schema.get("enum", [None])):
            schema["type"] = "string"
        for part in schema.values():
            say_type(part)
    elif isinstance(schema, list):
        for part in schema:
            say_type(part)


TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "description": "`python -m shared_models.web.tokens NAME` makes a token, and the line for the service's TOKENS.",
}

# What all services have.
HEALTH = (
    Operation(
        method="GET",
        path="/livez",
        id="getLiveness",
        tag="health",
        summary="Whether the process answers",
        description="It checks nothing else: restart a service that does not answer it.",
        answers={200: Answer(Alive)},
    ),
    Operation(
        method="GET",
        path="/readyz",
        id="getReadiness",
        tag="health",
        summary="Whether the service can do its work",
        answers={200: Answer(Ready)},
        refusals=(problems.NOT_READY,),
    ),
    Operation(
        method="GET",
        path="/metrics",
        id="getMetrics",
        tag="health",
        summary="What Prometheus reads",
        answers={200: Answer({"type": "string"}, "Prometheus' text format.", "text/plain")},
    ),
)
