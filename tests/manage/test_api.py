"""The HTTP API of manage, over real stores."""

from __future__ import annotations

import http.client
import json
import re
import socket

import pytest
from django.test import override_settings

from manage_service.asgi import application
from manage_service.protocol.findings import Findings
from manage_service.runs import registry
from shared_models.protocol import keys
from tests import servers
from tests.described import query_parameters, refuses
from tests.manage.serving import Gunicorn


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory):
    """The port of the service as it is run."""
    running = Gunicorn(tmp_path_factory.mktemp("gunicorn"))
    yield running.port
    running.stop()


def test_a_run_is_accepted_followed_and_listed(world, client):
    answer = client.post("/v1/runs", json.dumps({"counters": ["users"], "mode": "check"}), "application/json")
    assert answer.status_code == 202
    run = answer.json()
    assert answer["Location"] == f"/v1/runs/{run['id']}"
    assert (run["status"], run["mode"], run["counters"], run["asked_by"]) == ("queued", "check", ["users"], "api")

    world.post("ann")
    world.replay()
    world.build()
    world.redis.sadd(keys.of_counter("users").members, "ghost")
    for _ in world.steps(registry.get(world.redis, run["id"])):
        shown = client.get(answer["Location"]).json()
        assert shown["status"] == "running" and shown["progress"]["phase"]
    done = client.get(answer["Location"]).json()
    assert done["status"] == "done" and done["finished_at"].endswith("Z")
    assert done["drift"]["users"]["extra"] == 1
    assert done["drift"]["users"]["extra_sample"] == [{"username": "ghost"}]
    assert [one["id"] for one in client.get("/v1/runs").json()["runs"]] == [run["id"]]


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("get", "/v1/runs?limt=5", "unknown query parameter 'limt'; this endpoint takes limit"),
        ("get", "/v1/runs?limit=5&limit=6", "'limit' is given 2 times; give it once"),
        ("post", "/v1/runs?limit=5", "this endpoint takes no query parameters"),
        ("post", "/v1/runs?mode=check", "unknown query parameter 'mode'"),
        ("get", "/v1/runs/last?counter=users", "unknown query parameter 'counter'"),
        ("post", "/v1/runs/last/cancel?now=1", "unknown query parameter 'now'"),
        ("get", "/v1/status?counter=users", "unknown query parameter 'counter'"),
        ("get", "/v1/drift?counter=users", "unknown query parameter 'counter'"),
    ],
)
def test_a_query_parameter_that_is_not_known_is_refused_and_the_known_ones_named(world, client, method, path, said):
    answer = getattr(client, method)(path)
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert answer.json()["type"] == "urn:rollcall:invalid-query" and said in answer.json()["detail"]
    assert registry.latest(world.redis, 1) == []


def test_the_query_parameters_that_are_known_are_those_that_are_described(client):
    document = client.get("/openapi.json").json()
    known = query_parameters(document)
    assert known.pop("GET /v1/runs") == ("limit",) and len(known) == 5 and not any(known.values())
    assert refuses(document, "400")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/runs?limit=5&x=1", "GET, HEAD, POST"),
        ("GET", "/v1/runs/last/cancel", "POST"),
        ("POST", "/v1/status", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_known_is_refused_and_the_known_ones_named(world, client, method, path, allowed):
    answer = client.request(method, path)
    assert (answer.status_code, answer["Allow"]) == (405, allowed)
    assert answer.json()["type"] == "urn:rollcall:method-not-allowed"


def test_a_run_says_which_counter_could_not_be_reconciled_and_why(world, client):
    run = world.ask()
    run.findings = {"cities": Findings(failure="no such table"), "users": Findings(extra=1)}
    run.end(registry.Status.FAILED, run.failures())
    registry.save(world.redis, run)
    shown = client.get(f"/v1/runs/{run.id}").json()
    assert (shown["status"], shown["detail"]) == ("failed", "cities: no such table")
    assert {name: drift["failure"] for name, drift in shown["drift"].items()} == {
        "cities": "no such table",
        "users": "",
    }


def test_a_run_over_all_counters_is_the_default(world, client):
    run = client.post("/v1/runs", "{}", "application/json").json()
    assert run["counters"] == ["cities", "users"] and run["mode"] == "repair"


def test_how_many_runs_are_listed_is_said_by_limit(world, client):
    for names in (["users"], ["cities"], ["users", "cities"]):
        client.post("/v1/runs", json.dumps({"counters": names}))
    assert [run["counters"] for run in client.get("/v1/runs?limit=2").json()["runs"]] == [
        ["users", "cities"],
        ["cities"],
    ]
    for limit in ("0", "501", "x", "-1", "1.5", ""):
        answer = client.get(f"/v1/runs?limit={limit}")
        assert answer.status_code == 422 and [one["field"] for one in answer.json()["errors"]] == ["limit"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"counters": ["nobody"]}, 422, "there are: cities, users"),
        ({"counters": []}, 422, "counters"),
        ({"counters": ["users"], "mode": "mend"}, 422, "mode"),
        ({"counter": "users"}, 422, "counter"),
        ({"counters": "users"}, 422, "counters"),
    ],
)
def test_a_bad_request_names_the_field_and_asks_for_nothing(world, client, body, status, words):
    answer = client.post("/v1/runs", json.dumps(body), "application/json")
    assert answer.status_code == status and answer["Content-Type"] == "application/problem+json"
    assert words in answer.json()["detail"] and answer.json()["type"].startswith("urn:rollcall:")
    assert client.get("/v1/runs").json() == {"runs": []}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ('{"counters": [], "mode": "mend", "counter": "users"}', ["counters", "mode", "counter"]),
        ('{"counters": ["users", 5]}', ["counters.1"]),
        ('{"mode": null}', ["mode"]),
        ('["users"]', ["body"]),
        ("null", ["body"]),
        ("", ["body"]),
    ],
)
def test_each_wrong_field_of_a_body_is_named(world, client, body, fields):
    answer = client.post("/v1/runs", body)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:rollcall:invalid-request")
    assert [one["field"] for one in answer.json()["errors"]] == fields
    assert all(one["detail"] in answer.json()["detail"] for one in answer.json()["errors"])


def test_a_mode_that_is_not_known_is_told_which_there_are(world, client):
    (error,) = client.post("/v1/runs", '{"mode": "mend"}').json()["errors"]
    assert "mend" in error["detail"] and "repair" in error["detail"] and "check" in error["detail"]
    (error,) = client.post("/v1/runs", '{"counter": "users"}').json()["errors"]
    assert "counters" in error["detail"] and "mode" in error["detail"]


def test_a_body_that_is_missing_is_named(world, client):
    answer = client.post("/v1/runs", "", "application/json")
    assert (answer.status_code, answer.json()["detail"]) == (422, "body: Field required")


@pytest.mark.parametrize(
    "body",
    [b"{", b"{}{}", b"\xff", b'{"counters": ["\xff"]}', b'{"x": ' + b"[" * 100_000, b'{"mode": 5, "counters": '],
    ids=["cut off", "two", "no text", "a text that is none", "deep", "a fault and an early end"],
)
def test_malformed_json_is_a_problem_and_not_an_error(world, client, body):
    answer = client.post("/v1/runs", body)
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert answer.json()["type"] == "urn:rollcall:bad-request"
    assert registry.latest(world.redis, 1) == []


def test_cancelling_a_run(world, client):
    run = client.post("/v1/runs", "{}", "application/json").json()
    assert run["cancelling"] is False
    asked = client.post(f"/v1/runs/{run['id']}/cancel")
    assert (asked.status_code, asked.json()["status"], asked.json()["cancelling"]) == (202, "queued", True)
    assert [one["cancelling"] for one in client.get("/v1/runs").json()["runs"]] == [True]
    list(world.steps(registry.get(world.redis, run["id"])))
    ended = client.get(f"/v1/runs/{run['id']}").json()
    assert (ended["status"], ended["cancelling"]) == ("cancelled", False)


@pytest.mark.parametrize(
    "sent",
    [
        b"Transfer-Encoding: chunked\r\n\r\nrubbish\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"Content-Length: 50\r\n\r\n{}",
    ],
    ids=["no chunks", "half a chunk", "half a body"],
)
def test_a_malformed_request_asks_for_nothing(world, gunicorn, sent):
    run = registry.create(world.redis, ["users"], registry.Mode.CHECK, asked_by="api")
    with socket.create_connection(("127.0.0.1", gunicorn), 10) as client:
        client.sendall(f"POST /v1/runs/{run.id}/cancel HTTP/1.1\r\nHost: localhost\r\n".encode() + sent)
        client.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: client.recv(1 << 16), b""))  # to its end
    assert not said or said.startswith(b"HTTP/1.1 400 ")
    assert not registry.cancel_requested(world.redis, run.id)


def test_a_body_may_come_in_chunks(world, gunicorn):
    limit = application.limits.body_bytes
    connection = http.client.HTTPConnection("127.0.0.1", gunicorn, timeout=10)
    for mode in ("check", "repair"):  # on one connection
        pieces = iter([b'{"counters": ["users"],', b'"mode": "%s"}' % mode.encode()])
        connection.request("POST", "/v1/runs", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["mode"]) == (202, mode)
    connection.request("POST", "/v1/runs", b" " * (limit + 1), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["limit_bytes"]) == (413, limit)
    connection.close()


def test_an_unknown_run_is_404(world, client):
    for answer in (client.get("/v1/runs/none"), client.post("/v1/runs/none/cancel"), client.get("/nowhere")):
        assert answer.status_code == 404 and answer["Content-Type"] == "application/problem+json"


def test_status_tells_how_everything_stands(world, client):
    world.post("ann")
    world.replay()
    assert client.get("/v1/status").json()["counters"]["users"]["state"] == "cold"
    world.reconcile("users")
    status = client.get("/v1/status").json()
    users = status["counters"]["users"]
    assert users["state"] == "live" and users["count"] == 1 and users["drift"] == {"missing": 0, "extra": 0}
    assert users["cursor"] <= users["horizon"] and users["replica_lag_seconds"] >= 0
    assert users["last_run"]["status"] == "done"
    assert status["replica"]["reachable"] and status["keeper"]["alive"] is False


def test_status_and_readiness_name_what_is_missing(world, client):
    assert client.get("/readyz").json() == {
        "ready": True,
        "degraded": False,
        "checks": {"redis": "ok", "replica": "ok"},
    }
    nobody = servers.free_port()
    with override_settings(DATABASE_URL=f"postgres://x@127.0.0.1:{nobody}/x"):
        status = client.get("/v1/status").json()
        assert not status["replica"]["reachable"] and "Connection refused" in status["replica"]["detail"]
        assert "\n" not in status["replica"]["detail"] and "\t" not in status["replica"]["detail"]
        answer = client.get("/readyz")
        assert answer.status_code == 503 and answer.json()["detail"].startswith("replica: cannot be reached: ")
        assert answer.json()["checks"]["redis"] == "ok" and "refused" in answer.json()["checks"]["replica"]
        assert "\n" not in answer.json()["detail"] and "\t" not in answer.json()["detail"]
    with override_settings(REDIS_URL=f"redis://127.0.0.1:{nobody}/0"):
        assert client.get("/readyz").status_code == 503
        assert client.get("/v1/status").status_code == 503
        assert client.get("/metrics").status_code == 503
        assert client.post("/v1/runs", "{}", "application/json").status_code == 503
        assert client.get("/livez").status_code == 200


def test_a_redis_that_evicts_is_not_ready(world, client):
    world.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        answer = client.get("/readyz")
        assert answer.status_code == 503 and "noeviction" in answer.json()["detail"]
    finally:
        world.redis.config_set("maxmemory-policy", "noeviction")


def test_metrics_tell_what_redis_knows(world, client):
    world.post("ann", "bob")
    world.replay()
    world.reconcile("users")
    text = client.get("/metrics").content.decode()
    assert 'rollcall_counter_members{counter="users"} 2.0' in text
    assert 'rollcall_counter_live{counter="cities"} 0.0' in text
    assert 'rollcall_counter_members{counter="cities"}' not in text, "a cold counter has no number"
    assert 'rollcall_counter_drift_members{counter="users",kind="missing"} 0.0' in text


def test_the_description_and_its_page_need_no_other_host(client):
    description = client.get("/openapi.json").json()
    assert "/v1/runs" in description["paths"] and "/v1/runs/{run_id}/cancel" in description["paths"]
    answer = client.get("/docs")
    page = answer.content.decode()
    assert "https://" not in page and "http://" not in page
    assert "script-src 'self';" in answer["Content-Security-Policy"], "no script in place"
    assert not re.search(r"<script(?![^>]* src=)", page)
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(files) == 4
    for path in files:
        assert client.get(path).status_code == 200, path


def test_the_description_names_what_can_be_named(client):
    """So that a generated client has types for it."""
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["Status"]["enum"] == ["cancelled", "done", "failed", "queued", "running"]
    assert schemas["Mode"]["enum"] == ["check", "repair"]
    assert sorted(schemas["CounterStatus"]["properties"]["state"]["enum"]) == ["cold", "live"]
    assert sorted(schemas["RunRequest"]["properties"]) == ["counters", "mode"]
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert {"createRun", "listRuns", "getRun", "cancelRun", "getStatus", "getDrift"} <= set(names)
