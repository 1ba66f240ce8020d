"""The three services, the keeper and the servers together, as users see them: only over HTTP."""

from __future__ import annotations

import gzip
import http.client
import json
import re

import redis

from compose.local.ordinary_user import CHECKOUT
from compose.local.stack import Stack
from shared_models.protocol import keys
from tests.servers import replay_paused, sql, wait_for
from tests.system.asking import ask, count, mend


def message(username: str, city: str = "Ithaca") -> dict[str, str]:
    return {"state": "NY", "city": city, "username": username, "message": "hello"}


def is_counted(stack: Stack, username: str) -> bool:
    status, answer = ask(stack.query, "GET", f"/v1/counts/users/member?username={username}")
    return status == 200 and answer["member"]


def distinct(stack: Stack, fields: str = "username") -> int:
    ((number,),) = sql(stack.primary, f"SELECT count(*) FROM (SELECT DISTINCT {fields} FROM message) AS d")
    return number


def test_P2_the_next_count_includes_what_was_acknowledged_as_counted(live: Stack) -> None:
    before = count(live)
    assert before is not None
    for n in range(20):
        status, answer = ask(live.ingest, "POST", "/v1/messages", message(f"p2-{n}"))
        assert (status, answer["counted"]) == (201, True)
        assert count(live) == before + n + 1


def test_a_packed_batch_is_counted_and_its_bad_rows_are_named(live: Stack) -> None:
    mend(live)
    rows = [message(f"batch-{n}", city=f"City {n % 7}") for n in range(1000)]
    rows[500]["username"] = ""
    body = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    kind = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    status, answer = ask(live.ingest, "POST", "/v1/messages/batch", body, **kind)
    assert status == 200 and answer["counted"] is True
    assert (answer["accepted"], answer["rejected"], answer["errors"][0]["line"]) == (999, 1, 501)
    assert count(live) == distinct(live) and count(live, "cities") == distinct(live, "state, city")


def test_P3_while_redis_is_down_messages_are_stored_and_then_counted_without_an_operator(live: Stack) -> None:
    live.valkey.kill()
    status, answer = ask(live.ingest, "POST", "/v1/messages", message("while-redis-was-down"))
    assert (status, answer["counted"]) == (201, False)
    assert ask(live.ingest, "GET", "/readyz")[0] == 200, "ingest goes on"
    live.valkey.start()
    wait_for(lambda: is_counted(live, "while-redis-was-down"), "the keeper to count it")
    wait_for(lambda: count(live) == distinct(live), "all to be counted")


def test_P4_counters_lost_with_redis_are_cold_and_then_exact_without_an_operator(live: Stack) -> None:
    """Every answer on the way is a 503 or the exact number."""
    expected = {name: distinct(live, fields) for name, fields in (("users", "username"), ("cities", "state, city"))}
    with live.valkey.client() as client:
        client.flushall()
    served = set()

    def all_live() -> bool:
        status, answer = ask(live.query, "GET", "/stats/get/", **{"Cache-Control": "no-cache"})
        if status == 200:
            served.add((answer["users"], answer["cities"]))
        else:
            assert status == 503
        return status == 200

    wait_for(all_live, "the keeper to build both", seconds=60)
    assert served == {(expected["users"], expected["cities"])}


def test_P6_an_erased_user_leaves_the_count_by_itself(live: Stack) -> None:
    ask(live.ingest, "POST", "/v1/messages", message("to-be-erased"))
    assert is_counted(live, "to-be-erased")
    sql(live.primary, "DELETE FROM message WHERE username = 'to-be-erased'")
    wait_for(lambda: not is_counted(live, "to-be-erased"), "the member to leave")
    assert count(live) == distinct(live)


def test_P7_complete_through_moves_while_nobody_writes_and_stands_still_while_replay_does(live: Stack) -> None:
    def complete_through() -> str:
        return ask(live.query, "GET", "/v1/counts/users", **{"Cache-Control": "no-cache"})[1]["complete_through"]

    before = complete_through()
    wait_for(lambda: complete_through() > before, "a pulse to come through")
    with replay_paused(live.replica):
        wait_for(lambda: live.keeper.health() == "ok", "the keeper")
        _, answer = ask(live.ingest, "POST", "/v1/messages", message("not-yet-replayed"))
        assert answer["counted"] is True and is_counted(live, "not-yet-replayed")
        ((committed,),) = sql(live.primary, "SELECT create_time FROM message WHERE username = 'not-yet-replayed'")
        assert complete_through() < committed.isoformat()


def test_a_primary_that_is_down_costs_writes_and_nothing_else(live: Stack) -> None:
    before = count(live)
    live.primary.kill()
    status, answer = ask(live.ingest, "POST", "/v1/messages", message("nowhere"))
    assert status == 503 and answer["type"] == "urn:rollcall:primary-unavailable"
    assert count(live) == before and not is_counted(live, "nowhere")
    live.primary.start()
    wait_for(lambda: ask(live.ingest, "POST", "/v1/messages", message("back-again"))[0] == 201, "ingest to write again")
    assert is_counted(live, "back-again") and not is_counted(live, "nowhere")


def test_a_replica_that_is_down_costs_freshness_and_nothing_else(live: Stack) -> None:
    live.replica.kill()
    status, answer = ask(live.ingest, "POST", "/v1/messages", message("replica-was-down"))
    assert answer["counted"] is True and is_counted(live, "replica-was-down")
    status, standing = ask(live.manage, "GET", "/v1/status")
    assert status == 200 and standing["replica"]["reachable"] is False
    live.replica.start()
    before = ask(live.manage, "GET", "/v1/status")[1]["counters"]["users"]["complete_through"]
    after = lambda: ask(live.manage, "GET", "/v1/status")[1]["counters"]["users"]["complete_through"]  # noqa: E731
    wait_for(lambda: after() > before, "the keeper to use it again")
    assert count(live) == distinct(live)


def test_an_ingest_killed_between_commit_and_redis_is_caught_up(live: Stack) -> None:
    """The row as such a process leaves it: committed, in nobody's hands."""
    sql(live.primary, "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Rome', 'orphan', '')")
    wait_for(lambda: is_counted(live, "orphan"), "catch-up")


def test_a_keeper_that_is_killed_is_followed_by_one_that_goes_on(live: Stack) -> None:
    live.keeper.kill()
    sql(live.primary, "INSERT INTO message (state, city, username, message) VALUES ('NY', 'Rome', 'keeperless', '')")
    live.keeper.start()
    wait_for(lambda: is_counted(live, "keeperless"), "the next keeper", seconds=30)


def test_redis_holds_what_the_keys_module_says_and_nothing_else(live: Stack) -> None:
    with live.valkey.client() as client:
        assert isinstance(client, redis.Redis)
        assert all(key.startswith(keys.PREFIX.encode()) for key in client.scan_iter())


def test_the_endpoints_that_the_docs_name_are_those_that_the_services_describe(live: Stack) -> None:
    page = (CHECKOUT / "docs" / "http-api.md").read_text()
    named = {(method, path.partition("?")[0]) for method, path in re.findall(r"`(GET|POST) (/[^` ]+)`", page)}
    described = set()
    for service in (live.ingest, live.manage, live.query):
        _, description = ask(service, "GET", "/openapi.json")
        described |= {(method.upper(), path) for path, methods in description["paths"].items() for method in methods}
    everywhere = {("GET", path) for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs")}
    pages = {("GET", "/"), ("GET", "/v1/stream")}
    # Only if the file declares groups, and with BADGES=on: see tests/query.
    if_asked_for = {
        ("GET", "/v1/counts/{counter}/groups"),
        ("GET", "/v1/badge/{counter}.svg"),
        ("GET", "/embed/{counter}"),
    }
    assert described - everywhere - pages <= named
    assert named - everywhere - pages - if_asked_for <= described


def test_the_keeper_notes_the_counts_of_the_last_hour(live: Stack) -> None:
    def samples() -> list[list[float]]:
        status, answer = ask(live.query, "GET", "/v1/counts/cities/history")
        assert status == 200
        return answer["samples"]

    wait_for(samples, "a sample")
    assert all(isinstance(number, int) and number >= 0 for _, number in samples())
    assert samples() == sorted(samples())


def test_a_file_comes_whole_and_behind_its_head(live: Stack) -> None:
    """gunicorn's threaded worker hands files to the kernel, past the socket's own way of sending."""
    for name in ("console.js", "console.css"):
        expected = (CHECKOUT / "manage_service" / "static" / "manage" / name).read_bytes()
        connection = http.client.HTTPConnection("127.0.0.1", live.manage.port, timeout=10)
        try:
            connection.request("GET", f"/static/manage/{name}")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, expected)
        finally:
            connection.close()
