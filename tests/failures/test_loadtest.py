"""make loadtest: it finds every kind of error, and none if nothing is wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from compose.local.ordinary_user import CHECKOUT
from compose.local.stack import Stack
from loadtest.load.__main__ import streamed
from loadtest.load.ledger import Entry, Ledger
from loadtest.load.rows import row_of
from loadtest.load.settling import served_counts, wait_until_settled
from loadtest.load.verdict import COUNTED, judge_counter, judge_messages
from shared_models.protocol import keys
from tests.servers import sql, wait_for
from tests.system.asking import ask

RUN = "testrun1"


@pytest.fixture
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rollcall-test-") as folder:
        yield Path(folder)


def start(temporary: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loadtest.load", *options],
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_short_load_of_all_kinds_leaves_nothing_wrong_and_a_report(temporary: Path) -> None:
    with start(temporary, "--users", "15", "--seconds", "6", "--results", str(temporary / "results")) as load:
        output, _ = load.communicate()
    assert load.returncode == 0, output
    assert "Nothing is wrong." in output and "0 of unknown outcome" in output
    assert output.count("equal member by member") == len(COUNTED) and "not equal" not in output
    for asked in ("/v1/messages", "/v1/messages/batch", "/v1/counts", "/v1/stream (event)", "/v1/runs"):
        assert f" {asked} " in output, asked
    assert {path.name for path in (temporary / "results").iterdir()} >= {"load.html", "load_stats.csv"}
    assert [path.name for path in temporary.iterdir()] == ["results"]


@pytest.mark.long
def test_ctrl_c_ends_the_load_and_its_stack(temporary: Path) -> None:
    with start(temporary, "--seconds", "60", "--results", str(temporary / "results")) as load:
        assert load.stdout is not None
        for line in load.stdout:
            if "clients for" in line:
                break
        locust = wait_for(
            lambda: [p for p in psutil.Process(load.pid).children() if "locust" in " ".join(p.cmdline())], "locust"
        )
        load.send_signal(signal.SIGINT)
        output, _ = load.communicate()
    assert load.returncode == 130, output
    assert not any(process.is_running() for process in locust)
    assert not [path.name for path in temporary.iterdir() if path.name.startswith("rollcall")]
    assert not [process for process in psutil.process_iter() if str(temporary) in environment_of(process)]


def environment_of(process: psutil.Process) -> str:
    """Empty where it has ended, or is somebody else's."""
    try:
        return " ".join(process.environ().values()) if process.pid != os.getpid() else ""
    except psutil.Error:
        return ""


@pytest.fixture
def loaded(live: Stack, temporary: Path) -> Path:
    """The ledger of a small load: single messages, a batch, and one of unknown outcome that was not stored."""
    ledger = Ledger(temporary / "ledger", RUN)
    for number in range(3):
        status, answer = ask(live.ingest, "POST", "/v1/messages", row_of(RUN, 0, number))
        assert status == 201
        ledger.note(Entry(0, number, 1, True, answer["id"]))
    rows = [row_of(RUN, 1, number) for number in range(20)]
    assert ask(live.ingest, "POST", "/v1/messages/batch", rows)[0] == 200
    ledger.note(Entry(1, 0, 20, True, 0))
    ledger.note(Entry(1, 20, 5, False, 0))
    ledger.close()
    return temporary / "ledger"


def messages(stack: Stack, ledger: Path) -> list[str]:
    with contextlib.closing(psycopg2.connect(stack.primary.url)) as database:
        return judge_messages(
            ledger, streamed(database, "SELECT id, state, city, username, message FROM message")
        ).findings.lines()


def counters(stack: Stack) -> list[str]:
    found, served = [], served_counts(stack)
    with stack.valkey.client() as client:
        for counter in COUNTED:
            rows = sql(stack.primary, f"SELECT DISTINCT {', '.join(counter.fields)} FROM message")
            found += judge_counter(counter, rows, client, served[counter.name]["count"])[1]
    return found


DAMAGES = [
    ("DELETE FROM message WHERE message LIKE 'load/testrun1/0/1 %'", "1 acknowledged rows are missing from the table"),
    ("DELETE FROM message WHERE message LIKE 'load/testrun1/1/7 %'", "1 acknowledged rows are missing from the table"),
    ("UPDATE message SET city = 'Else' WHERE message LIKE 'load/testrun1/0/2 %'", "1 rows are not what was sent"),
    (
        """INSERT INTO message (state, city, username, message)
           SELECT state, city, username, message FROM message WHERE message LIKE 'load/testrun1/1/_ %'""",
        "10 rows are stored twice",
    ),
    (
        """INSERT INTO message (state, city, username, message)
           SELECT state, city, username, 'load/testrun1/9/0 ' FROM message WHERE message LIKE 'load/testrun1/0/0 %'""",
        "1 rows are stored that were never sent",
    ),
    (
        "UPDATE message SET id = id + 1000000 WHERE message LIKE 'load/testrun1/0/0 %'",
        "1 rows have another id than was answered",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES, ids=[sentence for _, sentence in DAMAGES])
def test_what_is_wrong_with_a_row_is_said(live: Stack, loaded: Path, damage: str, sentence: str) -> None:
    assert messages(live, loaded) == []
    try:
        sql(live.primary, damage)
        assert any(line.startswith(sentence) for line in messages(live, loaded)), messages(live, loaded)
    finally:
        sql(live.primary, "DELETE FROM message WHERE message LIKE 'load/testrun1/%'")


def test_a_request_of_unknown_outcome_that_is_stored_in_part_is_said(live: Stack, loaded: Path) -> None:
    assert ask(live.ingest, "POST", "/v1/messages", row_of(RUN, 1, 22))[0] == 201
    try:
        assert messages(live, loaded) == ["1 requests are stored in part: load/testrun1/1/20"]
    finally:
        sql(live.primary, "DELETE FROM message WHERE message LIKE 'load/testrun1/%'")


def test_a_member_that_is_taken_out_or_put_in_is_said(live: Stack, loaded: Path) -> None:
    assert ask(live.manage, "POST", "/v1/runs", {"mode": "repair"})[0] == 202
    wait_for(lambda: not ask(live.manage, "GET", "/v1/status")[1]["open_runs"], "the run")
    wait_until_settled(live)
    assert counters(live) == []
    users, name = keys.of_counter("users").members, row_of(RUN, 0, 0)["username"]
    live.keeper.stop()  # it would mend what is done here, in milliseconds
    with live.valkey.client() as client:
        try:
            assert client.srem(users, name) == 1
            missing, served = counters(live)
            assert (
                missing == f"1 members of users are missing from the set: {name}"
                and "users: no count is served, the table has" in served
            )
            assert client.sadd(users, "nobody", name) == 2
            assert counters(live)[0] == "1 members of users have no row: nobody"
        finally:
            # As many as there were, and the same: the counter is live again.
            client.sadd(users, name)
            client.srem(users, "nobody")
            live.keeper.start()
            sql(live.primary, "DELETE FROM message WHERE message LIKE 'load/testrun1/%'")
