"""A service's description, for tests that compare it with the service."""

from __future__ import annotations

import re
from typing import Any


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The operations below /v1 and /stats, as QUERY_PARAMETERS names them."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if re.match("/(v1|stats)/", path)
    }


def query_parameters(document: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The query parameters of each operation."""
    return {
        name: tuple(each["name"] for each in operation.get("parameters", ()) if each["in"] == "query")
        for name, operation in operations(document).items()
    }


def refuses(document: dict[str, Any], status: str) -> bool:
    """Whether every operation is described to refuse with this status."""
    return all(
        "application/problem+json" in operation["responses"].get(status, {}).get("content", ())
        for operation in operations(document).values()
    )
