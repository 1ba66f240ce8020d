"""Group commit: what shares a transaction, and what does not suffer for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from django.db import connection
from django.http import HttpResponse

from ingest_service.catalog import read_collections
from ingest_service.writing import counting, group_commit, recording
from tests.ingest.producing import Producer, message
from tests.ingest.severing import Severing
from tests.ingest.test_recording import trigger
from tests.servers import sql, started_primary, wait_for


def line() -> group_commit.Line:
    return group_commit.line_of(read_collections()["messages"])


@contextmanager
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody leads for as long as the block runs, so that requests gather; at its end they are carried out."""
    begun, go_on, record_one = threading.Event(), threading.Event(), recording.record_one

    def slow(collection: Any, row: Any, ticket: Any = None) -> recording.Recorded:
        if row.username != "first":
            return record_one(collection, row, ticket)
        begun.set()
        go_on.wait()
        return recording.Recorded({"id": 0}, True)

    monkeypatch.setattr(recording, "record_one", slow)
    first = threading.Thread(target=lambda: line().record(read_collections()["messages"].row(**message("first")), None))
    first.start()
    assert begun.wait(5)
    try:
        yield
    finally:
        go_on.set()
        first.join()


def together(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, *requests: tuple[str, str | None]
) -> list[HttpResponse]:
    """Send these (username, key) so that they make one group, led by the first; the answers, in order."""
    answers: dict[int, HttpResponse] = {}

    def send(number: int, username: str, key: str | None) -> None:
        headers = {} if key is None else {"Idempotency_Key": key}
        try:
            answers[number] = Producer(producer.redis).send(message(username), **headers)
        finally:
            connection.close()

    threads = [threading.Thread(target=send, args=(number, *request)) for number, request in enumerate(requests)]
    with busy(monkeypatch):
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_for(lambda number=number: len(line()._waiting) == number, "the request to gather")  # type: ignore[misc]
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(len(requests))]


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each round trip to Redis was about."""
    calls: list[int] = []
    count = counting.count

    def noting(collection: Any, found: Any, rows: int, xact: int, source: str) -> bool:
        calls.append(rows)
        return count(collection, found, rows, xact, source)

    monkeypatch.setattr(counting, "count", noting)
    return calls


def test_requests_that_gather_share_a_transaction_and_a_round_trip(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted_calls(monkeypatch)
    answers = together(producer, monkeypatch, *((f"user{n}", None) for n in range(8)))
    rows = sql(started_primary(), "SELECT id, username, xact FROM message ORDER BY id")
    assert [answer.status_code for answer in answers] == [201] * 8
    assert {(answer.json()["id"], f"user{n}") for n, answer in enumerate(answers)} == {row[:2] for row in rows}
    assert all(answer.json()["counted"] for answer in answers)
    assert len({xact for _, _, xact in rows}) == 1
    assert producer.state("users").watermark == rows[0][2]
    assert producer.members("users") == {f"user{n}".encode() for n in range(8)}
    assert calls == [8]


def test_a_request_that_comes_alone_is_recorded_in_its_own_thread(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    count = counting.count
    monkeypatch.setattr(counting, "count", lambda *a: threads.append(threading.current_thread()) or count(*a))
    assert producer.send(message("ann")).status_code == 201
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("when", ["insert", "commit"])
@pytest.mark.parametrize("code", ["check_violation", "raise_exception"])
def test_a_row_that_the_database_refuses_fails_alone(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, when: str, code: str
) -> None:
    refuse = f"IF NEW.username = 'bad' THEN RAISE EXCEPTION 'no such user' USING ERRCODE = '{code}'; END IF"
    with trigger(when, refuse):
        answers = together(producer, monkeypatch, ("ann", None), ("bad", "k1"), ("bob", "k2"))
    assert [answer.status_code for answer in answers] == [201, 422 if code == "check_violation" else 503, 201]
    assert sorted(producer.usernames()) == ["ann", "bob"]
    assert producer.members("users") == {b"ann", b"bob"}


def test_keys_in_a_group_mean_what_they_mean_alone(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = producer.send(message("ann"), Idempotency_Key="old")
    answers = together(
        producer,
        monkeypatch,
        ("ann", "old"),  # a replay
        ("bob", "new"),
        ("bob", "new"),  # the same twice in one group
        ("cat", "new"),  # the key belongs to another request
        ("dan", None),
        ("eve", "newer"),
    )
    assert [answer.status_code for answer in answers] == [201, 201, 201, 422, 201, 201]
    assert [answer.has_header("Idempotent-Replay") for answer in answers] == [True, False, True, False, False, False]
    assert answers[0].json() == first.json()
    assert answers[1].json()["id"] == answers[2].json()["id"]
    assert sorted(producer.usernames()) == ["ann", "bob", "dan", "eve"]
    for name, key in (("bob", "new"), ("eve", "newer")):
        again = producer.send(message(name), Idempotency_Key=key)
        assert again["Idempotent-Replay"] == "true"
        assert again.json()["id"] in {answer.json().get("id") for answer in answers}


def test_a_key_that_another_transaction_is_using_does_not_hold_up_the_group(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = psycopg2.connect(started_primary().url)
    try:
        with blocker.cursor() as cursor:
            cursor.execute("INSERT INTO receipt (key, fingerprint, answer) VALUES ('k1', 'x', '')")
            done: list[list[HttpResponse]] = []
            requests = (("ann", None), ("bob", "k1"), ("cat", "k2"))
            sending = threading.Thread(target=lambda: done.append(together(producer, monkeypatch, *requests)))
            sending.start()
            wait_for(lambda: sorted(producer.usernames()) == ["ann", "cat"], "the neighbours to be stored")
            assert not done
            blocker.rollback()
            sending.join()
    finally:
        blocker.close()
    assert [answer.status_code for answer in done[0]] == [201, 201, 201]
    assert sorted(producer.usernames()) == ["ann", "bob", "cat"]


@pytest.mark.parametrize(("when", "stored"), [("before", 0), ("after", 3)])
def test_a_connection_lost_in_the_commit_is_unknown_to_each_of_the_group(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, severing: Severing, when: str, stored: int
) -> None:
    severing.when = when
    requests = (("ann", "k1"), ("bob", "k2"), ("cat", "k3"))
    for answer in together(producer, monkeypatch, *requests):
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:rollcall:commit-unknown"
    wait_for(lambda: len(producer.rows()) == stored, "the primary to have noticed")
    assert producer.members("users") == set()
    for name, key in requests:
        answer = producer.send(message(name), Idempotency_Key=key)
        assert (answer.status_code, answer.has_header("Idempotent-Replay")) == (201, bool(stored))
    assert sorted(producer.usernames()) == ["ann", "bob", "cat"]


def test_without_the_primary_each_of_the_group_hears_so(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, severing: Severing
) -> None:
    severing.__exit__()
    for answer in together(producer, monkeypatch, ("ann", None), ("bob", "k1")):
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:rollcall:primary-unavailable"
    assert producer.rows() == []


def test_without_redis_the_whole_group_is_stored_and_none_is_counted(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, use_redis: Callable[[str], None]
) -> None:
    use_redis("redis://127.0.0.1:1/0")
    answers = together(producer, monkeypatch, ("ann", None), ("bob", "k1"))
    assert [(answer.status_code, answer.json()["counted"]) for answer in answers] == [(201, False)] * 2
    assert sorted(producer.usernames()) == ["ann", "bob"]


def test_a_leader_that_fails_leaves_nobody_waiting(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise SystemError("a fault of ours, after the commit")

    with monkeypatch.context() as patch:
        patch.setattr(counting, "count", fail)
        answers = together(producer, patch, ("ann", None), ("bob", None), ("cat", None))
    assert [answer.status_code for answer in answers] == [500, 503, 503]
    assert {answer.json()["type"] for answer in answers[1:]} == {"urn:rollcall:commit-unknown"}
    assert producer.send(message("dan")).status_code == 201


def test_behind_a_leader_that_hangs_requests_go_alone_after_a_while(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "GIVE_UP_SECONDS", 0.1)
    with busy(monkeypatch):
        assert producer.send(message("ann")).status_code == 201
    assert producer.usernames() == ["ann"]
    assert producer.send(message("bob")).json()["counted"] is True


def test_a_follower_of_a_leader_that_hangs_is_told_that_it_is_unknown(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, record_group = threading.Event(), group_commit.record_group

    def hang(*args: Any) -> None:
        go_on.wait()
        record_group(*args)

    monkeypatch.setattr(group_commit, "record_group", hang)
    monkeypatch.setattr(group_commit, "GIVE_UP_SECONDS", 2.0)
    answers: list[list[HttpResponse]] = []
    sending = threading.Thread(
        target=lambda: answers.append(together(producer, monkeypatch, ("ann", None), ("bob", None)))
    )
    sending.start()
    threading.Timer(4.0, go_on.set).start()
    sending.join()
    assert [answer.status_code for answer in answers[0]] == [201, 503]
    assert answers[0][1].json()["type"] == "urn:rollcall:commit-unknown"


def test_many_threads_at_once_get_each_its_own_row(producer: Producer) -> None:
    answers: dict[str, HttpResponse] = {}

    def send(thread: int) -> None:
        another = Producer(producer.redis)
        try:
            for number in range(25):
                name = f"u{thread}-{number}"
                answers[name] = another.send(message(name), **({"Idempotency_Key": name} if number % 2 else {}))
        finally:
            connection.close()

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = dict(sql(started_primary(), "SELECT username, id FROM message"))
    assert {name: answer.json() for name, answer in answers.items()} == {
        name: {"id": row_id, "counted": True} for name, row_id in stored.items()
    }
    assert producer.members("users") == {name.encode() for name in answers}
    kept = dict(sql(started_primary(), "SELECT key, answer FROM receipt"))
    assert {name: json.loads(text)["id"] for name, text in kept.items()} == {name: stored[name] for name in kept}
    assert len(kept) == 8 * 12
