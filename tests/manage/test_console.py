"""The console's page, the same for everybody; and its data from the API."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

from django.contrib.staticfiles import finders
from django.test import override_settings

from manage_service import stores
from manage_service.management import terminal
from manage_service.runs.registry import Mode
from shared_models import declarations
from shared_models.protocol import keys
from shared_models.web.tokens import open_tokens
from tests import servers
from tests.manage.keepers import keeper_at_work, tick_until


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_holds_no_data_and_runs_nothing_that_stands_in_it(world, client):
    world.post("ann-of-the-table")
    world.replay()
    world.reconcile("users")
    answer = client.get("/")
    page = answer.content.decode()
    assert answer.status_code == 200 and "ann-of-the-table" not in page
    empty = re.sub(r"[\s]+", " ", page)
    world.empty()
    assert re.sub(r"[\s]+", " ", client.get("/").content.decode()) == empty, "the page depends on data in the stores"
    policy = answer["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "form-action 'none'" in policy
    elements = Elements(page).found
    assert not [tag for tag, attributes in elements if tag == "style" or "style" in attributes]
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    loaded = [a.get("src") or a.get("href") for tag, a in elements if tag in ("script", "link", "img")]
    assert loaded and all(path.startswith("/static/manage/") for path in loaded)
    assert all(finders.find(path.removeprefix("/static/")) for path in loaded)
    assert {a["data-counter"] for _, a in elements if "data-counter" in a} == {c.name for c in declarations.COUNTERS}


def test_the_page_asks_for_a_token_where_manage_does(client):
    assert 'data-asks-token="no"' in client.get("/").content.decode()
    with override_settings(TOKENS=open_tokens("", f"me:{'0' * 64}", None)):
        assert 'data-asks-token="yes"' in client.get("/").content.decode()


def test_the_script_makes_no_markup_out_of_text():
    text = Path(finders.find("manage/console.js") or "").read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|localStorage|document\.cookie|eval\(", text
    )


def test_every_phase_of_a_run_has_words_on_the_page_and_in_the_terminal():
    code = "".join(path.read_text() for path in Path(keys.__file__).parents[2].glob("manage_service/**/*.py"))
    phases = set(re.findall(r"Progress\(\s*\"(\w+)\"", code))
    assert {"build", "missing", "extra", "fence", "sweep"} <= phases
    assert phases <= set(terminal.PHASES)
    script = Path(finders.find("manage/console.js") or "").read_text()
    assert phases <= set(
        re.findall(r"^  (\w+): \"", script.partition("const PHASES")[2].partition("};")[0], re.MULTILINE)
    )


def test_drift_over_time_is_what_the_kept_runs_found(world, client):
    world.post("ann", "bob")
    world.replay()
    world.build()
    members = keys.of_counter("users").members
    world.redis.sadd(members, "ghost")
    checked = world.reconcile("users", mode=Mode.CHECK)
    world.redis.srem(members, "bob")
    world.reconcile("users", "cities")
    world.reconcile("users")
    world.ask("users")  # has found nothing yet
    found = client.get("/v1/drift").json()["counters"]
    assert [(one["mode"], one["missing"], one["extra"]) for one in found["users"]] == [
        ("check", 0, 1),
        ("repair", 1, 1),
        ("repair", 0, 0),
    ]
    assert found["users"][0]["run"] == checked.id
    assert [(one["missing"], one["extra"]) for one in found["cities"]] == [(0, 0)]
    moments = [one["verified_at"] for one in found["users"]]
    assert moments == sorted(moments)


def test_status_tells_who_holds_the_keepers_lock_and_why_it_is_held_up(keeper, client):
    assert client.get("/v1/status").json()["keeper"] == {
        "alive": False,
        "state": "not running",
        "ticked_at": None,
        "job": "",
        "holder": None,
        "failure": "",
        "committed_through": None,
        "horizon_held_seconds": 0.0,
    }
    nobody = stores.connect_replica(f"postgres://x@127.0.0.1:{servers.free_port()}/x")
    working, keeper.replica = keeper.replica, nobody
    keeper.tick()
    told = client.get("/v1/status").json()["keeper"]
    assert told["state"] == "held up" and "Connection refused" in told["failure"]
    assert told["holder"]["pid"] == os.getpid()
    keeper.replica = working
    keeper.catch_up_at = 0.0
    keeper.tick()
    told = client.get("/v1/status").json()["keeper"]
    assert told["state"] == "alive" and told["failure"] == "" and told["ticked_at"]
    keeper.close()
    assert client.get("/v1/status").json()["keeper"]["holder"] is None


def test_the_keepers_job_is_told_while_it_lasts(world, client):
    with keeper_at_work(catch_up_seconds=3600.0) as keeper:
        run = world.ask("users")
        tick_until(keeper, lambda: keeper.job and keeper.job.name == f"run {run.id}", "the run")
        assert client.get("/v1/status").json()["keeper"]["job"] == f"run {run.id}"
        tick_until(keeper, lambda: keeper.job is None, "the end of the run")
        assert client.get("/v1/status").json()["keeper"]["job"] == ""


def test_requests_keep_their_connections_and_outlive_their_loss(world, client):
    assert client.get("/v1/status").status_code == 200
    backend, connections = ask_backend(), world.redis.info("stats")["total_connections_received"]
    for path in ("/readyz", "/v1/status", "/v1/runs", "/v1/drift", "/metrics"):  # each runs in a thread of its own
        assert client.get(path).status_code == 200
    assert ask_backend() == backend
    assert world.redis.info("stats")["total_connections_received"] == connections

    servers.sql(world.replica_server, "SELECT pg_terminate_backend(%s)", backend)
    servers.wait_for(
        lambda: not servers.sql(world.replica_server, "SELECT 1 FROM pg_stat_activity WHERE pid = %s", backend),
        "the connection to be ended",
    )
    world.redis.client_kill_filter(_type="normal", skipme=True)
    answer = client.get("/v1/status")
    assert answer.status_code == 200 and answer.json()["replica"]["reachable"]
    assert client.get("/readyz").status_code == 200
    assert ask_backend() != backend


def ask_backend():
    """The process id of the server's end of the connection that the next request gets, as libpq knows it."""
    with stores.replica_of_requests() as replica, replica.snapshot():
        assert replica._connection is not None
        return replica._connection.info.backend_pid


def test_the_description_says_what_status_and_drift_look_like(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/status", "/v1/drift"):
        shape = paths[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert "$ref" in shape, path
