"""Ingest's own endpoints: health, readiness, metrics, description; and its settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from django.core.management import call_command
from django.db import connection

from compose.local.servers import Valkey
from ingest_service.writing import pulse, transactions
from ingest_service.writing.pulse import Pulse
from shared_models import declarations
from shared_models.declarations import Counter, Field, Table
from shared_models.web import prometheus
from tests.ingest.producing import Producer, message
from tests.ingest.severing import Severing
from tests.servers import sql, started_primary


def test_livez_touches_nothing(producer: Producer, severing: Severing, use_redis: Callable[[str], None]) -> None:
    use_redis("redis://127.0.0.1:1/0")
    assert producer.get("/livez").status_code == 200
    assert severing.opened == 0


def test_readyz_says_that_rows_can_be_stored_and_counted(producer: Producer) -> None:
    response = producer.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"ready": True, "degraded": False, "checks": {"primary": "ok", "redis": "ok"}}


def test_without_redis_ingest_is_ready_and_says_that_it_is_degraded(
    producer: Producer, use_redis: Callable[[str], None], second_valkey: Callable[..., Valkey]
) -> None:
    use_redis("redis://127.0.0.1:1/0")
    response = producer.get("/readyz")
    assert (response.status_code, response.json()["degraded"]) == (200, True)
    assert "Redis cannot be reached" in response.json()["checks"]["redis"]
    use_redis(second_valkey(maxmemory_policy="allkeys-lru").url)
    assert "noeviction" in producer.get("/readyz").json()["checks"]["redis"]


def test_without_the_primary_ingest_is_not_ready(producer: Producer, severing: Severing) -> None:
    severing.__exit__()
    response = producer.get("/readyz")
    assert response.status_code == 503
    assert response["Retry-After"] == "2"
    assert "the primary cannot be reached" in response.json()["detail"]


def test_a_database_that_cannot_be_written_to_or_has_no_tables_is_named(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        options = connection.settings_dict["OPTIONS"]
        patch.setitem(options, "options", options["options"] + " -c default_transaction_read_only=on")
        assert "read-only" in producer.get("/readyz").json()["detail"]
    call_command("migrate", "ingest_service", "zero", verbosity=0)
    try:
        assert "run python -m ingest_service migrate" in producer.get("/readyz").json()["detail"]
        assert producer.send(message(), Idempotency_Key="k1").status_code == 503
    finally:
        call_command("migrate", verbosity=0)
    assert producer.get("/readyz").status_code == 200


def test_where_only_tables_of_others_are_counted_the_database_needs_none_of_ours(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent to such an ingest: it keeps time, and prunes departures."""
    orders = Table("orders", "shop", "orders", (Field("email", "text"),))
    call_command("migrate", "ingest_service", "zero", verbosity=0)
    try:
        monkeypatch.setattr(declarations, "COUNTERS", (Counter("customers", orders, ("email",)),))
        assert producer.get("/readyz").json()["checks"] == {"primary": "ok", "redis": "ok"}
        assert Pulse(pulse_seconds=0, keep_hours=48).prune() == 0
        assert producer.send(message()).status_code == 404
    finally:
        call_command("migrate", verbosity=0)


def test_the_metrics_follow_what_happens(producer: Producer) -> None:
    def value(line: str) -> float:
        text = producer.get("/metrics").content.decode()
        return sum(float(found.split()[-1]) for found in text.splitlines() if found.startswith(line))

    rows = 'rollcall_ingest_rows_total{collection="messages"}'
    rejected = 'rollcall_ingest_rejected_rows_total{collection="messages"}'
    replays = 'rollcall_ingest_replays_total{collection="messages"}'
    asked = 'rollcall_request_seconds_count{route="/v1/{collection}/batch",service="ingest",status="200"}'
    before = [value(name) for name in (rows, rejected, replays, asked)]
    for _ in range(2):
        producer.send_batch(message(), message(""), Idempotency_Key="k1")
    assert [value(name) for name in (rows, rejected, replays, asked)] == [
        before[0] + 1,
        before[1] + 2,
        before[2] + 1,
        before[3] + 2,
    ]
    producer.get("/made-up")
    assert "made-up" not in prometheus.exposition().decode()


def test_the_description_gives_the_rules_of_the_model(producer: Producer) -> None:
    api = producer.get("/openapi.json").json()
    row = api["components"]["schemas"]["Message"]
    assert row["required"] == ["state", "city", "username", "message"]
    assert row["additionalProperties"] is False
    assert row["properties"]["state"] == {
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
        "pattern": "^[^\\u0000]*$",
    }
    batch = api["paths"]["/v1/messages/batch"]["post"]
    assert set(batch["requestBody"]["content"]) == {
        "application/json",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
    }


def test_the_docs_page_loads_everything_from_here(producer: Producer) -> None:
    response = producer.get("/docs")
    page = response.content.decode()
    assert response.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 4
    assert {producer.get(path).status_code for path in loaded} == {200}


def commits() -> int:
    """How many transactions with an xact there have been, as the primary counts them."""
    return int(sql(started_primary(), "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0])


def test_a_worker_that_is_idle_commits_now_and_then(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Pulse(pulse_seconds=60.0, keep_hours=48.0)
    worker.one_tick()
    producer.send(message("ann"))
    before = commits()
    assert worker.one_tick() is False  # it has just committed a row
    assert commits() == before
    monkeypatch.setattr(transactions, "last_commit_at", transactions.last_commit_at - 61)
    assert worker.one_tick() is True
    assert commits() == before + 1
    assert worker.one_tick() is False


def test_a_pulse_of_0_is_off(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "last_commit_at", 0.0)
    worker = Pulse(pulse_seconds=0.0, keep_hours=48.0)
    worker.prune()
    before = commits()
    assert worker.one_tick() is False
    assert commits() == before


def test_a_pulse_without_a_primary_is_quiet_and_beats_again(
    producer: Producer, severing: Severing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "last_commit_at", -100.0)
    monkeypatch.setattr(pulse, "PRUNE_SECONDS", 1e9)
    worker = Pulse(pulse_seconds=1.0, keep_hours=48.0)
    severing.when = "before"
    assert worker.one_tick() is False
    assert worker.one_tick() is True


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"DATABASE_URL": None}, '"DATABASE_URL" not set'),
        ({"REDIS_URL": None}, '"REDIS_URL" not set'),
        ({"DATABASE_URL": "nonsense"}, "ingest_service: "),
        ({"REDIS_URL": "nonsense"}, '"REDIS_URL" invalid'),
        ({"MAX_BATCH_ROWS": "many"}, '"MAX_BATCH_ROWS" invalid'),
        ({"REDIS_TIMEOUT_SECONDS": "0"}, '"REDIS_TIMEOUT_SECONDS" invalid'),
        ({"WAIT_REPLICAS": "6"}, "\"WAIT_REPLICAS\" invalid: ['must be 0 to 5']"),
    ],
)
def test_a_setting_that_is_missing_or_mistyped_ends_the_start_with_one_sentence(
    changed: dict[str, str | None], said: str
) -> None:
    env = {name: value for name, value in {**os.environ, **changed}.items() if value is not None}
    ended = subprocess.run([sys.executable, "-m", "ingest_service", "check"], env=env, capture_output=True, text=True)
    assert ended.returncode != 0
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
