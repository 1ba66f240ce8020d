"""An API, described: an OpenAPI 3.1 document, made of a table of operations and the structs that they take and give.

The JSON schemas are msgspec's, of the same structs that read requests and write answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shared_models.web.asgi import JSON
from shared_models.web.problems import MEDIA_TYPE
from shared_models.web.tokens import needs_token

REFERENCE = "#/components/schemas/{name}"

# What goes wrong, by status, where an operation does not say it better. The type of the problem says which of them it was.
REFUSALS = {
    400: "The request is not understood: a query parameter that is not known, a body that is not JSON.",
    401: "No valid token.",
    404: "There is nothing of this name.",
    408: "The body did not arrive in time.",
    413: "The body is too large; the limit is named.",
    422: "The request is not valid; each wrong field is named.",
    429: "More requests than the limit allows.",
    503: "Something that is needed is away; the problem says what, and Retry-After when to try again.",
}


class Problem(msgspec.Struct):
    """An error (RFC 9457). The type is stable; the detail says what to do."""

    type: str
    title: str
    status: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation. `answers`: by status, the struct that is answered with a description, or the description alone.

    `parameters` are OpenAPI's own objects, and so are the contents of `body`, by media type. `id` is what a generated client
    calls its function.
    """

    method: str
    path: str
    id: str
    summary: str
    description: str = ""
    tag: str = ""
    parameters: Sequence[Mapping[str, Any]] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[int, type | str] = field(default_factory=dict)
    refusals: Sequence[int] | Mapping[int, str] = ()


def parameter(name: str, where: str, schema: Mapping[str, Any], description: str = "", **more: Any) -> dict[str, Any]:
    """A parameter in the "path", the "query", or a "header"."""
    required = {"required": True} if where == "path" else {}
    return {"name": name, "in": where, "description": description, "schema": dict(schema), **required, **more}


def reference(struct: type) -> dict[str, str]:
    """Where the document describes a struct."""
    return {"$ref": REFERENCE.format(name=struct.__name__)}


def describe(
    title: str, description: str, operations: Sequence[Operation], *structs: type, tokens: bool, limited: bool = False
) -> dict[str, Any]:
    """The document. `structs`: those that are named in bodies; `tokens`: requests need one; `limited`: their rate is."""
    answered = [answer for each in operations for answer in each.answers.values() if isinstance(answer, type)]
    _, schemas = msgspec.json.schema_components({*answered, *structs, Problem}, ref_template=REFERENCE)
    paths: dict[str, Any] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _describe(each, tokens=tokens, limited=limited)
    components: dict[str, Any] = {"schemas": dict(sorted(schemas.items()))}
    if tokens:
        scheme = {
            "type": "http",
            "scheme": "bearer",
            "description": "python -m shared_models.web.tokens NAME makes one.",
        }
        components["securitySchemes"] = {"token": scheme}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": description},
        "paths": paths,
        "components": components,
    }


def _describe(operation: Operation, *, tokens: bool, limited: bool) -> dict[str, Any]:
    asks = needs_token(operation.path, metrics_public=False)
    refusals = operation.refusals
    said = dict(refusals) if isinstance(refusals, Mapping) else {status: REFUSALS[status] for status in refusals}
    if tokens and asks:
        said.setdefault(401, REFUSALS[401])
    if limited and asks:
        said.setdefault(429, REFUSALS[429])
    responses = {str(status): _answer(answer) for status, answer in operation.answers.items()}
    for status, text in sorted(said.items()):
        responses[str(status)] = {"description": text, "content": {MEDIA_TYPE: {"schema": reference(Problem)}}}
    described: dict[str, Any] = {"operationId": operation.id, "summary": operation.summary, "responses": responses}
    if operation.description:
        described["description"] = operation.description
    if operation.tag:
        described["tags"] = [operation.tag]
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body:
        described["requestBody"] = {"required": True, "content": dict(operation.body)}
    if tokens and asks:
        described["security"] = [{"token": []}]
    return described


def _answer(answer: type | str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"description": answer}
    doc = (answer.__doc__ or "").strip().partition("\n")[0]
    return {"description": doc, "content": {JSON: {"schema": reference(answer)}}}


# What all services have.
HEALTH = (
    Operation(
        method="GET", path="/livez", id="livez", summary="The process answers", tag="health", answers={200: "It does."}
    ),
    Operation(
        method="GET",
        path="/readyz",
        id="readyz",
        summary="The service can do its work",
        tag="health",
        answers={200: "It can; what it looked at is named."},
        refusals=(503,),
    ),
    Operation(
        method="GET",
        path="/metrics",
        id="metrics",
        summary="Prometheus' text format",
        tag="health",
        answers={200: "Metrics."},
    ),
)
