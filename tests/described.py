"""What a service's description says, for tests that compare it with what the service does."""

from __future__ import annotations

import re
from typing import Any


def query_parameters(document: dict[str, Any]) -> dict[str, list[str]]:
    """The query parameters of each operation that has any, as QUERY_PARAMETERS names it."""
    found = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            names = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
            if names:
                found[f"{method.upper()} {path}"] = names
    return found


def refuses(document: dict[str, Any], status: str) -> dict[str, bool]:
    """Of each operation below /v1 and /stats, whether it is described to refuse with this status."""
    return {
        f"{method.upper()} {path}": "application/problem+json"
        in operation["responses"].get(status, {}).get("content", ())
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if re.match("/(v1|stats)/", path)
    }
