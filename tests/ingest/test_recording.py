"""The write path over real stores: first stored, then counted, and the result of each failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from secrets import token_hex

import psycopg2
import pytest
from django.db import connection
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import CapturingLogger

from compose.local.servers import Replica, Valkey
from ingest_service import stores
from ingest_service.catalog import read_collections
from ingest_service.writing import counting, recording
from loadtest.chaos.rules import leave_out
from shared_models.protocol import keys
from shared_models.protocol.members import encode
from shared_models.protocol.timeline import SOURCE_SQL
from tests.ingest.producing import Producer, message
from tests.ingest.severing import Severing
from tests.servers import FAST, free_port, servers_folder, sql, started_primary, started_valkey, wait_for


def test_one_message_is_stored_and_counted(producer: Producer) -> None:
    response = producer.send(message("ann", "NY", "New York", "hi"))
    ((row_id, xact),) = sql(started_primary(), "SELECT id, xact FROM message")
    assert response.status_code == 201
    assert response.json() == {"id": row_id, "counted": True}
    assert producer.rows() == [("NY", "New York", "ann", "hi")]
    assert producer.members("users") == {b"ann"}
    assert producer.members("cities") == {b'["NY","New York"]'}
    ((source,),) = sql(started_primary(), f"SELECT {SOURCE_SQL}")
    for counter in ("users", "cities"):
        assert (producer.state(counter).watermark, producer.state(counter).watermark_source) == (xact, source)


def test_a_batch_is_stored_and_counted_but_for_its_bad_rows(producer: Producer) -> None:
    response = producer.send_batch(message("ann"), message(""), message("bob"), message("ann"), {"state": "NY"})
    assert response.status_code == 200
    assert response.json() == {
        "accepted": 3,
        "rejected": 2,
        "errors": [
            {"line": 2, "detail": "username must not be empty"},
            {"line": 5, "detail": "city is missing; username is missing; message is missing"},
        ],
        "counted": True,
    }
    assert producer.usernames() == ["ann", "bob", "ann"]
    assert producer.members("users") == {b"ann", b"bob"}
    assert len(sql(started_primary(), "SELECT DISTINCT xact FROM message")) == 1


def test_a_strict_batch_with_a_bad_row_stores_nothing(producer: Producer) -> None:
    response = producer.send_batch(message("ann"), message(""), query="?strict=1")
    assert response.status_code == 422
    assert response.json()["errors"] == [{"line": 2, "detail": "username must not be empty"}]
    assert producer.rows() == []
    assert producer.members("users") == set()
    assert producer.send_batch(message("ann"), query="?strict=1").json()["accepted"] == 1


def test_a_batch_without_a_valid_row_is_answered_and_stores_nothing(producer: Producer) -> None:
    assert producer.send_batch(message(""), message("")).json()["rejected"] == 2
    assert producer.post("/v1/messages/batch", b"[]").json() == {
        "accepted": 0,
        "rejected": 0,
        "errors": [],
        "counted": True,
    }
    assert producer.rows() == []


def test_a_batch_larger_than_a_chunk_is_counted_whole(producer: Producer) -> None:
    assert producer.send_batch(*(message(f"user{n}") for n in range(2_500))).json()["counted"] is True
    assert len(producer.rows()) == 2_500
    assert producer.members("users") == {b"user%d" % n for n in range(2_500)}


# What COPY, JSON, Redis and C each treat specially, alone and next to each other.
AWKWARD = [
    "\\",
    "\t",
    "\n",
    "\r",
    "\\.",
    "\\N",
    "\\t",
    '"',
    "'",
    ",",
    "%s",
    "\x01",
    "\x7f",
    "\x1f",
    "\u2028",
    "\ufeff",
    "😀",
    "é",
    "e\u0301",
    " ",
]


def test_every_awkward_character_comes_out_of_the_table_as_it_went_in(producer: Producer) -> None:
    sent = [message(a, b, f"{a}{b}{a}", b * 3) for a in AWKWARD for b in AWKWARD]
    assert producer.send_batch(*sent).json()["accepted"] == len(sent)
    for row in sent[:: len(AWKWARD) - 1]:
        assert producer.send(row).status_code == 201
    expected = [tuple(row.values()) for row in [*sent, *sent[:: len(AWKWARD) - 1]]]
    assert producer.rows() == [(state, city, username, text) for state, city, username, text in expected]
    assert producer.members("users") == {a.encode() for a in AWKWARD}


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
WORDS = st.text(CHARACTERS, min_size=1, max_size=64)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WORDS, WORDS, WORDS, st.text(CHARACTERS)), min_size=1, max_size=20))
@example([("\\", "\t", "\n", "")])
def test_any_text_goes_to_the_table_and_into_the_sets_unchanged(
    producer: Producer, rows: list[tuple[str, str, str, str]]
) -> None:
    sql(started_primary(), "TRUNCATE message")
    producer.redis.flushdb()
    sent = [dict(zip(("state", "city", "username", "message"), row, strict=True)) for row in rows]
    assert producer.send_batch(*sent).json()["counted"] is True
    assert producer.post("/v1/messages/batch", sent).json()["accepted"] == len(rows)
    assert producer.send(sent[0]).status_code == 201
    assert producer.rows() == [*rows, *rows, rows[0]]
    assert producer.members("users") == {encode((row[2],)) for row in rows}
    assert producer.members("cities") == {encode(row[:2]) for row in rows}


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, st.text(CHARACTERS)), min_size=1, max_size=5))
def test_copy_lines_are_the_same_with_and_without_a_look_at_each_value(rows: list[tuple[str, str, str, str]]) -> None:
    structs = [read_collections()["messages"].row(*row) for row in rows]
    assert recording.as_copy_lines(structs) == "\n".join(map(recording.escape, rows)).encode()


def test_P1_acknowledged_means_stored_even_if_the_primary_is_killed_at_once(producer: Producer) -> None:
    answers = [producer.send(message(f"user{n}")).status_code for n in range(5)]
    answers.append(producer.send_batch(message("last")).status_code)
    assert answers == [201] * 5 + [200]
    assert sql(started_primary(), "SELECT pg_backend_pid() > 0") == [(True,)]
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("on",)
    primary = started_primary()
    primary.kill()
    primary.start()
    assert producer.usernames() == [*(f"user{n}" for n in range(5)), "last"]


def test_P2_counted_means_counted_before_the_answer_is_given(producer: Producer) -> None:
    for number in range(50):
        assert producer.send(message(f"user{number}")).json()["counted"] is True
        assert producer.redis.sismember(keys.of_counter("users").members, f"user{number}")


def test_P3_redis_may_fail_and_ingest_stores_and_acknowledges(
    producer: Producer, use_redis: Callable[[str], None], second_valkey: Callable[..., Valkey]
) -> None:
    valkey = second_valkey()
    use_redis(valkey.url)
    assert producer.send(message("ann")).json()["counted"] is True
    valkey.kill()
    response = producer.send(message("bob"))
    assert (response.status_code, response.json()["counted"]) == (201, False)
    response = producer.send_batch(message("cat"))
    assert (response.status_code, response.json()["counted"]) == (200, False)
    assert producer.usernames() == ["ann", "bob", "cat"]
    valkey.start()
    wait_for(lambda: producer.send(message("dan")).json()["counted"], "ingest to find Redis again")


def test_a_redis_that_hangs_delays_one_request_and_not_the_next(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.conf.settings.REDIS_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(counting, "PAUSE_SECONDS", 60.0)
    process = started_valkey().running()
    assert process is not None
    process.suspend()
    try:
        assert producer.send(message("ann")).json()["counted"] is False
        paused_until = dict(counting._paused_until)
        assert paused_until
        assert producer.send(message("bob")).json()["counted"] is False
        assert dict(counting._paused_until) == paused_until  # it was not asked
    finally:
        process.resume()
    counting._paused_until.clear()
    assert producer.send(message("cat")).json()["counted"] is True


@pytest.mark.parametrize("fault", ["readonly", "full"])
def test_a_redis_that_refuses_writes_makes_counted_false(
    producer: Producer, use_redis: Callable[[str], None], second_valkey: Callable[..., Valkey], fault: str
) -> None:
    valkey = second_valkey(**({"replicaof": "127.0.0.1 1"} if fault == "readonly" else {"maxmemory": "1"}))
    use_redis(valkey.url)
    response = producer.send(message("ann"))
    assert (response.status_code, response.json()["counted"]) == (201, False)


def test_a_fault_of_ours_behind_the_commit_is_no_failure_of_the_request(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that gets an error sends the rows again, and they are stored twice."""

    def fail(*_: object) -> None:
        raise TypeError("not foreseen")

    log = CapturingLogger()
    monkeypatch.setattr(counting, "log", log)
    monkeypatch.setattr("shared_models.protocol.steps.recorded", fail)
    for response in (producer.send(message("ann")), producer.send_batch(message("bob"), Idempotency_Key="17")):
        assert response.status_code in (200, 201)
        assert response.json()["counted"] is False
    monkeypatch.setattr(counting, "encode", fail)
    again = producer.send_batch(message("bob"), Idempotency_Key="17")
    assert (again["Idempotent-Replay"], again.json()["counted"]) == ("true", False)
    said = [(call.method_name, call.args[0]) for call in log.calls]
    assert said == [("exception", "record.not_counted")] * 2 + [("exception", "record.not_looked_up")]
    assert producer.usernames() == ["ann", "bob"]


def test_a_pooled_connection_that_redis_has_closed_is_not_a_failure(producer: Producer) -> None:
    producer.send(message("ann"))
    producer.redis.client_kill_filter(_type="normal", skipme=True)
    assert producer.send(message("bob")).json()["counted"] is True


def test_redis_that_has_forgotten_the_scripts_is_taught_again(producer: Producer) -> None:
    producer.send(message("ann"))
    producer.redis.script_flush()
    assert producer.send(message("bob")).json()["counted"] is True
    assert producer.members("users") == {b"ann", b"bob"}


@contextmanager
def trigger(when: str, action: str, timing: str = "AFTER INSERT") -> Iterator[None]:
    """While this lasts, the primary does something with each row, at once or at the commit."""
    deferred = "INITIALLY DEFERRED" if when == "commit" else "INITIALLY IMMEDIATE"
    sql(
        started_primary(),
        f"""CREATE FUNCTION awkward() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER awkward {timing} ON message DEFERRABLE {deferred}
            FOR EACH ROW EXECUTE FUNCTION awkward()""",
    )
    try:
        yield
    finally:
        sql(started_primary(), "DROP TRIGGER awkward ON message; DROP FUNCTION awkward()")


@pytest.mark.parametrize("when", ["insert", "commit"])
def test_redis_is_not_touched_where_the_commit_fails(producer: Producer, when: str) -> None:
    with trigger(when, "RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'"):
        for response in (producer.send(message("ann")), producer.send_batch(message("ann"), message("bob"))):
            assert response.status_code == 503
            assert response.json()["type"] == "urn:rollcall:primary-unavailable"
            assert response["Retry-After"] == "2"
    assert producer.rows() == []
    assert list(producer.redis.scan_iter()) == []
    assert producer.send(message("ann")).status_code == 201


@pytest.mark.parametrize("when", ["insert", "commit"])
def test_what_the_database_refuses_is_the_senders_to_know_and_no_500(producer: Producer, when: str) -> None:
    with trigger(when, "RAISE EXCEPTION 'no such user' USING ERRCODE = 'check_violation'"):
        for response in (producer.send(message("ann")), producer.send_batch(message("ann"), message("bob"))):
            assert response.status_code == 422
            assert response.json()["type"] == "urn:rollcall:refused-by-database"
            assert "no such user" in response.json()["detail"]
    assert producer.rows() == []
    assert list(producer.redis.scan_iter()) == []


def test_a_backend_that_is_terminated_in_the_commit_makes_it_unknown(producer: Producer) -> None:
    with trigger("commit", "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(0.2)"):
        response = producer.send(message("ann"))
    assert response.status_code == 503
    assert response.json()["type"] == "urn:rollcall:commit-unknown"
    assert "unknown, retry with the same Idempotency-Key" in response.json()["detail"]
    assert list(producer.redis.scan_iter()) == []
    assert producer.send(message("ann")).status_code == 201


@pytest.mark.parametrize(("when", "stored"), [("before", 0), ("after", 1)])
@pytest.mark.parametrize("batch", [False, True])
def test_a_connection_lost_in_the_commit_is_unknown_and_a_retry_with_the_key_settles_it(
    producer: Producer, severing: Severing, when: str, stored: int, batch: bool
) -> None:
    send = producer.send_batch if batch else producer.send
    assert producer.send(message("first")).status_code == 201
    severing.when = when
    response = send(message("ann"), Idempotency_Key="k1")
    assert response.status_code == 503
    assert response.json()["type"] == "urn:rollcall:commit-unknown"
    wait_for(lambda: producer.usernames().count("ann") == stored, "the primary to have noticed")
    assert b"ann" not in producer.members("users")
    response = send(message("ann"), Idempotency_Key="k1")
    assert response.status_code == (200 if batch else 201)
    assert producer.usernames() == ["first", "ann"]
    assert response.has_header("Idempotent-Replay") is bool(stored)
    # The first attempt stored it, so catch-up counts it: a replay only checks whether it is counted.
    assert response.json()["counted"] is not bool(stored)


def test_a_connection_that_died_while_idle_fails_no_request(producer: Producer, severing: Severing) -> None:
    for send in (producer.send, producer.send_batch):
        assert send(message("ann")).status_code in (200, 201)
        sql(
            started_primary(),
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'rollcall-ingest'",
        )
        assert send(message("bob")).status_code in (200, 201)
        severing.cut()
        assert send(message("cat")).status_code in (200, 201)
    assert producer.usernames() == ["ann", "bob", "cat"] * 2


def test_without_the_primary_nothing_is_stored_and_nothing_counted(producer: Producer, severing: Severing) -> None:
    severing.__exit__()
    response = producer.send(message("ann"))
    assert response.status_code == 503
    assert response.json()["type"] == "urn:rollcall:primary-unavailable"
    assert response["Retry-After"] == "2"
    assert list(producer.redis.scan_iter()) == []


def test_a_primary_that_has_become_read_only_is_a_503_and_its_connection_is_not_kept(producer: Producer) -> None:
    producer.send(message("ann"))
    raw = producer.in_committer(stores.open_primary).raw
    with raw.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    assert producer.send(message("bob")).status_code == 503
    assert raw.closed
    assert producer.send(message("cat")).status_code == 201
    assert producer.usernames() == ["ann", "cat"]


def test_a_statement_that_takes_too_long_is_a_503(producer: Producer) -> None:
    with psycopg2.connect(started_primary().url) as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE message")
        with producer.in_committer(stores.open_primary).raw.cursor() as other:
            other.execute("SET lock_timeout = '100ms'")
        assert producer.send(message("ann")).status_code == 503
    blocker.close()
    assert producer.send(message("ann")).status_code == 201


def test_the_connection_says_what_it_is_made_for(producer: Producer) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT current_setting('synchronous_commit'), current_setting('statement_timeout'),
                      current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'),
                      current_setting('application_name')"""
        )
        assert cursor.fetchone() == ("on", "10s", "5s", "30s", "rollcall-ingest")


def test_rows_of_many_threads_are_all_stored_and_counted(producer: Producer) -> None:
    failures: list[object] = []

    def send(thread: int) -> None:
        for number in range(10):
            answer = producer.send_batch(*(message(f"u{thread}-{number}-{n}") for n in range(20)))
            if not answer.json()["counted"]:
                failures.append(answer.json())

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    expected = {f"u{t}-{number}-{n}".encode() for t in range(6) for number in range(10) for n in range(20)}
    assert producer.members("users") == expected
    assert len(producer.rows()) == len(expected)


def test_members_of_a_batch_are_those_of_its_rows(producer: Producer) -> None:
    collection = read_collections()["messages"]
    sent = [message("ann"), message("bob"), message("ann", city="Ithaca")]
    found = counting.members_of(collection, [collection.row(**row) for row in sent])
    assert {name: sorted(members) for name, members in found.items()} == {
        "users": [b"ann", b"bob"],
        "cities": [b'["NY","Ithaca"]', b'["NY","New York"]'],
    }


def test_a_batch_of_the_longest_rows_is_copied_whole(producer: Producer) -> None:
    sent = [message(f"user{n}", message=str(n % 10) * 65_536) for n in range(900)]
    assert producer.send_batch(*sent).json()["accepted"] == 900
    assert sql(started_primary(), "SELECT count(*), count(DISTINCT username), min(length(message)) FROM message") == [
        (900, 900, 65_536)
    ]


def test_a_connection_that_lived_through_a_promotion_learns_the_new_timeline(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /readyz opens it while the server is still a standby."""
    standby = Replica(
        servers_folder() / f"promoted-{token_hex(4)}",
        free_port(),
        started_primary(),
        settings=FAST,
        dies_with_parent=True,
    )
    standby.start()
    try:
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "PORT", standby.port)
        before = producer.in_committer(stores.open_primary)
        assert not producer.in_committer(stores.open_primary).reused or before.source.endswith("/1")
        sql(standby, "SELECT pg_promote()")
        assert producer.send(message("ann")).json()["counted"]
        assert before.raw is producer.in_committer(stores.open_primary).raw, "the connection is the same"
        assert producer.state("users").watermark_source == before.source.removesuffix("/1") + "/2"
    finally:
        connection.close()
        standby.stop()


def test_without_asking_it_anew_the_connection_keeps_the_old_timeline(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out("source asked anew", monkeypatch.setattr)
    with pytest.raises(AssertionError, match="/2"):
        test_a_connection_that_lived_through_a_promotion_learns_the_new_timeline(producer, monkeypatch)
