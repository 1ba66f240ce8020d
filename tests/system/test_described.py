"""The services compared with their descriptions: schemathesis sends allowed and forbidden requests to every operation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compose.local.services import Web
from compose.local.stack import Stack
from tests.system.asking import ask

# Made up for each operation; those that the description suggests come on top.
CASES = 8
# What the server refuses before the service sees it, whatever is asked.
BY_THE_SERVER = {"414": {"description": "The address is too long."}, "431": {"description": "The head is too large."}}
CONFIGURATION = """
[generation]
allow-x00 = false

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 414, 415, 422, 428, 429, 431, "5xx"]
"""
# Which fields a member has depends on the counter that the path names, which a description cannot say: of one it can.
COUNTER = {"type": "string", "enum": ["users"]}
MEMBER = {"name": "username", "in": "query", "required": True, "schema": {"type": "string"}}
NOT_SENT = ("Idempotency-Key", "strict", "Content-Encoding")
# schemathesis reads `prefixItems` as an older draft's `items`, which a newer one does not take.
PAIR = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
# These two need a resource that one operation makes and another removes; there is none here.
NOT_CHECKED = "use_after_free,ensure_resource_availability"


@pytest.mark.parametrize("name", ["ingest", "manage", "query"])
def test_no_answer_contradicts_the_description_and_none_is_a_fault(live: Stack, name: str, tmp_path: Path) -> None:
    service: Web = getattr(live, name)
    document = bounded(ask(service, "GET", "/openapi.json")[1])
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(document))
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    tested = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", str(description), "--url", service.url),
            *(word for field, value in service.authorization().items() for word in ("-H", f"{field}: {value}")),
            *("--checks", "all", "--exclude-checks", NOT_CHECKED, "--max-examples", str(CASES)),
            *("--request-timeout", "10", "--continue-on-failure", "--no-shrink", "--warnings", "off"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert tested.returncode == 0, tested.stdout
    assert f"Tested: {len(operations)}\n" in tested.stdout, tested.stdout
    assert service.health() == "ok"


def bounded(description: dict[str, Any]) -> dict[str, Any]:
    """The description, without what a test that looks at one answer at a time cannot judge: a stream never ends, whether an
    Idempotency-Key is refused depends on the requests before, `strict` makes a refusal of what is otherwise an answer, and
    nothing is packed because a header says so.
    """
    for schema in description["components"]["schemas"].values():
        for of_field in schema.get("properties", {}).values():
            # That there is no NUL. To make texts of a pattern takes all the time that there is.
            of_field.pop("pattern", None)
    if "History" in description["components"]["schemas"]:
        description["components"]["schemas"]["History"]["properties"]["samples"]["items"] = PAIR
    description["paths"].pop("/v1/stream", None)
    # JSON Schema takes 7.0 for an integer, and query does not: tests/system/test_fuzz.py asks this with its own corpus.
    description["paths"].pop("/v1/counts/{counter}/members", None)
    for path, methods in description["paths"].items():
        for operation in methods.values():
            operation["responses"] |= BY_THE_SERVER
            if "/member" in path:
                of_one_counter(operation)
            parameters = operation.get("parameters", [])
            content = operation.get("requestBody", {}).get("content", {})
            for media_type, described in list(content.items()):
                if media_type != "application/json":
                    # A text of many lines, which it cannot make; tests/system/test_examples.py sends one.
                    del content[media_type]
                elif described["schema"].get("type") == "array":
                    # A value that is no row is rejected by itself; the batch it stands in is answered.
                    described["schema"]["items"] = {"anyOf": [described["schema"]["items"], {}]}
            operation["parameters"] = [each for each in parameters if each["name"] not in NOT_SENT]
    return description


def of_one_counter(operation: dict[str, Any]) -> None:
    """The operation, asked about users: `fields` is an object there, of which an empty part leaves no trace in a URL."""
    (path,) = (parameter for parameter in operation["parameters"] if parameter["name"] == "counter")
    operation["parameters"] = [{**path, "schema": COUNTER, "example": "users"}, MEMBER]
