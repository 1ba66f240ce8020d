"""Loading files: every row, once, in pieces, after an interruption; and the generator's messages."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from ingest_service.api.payloads import RowError
from ingest_service.catalog import read_collections
from ingest_service.loading import generator, loader, sources
from ingest_service.loading.loader import LoadStopped
from ingest_service.writing import recording
from ingest_service.writing.recording import record_batch
from tests.ingest.producing import Producer, message, ndjson

CITIES = [("NY", "New York"), ("CA", "Los Angeles"), ("NY", "Ithaca")]


def rows(count: int) -> list[dict[str, str]]:
    return list(generator.messages(count, users=50, cities=CITIES))


def as_csv(*rows: dict[str, str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["username", "city", "message", "state"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def stored(producer: Producer) -> list[dict[str, str]]:
    return [dict(zip(("state", "city", "username", "message"), row, strict=True)) for row in producer.rows()]


def load(path: Path, *options: str) -> str:
    """The command; what it prints."""
    out = io.StringIO()
    call_command("load", str(path), *options, stdout=out, stderr=out)
    return out.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["ndjson", "csv"])
def test_a_file_is_stored_and_counted(producer: Producer, tmp_path: Path, kind: str, packed: bool) -> None:
    sent = [*rows(250), message("a,\"b\"\n'c'", message="two\r\nlines, é😀")]
    body = ndjson(*sent) if kind == "ndjson" else as_csv(*sent)
    path = tmp_path / f"messages.{kind}{'.gz' * packed}"
    path.write_bytes(gzip.compress(body) if packed else body)
    assert "251 rows stored, 0 rejected, 0 skipped; 0 of them" in load(path, "--batch-rows", "100")
    assert stored(producer) == sent
    assert producer.members("users") == {row["username"].encode() for row in sent}


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_taken(producer: Producer, tmp_path: Path) -> None:
    for name, body in (("a.csv", as_csv(message())), ("a.ndjson", ndjson(message()).replace(b"\n", b"\r\n"))):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + body)
        assert "1 rows stored" in load(tmp_path / name)


def test_bad_rows_are_shown_with_their_lines_and_the_others_stored(producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "messages.csv"
    lines = [
        b"state,city,username,message",
        b"NY,Ithaca,ann,hi",
        b"NY,Ithaca,,hi",
        b"",
        b"NY,Ithaca,bob",
        b"NY,I,c,d,e",
    ]
    path.write_bytes(b"\n".join([*lines, b"NY,\xff,dan,hi", b"NY,Ithaca,eve,hi"]))
    out = io.StringIO()
    with pytest.raises(CommandError, match="4 rows are not valid"):
        call_command("load", str(path), stdout=out, stderr=out)
    assert producer.usernames() == ["ann", "eve"]
    assert out.getvalue().splitlines()[:4] == [
        "line 3: username must not be empty",
        "line 5: message is missing",
        "line 6: there is no field (more values than the header has names); "
        "the fields are state, city, username, message",
        "line 7: this is not JSON: byte 26 is not UTF-8",
    ]


def test_many_errors_are_counted_but_not_all_shown(producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "messages.ndjson"
    path.write_bytes(b"bad\n" * 100)
    out = io.StringIO()
    with pytest.raises(CommandError, match="100 rows are not valid"):
        call_command("load", str(path), stdout=out, stderr=out)
    assert len(out.getvalue().splitlines()) == 22


def test_strict_stops_at_the_first_bad_row(producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "messages.ndjson"
    path.write_bytes(ndjson(*rows(10), message(""), *rows(10)))
    with pytest.raises(CommandError, match="stopped at line 11"):
        load(path, "--strict", "--batch-rows", "5")
    assert len(producer.rows()) == 10
    path.write_bytes(ndjson(*rows(10), message("ann"), *rows(10)))
    assert "11 rows stored, 0 rejected, 10 skipped" in load(path, "--strict", "--resume")
    assert len(producer.rows()) == 21


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.txt", b"", "ends in .ndjson, .jsonl or .csv"),
        ("a.csv", b"", "the first line names nothing"),
        ("a.csv", b"state,city,user\n", "it has to name state, city, username, message"),
        ("a.csv", as_csv(message()) + b'"open', "this is not CSV"),
        ("a.ndjson.gz", b"{}", "cannot be read to its end"),
        ("a.ndjson.gz", gzip.compress(ndjson(message()))[:-4], "cannot be read to its end"),
        ("a.ndjson", b" " * (sources.LINE_BYTES + 1), "line 1 is longer than"),
    ],
)
def test_a_file_that_is_none_is_named(producer: Producer, tmp_path: Path, name: str, body: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(CommandError, match=said):
        load(tmp_path / name)


def test_a_file_that_is_not_there_is_named(producer: Producer, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize("crash", ["before", "after"])
@pytest.mark.parametrize("kind", ["ndjson", "csv"])
def test_an_interrupted_load_goes_on_without_storing_twice_whatever_the_size_of_its_batches(
    producer: Producer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, crash: str
) -> None:
    sent = rows(100)
    path = tmp_path / f"messages.{kind}"
    path.write_bytes(ndjson(*sent) if kind == "ndjson" else as_csv(*sent))
    calls = 0

    def interrupted(*args: Any, **kwargs: Any) -> recording.Recorded:
        nonlocal calls
        calls += 1
        if calls == 4 and crash == "before":
            raise KeyboardInterrupt
        recorded = record_batch(*args, **kwargs)
        if calls == 4:
            raise KeyboardInterrupt
        return recorded

    with monkeypatch.context() as patch:
        patch.setattr(loader, "record_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(path, "--batch-rows", "10")
    done = 30 if crash == "before" else 40
    assert len(producer.rows()) == done
    assert f"{100 - done} rows stored, 0 rejected, {done} skipped" in load(path, "--resume", "--batch-rows", "7")
    assert stored(producer) == sent
    assert "0 rows stored, 0 rejected, 100 skipped" in load(path, "--resume")
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    assert "1 rows stored, 0 rejected, 100 skipped" in load(path, "--resume")
    assert stored(producer) == [*sent, sent[-1]]


def test_a_load_without_resume_begins_anew(producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "messages.ndjson"
    path.write_bytes(ndjson(*rows(10)))
    for _ in range(2):
        assert "10 rows stored, 0 rejected, 0 skipped" in load(path)
    assert "0 rows stored, 0 rejected, 10 skipped" in load(path, "--resume")
    assert len(producer.rows()) == 20


def test_another_file_of_the_same_name_is_not_taken_for_the_rest(producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "messages.ndjson"
    path.write_bytes(ndjson(*rows(10)))
    load(path)
    for other in (ndjson(*rows(9), message("ann"), message("bob")), ndjson(*rows(9))):
        path.write_bytes(other)
        with pytest.raises(CommandError, match="does not begin with the 10 rows that were loaded from it"):
            load(path, "--resume")
    assert len(producer.rows()) == 10


def test_two_loads_of_one_file_at_once_do_not_store_it_twice(producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "messages.ndjson"
    path.write_bytes(ndjson(*rows(30)))
    collection = read_collections()["messages"]

    def load_another(progress: loader.Progress) -> None:
        if progress.stored == 10:
            load(path)

    errors: list[RowError] = []
    with sources.open_source(str(path), collection) as source, pytest.raises(LoadStopped, match="another process"):
        loader.load(
            collection, source, 10, resume=False, strict=False, on_error=errors.append, on_progress=load_another
        )
    assert len(producer.rows()) == 40


def test_batches_end_by_rows_or_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BATCH_BYTES", 10)

    def texts() -> Iterator[tuple[int, bytes]]:
        yield from enumerate([b"x" * size for size in (1, 1, 1, 20, 5, 5, 1)], 1)

    assert [[len(text) for _, text in batch] for batch in loader.batches(texts(), 2)] == [[1, 1], [1, 20], [5, 5], [1]]


def test_load_reads_standard_input_and_ends_with_1_where_a_row_is_bad(producer: Producer) -> None:
    for body, status in ((ndjson(*rows(3)), 0), (ndjson(*rows(2)) + b"bad\n", 1)):
        ended = subprocess.run(
            [sys.executable, "-m", "ingest_service", "load", "-"], input=body, capture_output=True, check=False
        )
        assert ended.returncode == status, ended.stderr
    assert len(producer.rows()) == 5


def test_a_large_file_does_not_fill_the_memory(producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "messages.ndjson"
    with path.open("wb") as file:
        line = ndjson(message(message="m" * 60_000))
        file.writelines(line for _ in range(1_500))
    # Not getrusage: what it says of a program begins with the memory of whoever has started it.
    script = (
        "import re, sys; from pathlib import Path; from django.core.management import execute_from_command_line as run;"
        "run(['x', 'load', sys.argv[1]]);"
        "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) // 1024)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 80 << 20
    assert int(ended.stdout.split()[-1]) < 250


def test_the_generator_gives_the_same_messages_again_and_others_for_another_seed() -> None:
    first = list(generator.messages(3_000, users=500))
    assert first == list(generator.messages(3_000, users=500))
    assert first[:1_000] == list(islice(generator.messages(5_000, users=500), 1_000))
    assert first != list(generator.messages(3_000, users=500, seed=2))


def test_a_few_users_write_much_and_the_cities_are_real() -> None:
    made = list(generator.messages(20_000, users=1_000))
    by_user: dict[str, int] = {}
    for row in made:
        by_user[row["username"]] = by_user.get(row["username"], 0) + 1
    counts = sorted(by_user.values(), reverse=True)
    assert counts[0] > 1_500
    assert 600 < len(counts) <= 1_000
    places = {(row["state"], row["city"]) for row in made}
    assert ("NY", "New York City") in places
    assert len(places) > 2_000


def test_write_messages_writes_what_the_generator_makes(producer: Producer) -> None:
    out = io.StringIO()
    call_command("write_messages", "--number", "1500", "--users", "30", "--seed", "7", stdout=out)
    assert "1,500 messages written" in out.getvalue()
    assert stored(producer) == list(generator.messages(1500, users=30, seed=7))
    assert producer.members("users") == {row["username"].encode() for row in stored(producer)}


def test_write_messages_keeps_to_its_rate(producer: Producer) -> None:
    out = io.StringIO()
    call_command("write_messages", "--number", "100", "--rate", "500", stdout=out)
    seconds = float(out.getvalue().split(" in ")[1].split(" s ")[0])
    assert 0.15 <= seconds < 2
    assert len(producer.rows()) == 100


def test_write_messages_clears_only_when_told_to(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    producer.send(message("ann"))
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(CommandError, match="nothing was deleted"):
        call_command("write_messages", "--clear", "--number", "1", stdout=io.StringIO())
    assert producer.usernames() == ["ann"]
    monkeypatch.setattr("ingest_service.management.commands.write_messages.CLEAR_ROWS", 3)
    producer.send_batch(*[json.loads(line) for line in ndjson(*rows(10)).splitlines()])
    call_command("write_messages", "--clear", "--yes", "--number", "2", stdout=io.StringIO())
    assert len(producer.rows()) == 2
