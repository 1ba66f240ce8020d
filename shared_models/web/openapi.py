"""What the OpenAPI descriptions of all services say alike: how refusals look, and who may ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared_models.web.problems import MEDIA_TYPE
from shared_models.web.tokens import needs_token

PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "An error (RFC 9457). The type is stable; the detail says what to do.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
SCHEME = {"type": "http", "scheme": "bearer", "description": "python -m shared_models.web.tokens NAME makes one."}


def complete(
    document: dict[str, Any], *, tokens: bool, limited: bool = False, examples: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The document, with each refusal as a problem; 401 where tokens are asked for, 429 where they are limited.

    `examples` are values that work as they stand: of a parameter by its name, of a JSON body by the path that takes it.
    """
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = PROBLEM
    everywhere = {"401": "No valid token."} if tokens else {}
    everywhere |= {"429": "More requests than the limit allows."} if limited else {}
    if tokens:
        components["securitySchemes"] = {"token": SCHEME}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            asked = needs_token(path, metrics_public=False)
            if tokens and asked:
                operation["security"] = [{"token": []}]
            responses = {str(status): response for status, response in operation["responses"].items()}
            responses |= {status: {"description": text} for status, text in everywhere.items() if asked}
            for status, response in responses.items():
                if status.startswith(("4", "5")) and status not in operation.get("x-own-refusals", ()):
                    response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
            operation["responses"] = responses
            show_examples(path, operation, examples or {})
    return document


def show_examples(path: str, operation: dict[str, Any], examples: Mapping[str, Any]) -> None:
    """Put the examples where "Try it out" finds them."""
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in examples:
            parameter["example"] = examples[parameter["name"]]
    if "requestBody" in operation and path in examples:
        operation["requestBody"]["content"]["application/json"]["example"] = examples[path]
