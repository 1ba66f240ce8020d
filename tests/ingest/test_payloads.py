"""From bytes to rows or named errors: every rule, with the words that a producer reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

from ingest_service.api import payloads
from ingest_service.api.payloads import RowError
from ingest_service.api.problems import problem_of
from ingest_service.catalog import read_collections
from shared_models.web.problems import Problem
from tests.ingest.producing import message, ndjson

NDJSON = "application/x-ndjson"
JSON = "application/json"


@contextmanager
def answered() -> Iterator[None]:
    """Errors as producers read them."""
    try:
        yield
    except Exception as error:
        problem = problem_of(error)
        assert problem is not None, error
        raise problem from error


def read_row(body: bytes) -> tuple[str, ...]:
    with answered():
        return msgspec.structs.astuple(payloads.read_row(read_collections()["messages"], body))


def read_batch(body: bytes, content_type: str = NDJSON, limit_rows: int = 100) -> payloads.Batch:
    with answered():
        return payloads.read_batch(read_collections()["messages"], body, content_type, limit_rows)


def raw(state: str = '"NY"', more: str = "") -> bytes:
    """A message whose state, and what follows it, is written as given."""
    return f'{{"state": {state}, "city": "Ithaca", "username": "ann", "message": ""{more}}}'.encode()


@pytest.mark.parametrize(
    ("state", "stored"),
    [
        ('"N"', "N"),
        ('" "', " "),
        ('"' + "x" * 64 + '"', "x" * 64),
        ('"' + "😀" * 64 + '"', "😀" * 64),
        ('"' + "\\ud83d\\ude00" * 64 + '"', "😀" * 64),
        ('"\\t\\n\\r\\\\\\"\\/\\b"', '\t\n\r\\"/\b'),
        ('"\\\\u0000"', "\\u0000"),
        ('"\x7f\u2028\ufeff"', "\x7f\u2028\ufeff"),
        ('"e\u0301"', "e\u0301"),  # not composed to é: values are stored as sent
    ],
)
def test_a_valid_value_is_taken_as_sent(state: str, stored: str) -> None:
    assert read_row(raw(state))[0] == stored


FAULTS = [
    ('""', "state must not be empty"),
    ('"' + "x" * 65 + '"', "state has 65 characters; the limit is 64"),
    ('"' + "😀" * 65 + '"', "state has 65 characters; the limit is 64"),
    ("1", "state must be a string, not a number"),
    ("1e999", "state must be a string, not a number"),
    ("9" * 5000, "state must be a string, not a number"),
    ("true", "state must be a string, not a boolean"),
    ("null", "state must be a string, not null"),
    ("[]", "state must be a string, not an array"),
    ("{}", "state must be a string, not an object"),
    ('"a\\u0000b"', "state holds the character U+0000 (NUL), which Postgres cannot store"),
    ('"a\\ud800b"', "state holds half of a surrogate pair (U+D800), which is not a character"),
    ('"\\ude00\\ud83d"', "state holds half of a surrogate pair (U+DE00), which is not a character"),
]


@pytest.mark.parametrize(("state", "detail"), FAULTS)
def test_a_fault_is_named_by_field_and_limit(state: str, detail: str) -> None:
    with pytest.raises(Problem) as caught:
        read_row(raw(state))
    assert (caught.value.status, caught.value.slug) == (422, "invalid-row")
    assert caught.value.members["errors"] == [payloads.FieldError("state", detail)]


@pytest.mark.parametrize(("state", "detail"), FAULTS)
@pytest.mark.parametrize("content_type", [JSON, NDJSON])
def test_a_batch_names_the_same_fault_with_its_line(state: str, detail: str, content_type: str) -> None:
    texts = [raw(), raw(state), raw()]
    body = b"[" + b",\n".join(texts) + b"]" if content_type == JSON else b"\n".join(texts)
    batch = read_batch(body, content_type)
    assert len(batch.rows) == 2
    assert batch.errors == [RowError(2, detail)]


def test_every_fault_of_a_row_is_named() -> None:
    with pytest.raises(Problem) as caught:
        read_row(b'{"state": "", "city": 7, "message": "x", "colour": "red", "a\\u0000\\ud800": 1}')
    errors: Any = caught.value.members["errors"]
    assert [(error.field, error.detail) for error in errors] == [
        ("state", "state must not be empty"),
        ("city", "city must be a string, not a number"),
        ("username", "username is missing"),
        ("colour", "there is no field colour; the fields are state, city, username, message"),
        ("a\0\\ud800", "there is no field a\0\\ud800; the fields are state, city, username, message"),
    ]
    assert json.loads(caught.value.body())["errors"][4]["field"] == "a\0\\ud800"


def test_a_long_message_may_be_sent_and_an_endless_one_may_not() -> None:
    assert read_row(json.dumps(message(message="m" * 65_536)).encode())[3] == "m" * 65_536
    with pytest.raises(Problem, match=r"message has 65537 characters; the limit is 65536"):
        read_row(json.dumps(message(message="m" * 65_537)).encode())


def test_many_unknown_fields_with_long_names_make_a_short_answer() -> None:
    with pytest.raises(Problem) as caught:
        read_row(json.dumps(message() | {f"{n:0200}": 1 for n in range(1000)}).encode())
    assert len(caught.value.body()) < 10_000


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"{", "at character 2: Expecting property name enclosed in double quotes"),
        (raw()[:-1], "Expecting"),
        (raw() + b"{}", "Extra data"),
        (b"{'state': 1}", "Expecting property name"),
        (raw('"a\tb"'), "Invalid control character"),
        (raw('"a\0b"'), "Invalid control character"),
        (raw().replace(b"Ithaca", b"Ith\xffca"), "is not UTF-8"),
        (raw().replace(b"Ithaca", b"\xed\xa0\x80"), "is not UTF-8"),
        (json.dumps(message()).encode("utf-16"), "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (raw("[" * 100_000), "nested too deeply"),
    ],
)
def test_what_is_not_json_is_a_400(body: bytes, detail: str) -> None:
    with pytest.raises(Problem, match=detail) as caught:
        read_row(body)
    assert (caught.value.status, caught.value.slug) == (400, "malformed-json")
    batch = read_batch(ndjson(message()) + body.replace(b"\n", b"") + b"\n" + ndjson(message()))
    assert [error.line for error in batch.errors] == [2]
    assert len(batch.rows) == 2


@pytest.mark.parametrize(("body", "kind"), [(b"[]", "an array"), (b"7", "a number"), (b'"x"', "a string")])
def test_a_row_is_an_object(body: bytes, kind: str) -> None:
    with pytest.raises(Problem, match=f"a row is a JSON object, not {kind}") as caught:
        read_row(body)
    assert caught.value.status == 422


def test_of_a_key_that_stands_twice_the_last_value_counts_in_good_company_and_in_bad() -> None:
    twice = raw('"NY", "state": "CA"')
    assert read_row(twice)[0] == "CA"
    assert [astuple(row)[0] for row in read_batch(twice + b"\nbad\n").rows] == ["CA"]
    assert [astuple(row)[0] for row in read_batch(b"[" + twice + b", 7]", JSON).rows] == ["CA"]


def test_an_earlier_value_of_a_key_has_to_be_valid_too() -> None:
    with pytest.raises(Problem, match="it has a field twice"):
        read_row(raw('7, "state": "CA"'))


def test_one_byte_order_mark_is_skipped() -> None:
    bom = b"\xef\xbb\xbf"
    assert read_row(bom + raw())[0] == "NY"
    assert len(read_batch(bom + raw()).rows) == 1
    assert len(read_batch(bom + b"[" + raw() + b"]", JSON).rows) == 1
    assert [error.line for error in read_batch(raw() + b"\n" + bom + raw()).errors] == [2]


def test_blank_lines_are_no_rows_but_count_as_lines() -> None:
    batch = read_batch(b"\n \t\n" + raw() + b"\r\n\r\nbad\r\n" + raw())
    assert len(batch.rows) == 2
    assert [error.line for error in batch.errors] == [5]


def test_a_line_is_a_row_and_a_row_is_a_line() -> None:
    assert [error.line for error in read_batch(raw() + raw() + b"\n" + raw()).errors] == [1]
    spread = json.dumps(message(), indent=1).encode()
    assert len(read_batch(spread).errors) == spread.count(b"\n") + 1


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"{}", "a batch is a JSON array of rows, or has a row on each line"),
        (raw() + b"\n" + raw(), "a batch is a JSON array"),
        (b"[" + raw(), "after element 1, at character 69: expected a comma or ]"),
        (b"[" + raw() + b",]", "element 2, at character 70"),
        (b"[,]", "element 1, at character 2"),
        (b"[" + raw() + raw() + b"]", "after element 1"),
        (b"[" + raw() + b"] x", "after the array, at character 71"),
        (b"[[" + b"[" * 100_000, "element 1 is nested too deeply"),
    ],
)
def test_a_broken_array_is_a_400_that_says_where(body: bytes, detail: str) -> None:
    with pytest.raises(Problem) as caught:
        read_batch(body, JSON)
    assert caught.value.status == 400
    assert detail in caught.value.detail


def test_an_array_may_be_empty_and_white_space_may_be_anywhere() -> None:
    assert read_batch(b"[ ]", JSON).rows == []
    batch = read_batch(b" [\n" + raw() + b" ,\t7\r\n] \n", JSON)
    assert len(batch.rows) == 1
    assert batch.errors == [RowError(2, "a row is a JSON object, not a number")]


def test_bytes_that_are_not_utf8_spoil_only_their_element() -> None:
    batch = read_batch(b"[" + raw() + b"," + raw().replace(b"Ithaca", b"\xff") + b"]", JSON)
    assert len(batch.rows) == 1
    assert batch.errors == [RowError(2, "this is not JSON: byte 26 is not UTF-8")]


@pytest.mark.parametrize("bad", [b"", b"7"])
def test_too_many_rows_are_refused_by_number(bad: bytes) -> None:
    rows = [raw()] * 10 + [bad] * bool(bad)
    assert len(read_batch(b"\n".join([raw()] * 10), limit_rows=10).rows) == 10
    assert len(read_batch(b"[" + b",".join([raw()] * 10) + b"]", JSON, limit_rows=10).rows) == 10
    for body, content_type in (
        (b"\n".join([*rows, raw()]), NDJSON),
        (b"[" + b",".join([*rows, raw()]) + b"]", JSON),
    ):
        with pytest.raises(Problem, match="the limit is 10 rows") as caught:
            read_batch(body, content_type, limit_rows=10)
        assert caught.value.status == 413


def test_a_body_of_very_many_tiny_elements_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(Problem, match="the limit is 100 rows"):
        read_batch(b"[" + b"0," * 5_000_000 + b"0]", JSON)


def test_an_array_of_blanks_is_no_more_work_than_its_elements() -> None:
    """60 MB of them fit into 58 kB of gzip. What is counted are lines of Python, which are run with the GIL held."""
    lines = 0

    def count(frame: object, event: str, argument: object) -> Any:
        nonlocal lines
        lines += 1
        return count

    body = b"[" + b" \n\t\r" * 50_000 + raw() + b" " * 50_000 + b", 7" + b" " * 50_000 + b"] "
    sys.settrace(count)
    try:
        batch = read_batch(body, JSON)
    finally:
        sys.settrace(None)
    assert (len(batch.rows), [error.line for error in batch.errors]) == (1, [2])
    assert lines < 2_000


def test_the_place_in_a_broken_array_is_told_in_characters() -> None:
    body = b"[" + raw().replace(b"Ithaca", "Ithäca 🌇".encode()) + b", 1] x"
    with pytest.raises(Problem, match=f"after the array, at character {len(body.decode())}: expected nothing more"):
        read_batch(body, JSON)


# What a line may have in it, and tricks that try to join lines.
PIECES = st.sampled_from(
    [
        *(json.dumps(message(name)) for name in ("ann", "", "a\0b", "a\ud800")),
        json.dumps(message("b\n]"))[:-1],
        '{"state":"NY"',
        '"city":"x","username":"y","message":"z"}',
        '"state":',
        *("[", "]", "],[", "],\n[", "{", "}", ",", '"', "\n", "\r\n", " ", "\t", "\x0b", "", "null", "1", '"a\nb"'),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=8))
@example(
    [
        json.dumps(message("ann")) + json.dumps(message("bob")),
        "\n",
        '{"state":"NY"',
        "\n",
        json.dumps(message("cat"))[1:],
    ]
)
@example([json.dumps(message("ann"))[:-1], "}\n{", json.dumps(message("bob"))[1:], "\n"])
@example([json.dumps(message("ann"))[:-1], "\n", "}", "\n", json.dumps(message("bob")) + json.dumps(message("cat"))])
@example(['{"state":"NY"', "\n", '"city":"x","username":"y","message":"z"}'])
def test_lines_decoded_at_once_are_those_that_are_valid_one_by_one(pieces: list[str]) -> None:
    body = "".join(pieces).encode("utf-8", "surrogatepass")
    collection = read_collections()["messages"]
    one_by_one = payloads.read_rows(collection, enumerate(BytesIO(body), 1), 100)
    assert payloads.read_lines(collection, body, 100) == one_by_one
    at_once = payloads.decode_lines(collection, body, body.count(b"\n") + (not body.endswith(b"\n")))
    assert at_once is None or (at_once == one_by_one.rows and not one_by_one.errors)


def test_lines_of_many_blocks_keep_their_order_and_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "BLOCK_BYTES", 100)
    rows = [message(f"user{n}") if n % 7 else message("") for n in range(50)]
    body = b"\n".join(json.dumps(row).encode() for row in rows)
    found = payloads.read_batch(read_collections()["messages"], body, NDJSON, 100)
    assert [astuple(row)[2] for row in found.rows] == [f"user{n}" for n in range(50) if n % 7]
    assert [error.line for error in found.errors] == [n + 1 for n in range(50) if not n % 7]
    with pytest.raises(payloads.TooManyRows):
        payloads.read_batch(read_collections()["messages"], body, NDJSON, 49)


def outcome(body: bytes) -> object:
    """What becomes of an array: its rows and errors, or the kind of the refusal."""
    try:
        return payloads.read_batch(read_collections()["messages"], body, JSON, 100)
    except (payloads.NotJSON, payloads.TooManyRows) as error:
        return type(error)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.one_of(PIECES, st.sampled_from([json.dumps(message()) + ",", json.dumps(message("x},{y"))])), max_size=8
    )
)
@example([json.dumps(message()) + ",", json.dumps(message()) + ",", "]"])
@example([json.dumps(message()), "],[", json.dumps(message())])
def test_an_array_is_the_same_in_blocks_and_through_small_windows(pieces: list[str]) -> None:
    body = ("[" + "".join(pieces) + "]").encode("utf-8", "surrogatepass")
    at_once = outcome(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payloads, "BLOCK_BYTES", 90)
        assert outcome(body) == at_once
        patch.setattr(payloads, "ROW_BYTES", len(json.dumps(message("x},{y"))) + 40)
        assert outcome(body) in (at_once, payloads.NotJSON)


@pytest.mark.parametrize("content_type", [NDJSON, JSON])
def test_a_row_larger_than_any_valid_one_is_refused_without_being_decoded(
    monkeypatch: pytest.MonkeyPatch, content_type: str
) -> None:
    monkeypatch.setattr(payloads, "ROW_BYTES", 200)
    large = raw(more=', "x": "' + "x" * 200 + '"')
    if content_type == NDJSON:
        batch = read_batch(b"\n".join([raw(), large, b" " * 300, raw()]))
        assert (len(batch.rows), [error.line for error in batch.errors]) == (2, [2])
        assert "a row has at most 200 bytes" in batch.errors[0].detail
    else:
        with pytest.raises(Problem, match=r"element 2, at character .*or it is larger than 200 bytes"):
            read_batch(b"[" + raw() + b"," + large + b"," + raw() + b"]", JSON)
