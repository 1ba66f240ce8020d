"""How elements are written: each storage's, injective, and nothing else is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_models.declarations import Counter, parse
from shared_models.protocol.elements import day_of, decode, encode_all, split

LINES = """
    [tables.t]
    name = "t"
    fields = {a = "text", b = "text", n = "integer", at = "timestamptz"}
    [counters.one]
    table = "t"
    member = ["a"]
    by = ["b", ["b", "n"], "day(at)"]
    last_seen = "at"
    [counters.two]
    table = "t"
    member = ["a", "b"]
    by = ["b", "a", ["n", "a"]]
"""
COUNTERS = [each for total in parse(LINES)[1] for each in (total, *total.groupings)]
# What Postgres stores: no U+0000, no surrogates.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
VALUES = {"text": TEXTS, "integer": st.integers(-(2**31), 2**31 - 1), "date": st.dates().map(str)}


def rows_of(counter: Counter) -> st.SearchStrategy[tuple[str | int, ...]]:
    return st.tuples(*(VALUES[each.type] for each in counter.terms))


@pytest.mark.parametrize("counter", COUNTERS, ids=lambda counter: counter.name)
@given(data=st.data())
def test_what_was_encoded_is_decoded(counter: Counter, data: st.DataObject) -> None:
    rows = data.draw(st.lists(rows_of(counter), max_size=4))
    found = encode_all(counter, rows)
    assert [decode(counter, element) for element in found] == [tuple(map(str, row)) for row in rows]
    assert len(set(found)) == len({tuple(map(str, row)) for row in rows})


@pytest.mark.parametrize("counter", COUNTERS, ids=lambda counter: counter.name)
@given(junk=st.one_of(st.binary(max_size=30), TEXTS.map(str.encode)))
def test_what_is_decoded_would_be_written_like_this(counter: Counter, junk: bytes) -> None:
    values = decode(counter, junk)
    if values is not None and b"\0" not in junk.partition(b"\0")[2]:
        assert encode_all(counter, [values]) == [junk]


def test_a_member_that_is_a_group_too_stands_there_once_and_has_to_be_the_same() -> None:
    by_b = next(each for each in COUNTERS if each.name == "two:b")
    assert encode_all(by_b, [("B", "A")]) == [b'B\0["A","B"]']
    assert decode(by_b, b'B\0["A","B"]') == ("B", "A")
    assert decode(by_b, b'C\0["A","B"]') is None


@pytest.mark.parametrize(
    "text, day",
    [
        ("2026-11-27", "2026-11-27"),
        ("infinity", "9999-12-31"),
        ("12345-06-07", "9999-12-31"),
        ("-infinity", "0001-01-01"),
        ("0044-03-15 BC", "0001-01-01"),
    ],
)
def test_days_have_ten_characters_in_the_order_of_time(text: str, day: str) -> None:
    assert day_of(text) == day


def test_the_head_of_an_element_is_its_group_or_its_day() -> None:
    assert split(b"NY\0ann") == (b"NY", b"ann")
    assert split(b"\0") == (b"", b"")
