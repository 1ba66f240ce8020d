"""Idempotency keys: a retry stores nothing twice, gets the first answer, and learns what is counted now."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable

import psycopg2
import pytest
from django.db import connection

from ingest_service import stores
from ingest_service.models import Receipt
from ingest_service.writing import counting, transactions
from ingest_service.writing.idempotency import GROUP_LOCK_MILLISECONDS, KeyReused, RequestClaim, take_all
from ingest_service.writing.pulse import Pulse
from ingest_service.writing.transactions import Transaction, transact
from shared_models.protocol import keys
from tests.ingest.producing import NDJSON, Producer, Response, message, ndjson
from tests.servers import sql, started_primary, started_valkey, wait_for


@pytest.mark.parametrize("batch", [False, True])
def test_a_retry_gets_the_first_answer_and_stores_nothing(producer: Producer, batch: bool) -> None:
    rows = [message("ann"), message(""), message("bob")] if batch else [message("ann")]
    send = producer.send_batch if batch else producer.send
    first = send(*rows, Idempotency_Key="k1")
    again = send(*rows, Idempotency_Key="k1")
    assert not first.has_header("Idempotent-Replay")
    assert again["Idempotent-Replay"] == "true"
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert first.json()["counted"] is True
    assert len(producer.rows()) == len(rows) - batch
    send(*rows, Idempotency_Key="k2")
    assert len(producer.rows()) == 2 * (len(rows) - batch)


def test_a_batch_that_is_packed_again_is_the_same_batch(producer: Producer) -> None:
    body = ndjson(message("ann"))
    for mtime in (1, 2):
        packed = gzip.compress(body, mtime=mtime)
        response = producer.post("/v1/messages/batch", packed, NDJSON, Content_Encoding="gzip", Idempotency_Key="k1")
        assert response.json()["accepted"] == 1
    assert producer.usernames() == ["ann"]


def test_the_same_key_with_another_request_is_refused(producer: Producer) -> None:
    assert producer.send(message("ann"), Idempotency_Key="k1").status_code == 201
    others: list[Response] = [
        producer.send(message("bob"), Idempotency_Key="k1"),
        producer.send_batch(message("ann"), Idempotency_Key="k1"),
        producer.send_batch(message("ann"), query="?strict=1", Idempotency_Key="k1"),
        producer.post("/v1/messages/batch", [message("ann")], Idempotency_Key="k1"),
    ]
    for response in others:
        assert response.status_code == 422
        assert response.json()["type"] == "urn:rollcall:idempotency-key-reused"
    assert producer.usernames() == ["ann"]
    assert producer.members("users") == {b"ann"}


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb"])
def test_a_key_that_cannot_be_used_is_refused_by_name(producer: Producer, key: str) -> None:
    response = producer.send(message("ann"), Idempotency_Key=key)
    assert response.status_code == 400
    assert "Idempotency-Key takes 1 to 255 printable ASCII characters" in response.json()["detail"]
    assert producer.rows() == []


def test_a_key_of_255_characters_can_be_used(producer: Producer) -> None:
    for _ in range(2):
        assert producer.send(message("ann"), Idempotency_Key="~" * 255).status_code == 201
    assert producer.usernames() == ["ann"]


def test_a_refusal_is_not_kept(producer: Producer) -> None:
    assert producer.send_batch(message(""), query="?strict=1", Idempotency_Key="k1").status_code == 422
    assert producer.send(message(""), Idempotency_Key="k1").status_code == 422
    assert producer.send(message("ann"), Idempotency_Key="k1").status_code == 201


def test_a_batch_without_a_valid_row_keeps_its_answer_too(producer: Producer) -> None:
    first = producer.send_batch(message(""), Idempotency_Key="k1")
    again = producer.send_batch(message(""), Idempotency_Key="k1")
    assert again["Idempotent-Replay"] == "true"
    assert again.json() == first.json()


def test_a_replay_says_what_is_counted_now_and_not_what_was(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [message(f"user{n}") for n in range(2_100)]
    (client,) = stores.redis_nodes().each()
    counting._paused_until[client] = float("inf")
    assert producer.send_batch(*rows, Idempotency_Key="k1").json()["counted"] is False
    assert producer.send_batch(*rows, Idempotency_Key="k1").json()["counted"] is False
    counting._paused_until.clear()
    assert producer.send_batch(*rows, Idempotency_Key="k1").json()["counted"] is False
    assert producer.members("users") == set()
    producer.send_batch(*rows)  # somebody else counts the same members
    assert producer.send_batch(*rows, Idempotency_Key="k1").json()["counted"] is True
    producer.redis.srem(keys.of_counter("users").members, "user2099")
    replayed = producer.send_batch(*rows, Idempotency_Key="k1")
    assert replayed["Idempotent-Replay"] == "true"
    assert replayed.json()["counted"] is False


def test_a_crash_between_the_store_and_the_answer_stores_nothing_twice(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> bool:
        raise SystemError("the worker is killed here")

    with monkeypatch.context() as patch:
        patch.setattr(counting, "count", crash)
        assert producer.send(message("ann"), Idempotency_Key="k1").json()["type"] == "urn:rollcall:commit-unknown"
    assert producer.usernames() == ["ann"]
    ((row_id,),) = sql(started_primary(), "SELECT id FROM message")
    response = producer.send(message("ann"), Idempotency_Key="k1")
    assert (response.status_code, response.json()) == (201, {"id": row_id, "counted": False})
    assert producer.usernames() == ["ann"]


def in_threads(count: int, call: Callable[[int], None]) -> None:
    """Run `call` in so many threads at once."""

    def run(number: int) -> None:
        barrier.wait()
        call(number)

    barrier = threading.Barrier(count)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("batch", [False, True])
def test_of_many_requests_with_one_key_at_once_one_stores_and_all_are_answered_alike(
    producer: Producer, batch: bool
) -> None:
    answers: list[Response] = []

    def send(_: int) -> None:
        another = producer
        rows = [message("ann"), message("bob")] if batch else [message("ann")]
        answers.append((another.send_batch if batch else another.send)(*rows, Idempotency_Key="k1"))

    in_threads(8, send)
    assert producer.usernames() == (["ann", "bob"] if batch else ["ann"])
    assert {answer.status_code for answer in answers} == {200 if batch else 201}
    # All but "counted": a replay may look before the first request has counted.
    assert len({json.dumps(answer.json() | {"counted": None}) for answer in answers}) == 1
    assert sum(answer.has_header("Idempotent-Replay") for answer in answers) == 7


def test_of_two_different_requests_with_one_key_at_once_one_stores_and_the_other_is_refused(
    producer: Producer,
) -> None:
    answers: list[int] = []

    def send(number: int) -> None:
        answers.append(producer.send(message(f"user{number}"), Idempotency_Key="k1").status_code)

    in_threads(2, send)
    assert sorted(answers) == [201, 422]
    assert len(producer.rows()) == 1


def test_where_the_first_of_two_fails_the_second_stores(producer: Producer) -> None:
    with_key = message("ann"), "k1"
    raw = stores.open_primary().raw
    with raw.cursor() as cursor:
        cursor.execute("BEGIN; INSERT INTO receipt (key, fingerprint, answer) VALUES ('k1', 'x', '')")
        answers: list[Response] = []

        def send(_: int) -> None:
            answers.append(producer.send(with_key[0], Idempotency_Key=with_key[1]))

        thread = threading.Thread(target=in_threads, args=(1, send))
        thread.start()
        wait_for(
            lambda: sql(started_primary(), "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"),
            "the second request to wait",
        )
        cursor.execute("ROLLBACK")
        thread.join()
    assert [answer.status_code for answer in answers] == [201]
    assert not answers[0].has_header("Idempotent-Replay")
    assert producer.usernames() == ["ann"]


def test_a_request_that_waits_in_vain_for_its_twin_keeps_nobody_else_from_storing(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not the primary that kept it waiting."""
    monkeypatch.setattr(transactions, "AT_ONCE_SECONDS", 0.0)
    twin = psycopg2.connect(started_primary().url)
    with twin.cursor() as cursor:
        cursor.execute("INSERT INTO receipt (key, fingerprint, answer) VALUES ('k1', 'x', '')")
    options = connection.settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "options", options["options"] + " -c lock_timeout=50")
    assert producer.send(message("ann"), Idempotency_Key="k1").status_code == 503
    assert producer.send(message("bob")).status_code == 201
    twin.close()
    assert producer.send(message("ann"), Idempotency_Key="k1").status_code == 201


def test_old_receipts_are_removed_in_bites_and_young_ones_are_not(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest_service.writing.idempotency.PRUNE_ROWS", 10)
    sql(
        started_primary(),
        """INSERT INTO receipt (key, fingerprint, answer, create_time)
           SELECT n::text, '', '', now() - n * interval '1 hour' FROM generate_series(1, 95) AS n""",
    )
    assert Pulse(pulse_seconds=0, keep_hours=48).prune() == 48
    assert Receipt.objects.count() == 47
    assert not Receipt.objects.filter(key="48").exists()


def test_the_receipt_of_an_answer_with_odd_names_can_be_kept(producer: Producer) -> None:
    rows = [message("ann") | {"a\0\ud800": "x"}]
    body = json.dumps(rows).encode()
    for _ in range(2):
        response = producer.post("/v1/messages/batch", body, Idempotency_Key="k1")
        assert response.status_code == 200
        assert response.json()["errors"][0]["detail"].startswith("there is no field a\0\\ud800;")


def test_a_replay_while_redis_is_away_says_not_counted(producer: Producer, use_redis: Callable[[str], None]) -> None:
    first = producer.send(message("ann"), Idempotency_Key="k1")
    use_redis("redis://127.0.0.1:1/0")
    again = producer.send(message("ann"), Idempotency_Key="k1")
    assert again.json() == first.json() | {"counted": False}
    use_redis(started_valkey().url)


@pytest.mark.parametrize("group", [False, True], ids=["alone", "in a group"])
def test_a_receipt_from_before_keys_had_owners_is_a_replay_of_the_same_request_only(
    producer: Producer, group: bool
) -> None:
    """A request that is sent again after an upgrade."""
    old, same = RequestClaim("", "17", "f" * 64), RequestClaim("till", "17", "f" * 64)
    other, neighbour = RequestClaim("till", "17", "e" * 64), RequestClaim("cash", "18", "f" * 64)

    def answer_old(transaction: Transaction) -> None:
        assert old.take(transaction)
        old.keep(transaction, {"id": 5})

    transact(answer_old)

    def take(*claims: RequestClaim) -> set[str]:
        if group:
            return transact(lambda transaction: take_all(transaction, claims, GROUP_LOCK_MILLISECONDS))
        return {claim.id for claim in claims if transact(claim.take)}

    assert take(same, neighbour) == {neighbour.id}
    assert transact(same.read_answer) == {"id": 5}
    assert take(other) == {other.id}, "another request of another producer"
    with pytest.raises(KeyReused):
        transact(same.read_answer)


def test_two_owners_of_one_key_share_a_group(producer: Producer) -> None:
    claims = [RequestClaim(owner, "17", "f" * 64) for owner in ("till", "cash")]
    assert transact(lambda transaction: take_all(transaction, claims, GROUP_LOCK_MILLISECONDS)) == {
        claim.id for claim in claims
    }
