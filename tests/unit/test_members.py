"""Members: injective, and the same bytes everywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared_models.protocol.members import decode, encode, encode_all

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.one_of(texts, st.integers(-(2**63), 2**63 - 1))


def rows(fields: int) -> st.SearchStrategy[tuple[str | int, ...]]:
    return st.tuples(*[values] * fields)


any_row = st.integers(1, 4).flatmap(rows)


@given(any_row)
@example(("",))
@example(("\x00",))
@example(('["a","b"]',))
@example(('a","b', "c"))
@example(("", ""))
@example((-1, "-1"))
def test_decoding_gives_back_the_values_as_texts(row: tuple[str | int, ...]) -> None:
    assert decode(encode(row), len(row)) == tuple(map(str, row))


@given(st.integers(1, 4).flatmap(lambda fields: st.tuples(rows(fields), rows(fields))))
@example((("a", 'b","c'), ('a","b', "c")))
@example((("ab", ""), ("a", "b")))
@example((("é",), ("e\u0301",)))
def test_two_rows_are_one_member_only_if_their_values_are_equal(
    pair: tuple[tuple[str | int, ...], tuple[str | int, ...]],
) -> None:
    one, other = pair
    same = tuple(map(str, one)) == tuple(map(str, other))
    assert (encode(one) == encode(other)) is same


@given(st.integers(1, 3).flatmap(lambda fields: st.tuples(st.just(fields), st.lists(rows(fields), max_size=20))))
def test_many_are_encoded_like_each(given_rows: tuple[int, list[tuple[str | int, ...]]]) -> None:
    fields, many = given_rows
    assert encode_all(many, fields) == [encode(row) for row in many]


@given(any_row)
def test_a_number_and_its_text_are_one_member(row: tuple[str | int, ...]) -> None:
    assert encode(row) == encode([str(value) for value in row])


@given(st.integers(2, 4).flatmap(rows))
def test_several_fields_are_a_compact_json_array_of_texts(row: tuple[str | int, ...]) -> None:
    member = encode(row)
    assert json.loads(member) == [str(value) for value in row]
    assert b'", "' not in encode(["a", "b"])


@given(st.binary(), st.integers(1, 3))
@example(b'["a", "b"]', 2)
@example(b'["a","\\u0062"]', 2)
@example(b'["a","b"]', 3)
@example(b'["a",1]', 2)
@example(b'{"a":"b"}', 2)
@example(b'["a","b"]x', 2)
@example(b'["\\ud800","b"]', 2)
@example(b"[" * 10_000, 2)
@example(b"\xff", 1)
def test_what_decodes_is_what_would_be_written_and_everything_else_is_none(junk: bytes, fields: int) -> None:
    decoded = decode(junk, fields)
    if decoded is None:
        return
    assert len(decoded) == fields
    assert encode(decoded) == junk


@pytest.mark.parametrize(
    ("junk", "fields"),
    [
        (b"\xff", 1),
        (b"junk", 2),
        (b"", 2),
        (b'["a"]', 2),
        (b'["a","b","c"]', 2),
        (b'["a", "b"]', 2),
        (b'["a",1]', 2),
        (b'["a",null]', 2),
        (b'["a","\\u0062"]', 2),
        (b'["\\ud800","b"]', 2),
        (b"null", 2),
    ],
)
def test_junk_decodes_to_none(junk: bytes, fields: int) -> None:
    assert decode(junk, fields) is None


def test_what_a_person_reads_in_redis() -> None:
    assert encode(["ann"]) == b"ann"
    assert encode(["NY", "New York"]) == b'["NY","New York"]'
    assert encode(["São Paulo", "東京"]) == '["São Paulo","東京"]'.encode()
