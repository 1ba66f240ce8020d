"""The encoding of a member: one field as itself, several as a compact JSON array in UTF-8, `["NY","Ithaca"]`.

Injective: two different tuples of values never give the same bytes. Numbers are written as decimal text. So a
service without types (query) writes the same member as one with types. If a single byte of the result of `encode`
changes, that is a new layout: raise `keys.LAYOUT`. Then every counter is cold, and the keeper builds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

Value: TypeAlias = str | int
# The values of a counter's fields, in the declared order: ("NY", "Ithaca"). A counter of one field: ("ann",).
Values: TypeAlias = tuple[Value, ...]

_array = msgspec.json.Encoder()
_texts = msgspec.json.Decoder(list[str])


def encode(values: Sequence[Value]) -> bytes:
    """The member for these values, in the order of the counter's fields: ("NY", "Ithaca") gives b'["NY","Ithaca"]'."""
    if len(values) == 1:
        return str(values[0]).encode()
    return _array.encode([str(value) for value in values])


def encode_all(rows: Iterable[Values], fields: int) -> list[bytes]:
    """`encode` for many, with one check of the number of fields. The write path and the keeper spend their time here."""
    if fields == 1:
        return [str(value).encode() for (value,) in rows]
    array = _array.encode
    return [array([str(value) for value in row]) for row in rows]


def decode(member: bytes, fields: int) -> tuple[str, ...] | None:
    """The values of this member, as texts; None if `encode` never writes it like this.

    A hand-made entry (`SADD … junk`) gives None: no row can have it.
    """
    try:
        if fields == 1:
            return (member.decode(),)
        values = tuple(_texts.decode(member))
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None
    # Only the canonical form is a member. `["a", "b"]` with a space is junk; `["a","b"]` is the member.
    return values if len(values) == fields and encode(values) == member else None
