"""From what a client asks to the members that it means, or the problem that names what is wrong."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from query_service import refusals
from shared_models.declarations import Counter
from shared_models.protocol import members


class Members(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a question about many."""

    members: list[dict[str, str | int]]


_body = msgspec.json.Decoder(Members)


def read_query(counter: Counter, query_string: str) -> bytes:
    """The member that `?field=value&…` names: each field of the counter once, and no other."""
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError:
        raise refusals.wrong_member("a value is not UTF-8") from None
    except ValueError:
        raise refusals.wrong_member("there are more than 100 parameters") from None
    for name, times in Tally(name for name, _ in pairs).items():
        if times > 1:
            raise refusals.wrong_member(f"{name!r} is given {times} times", field=name)
    values = dict(pairs)
    check_fields(counter, values)
    return members.encode([values[name] for name in counter.fields])


def read_body(counter: Counter, body: bytes, limit: int) -> list[bytes]:
    """The members that `{"members": [{field: value, …}, …]}` names, in their order."""
    try:
        asked = _body.decode(body).members
    # RecursionError: brackets nested thousands deep.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusals.unreadable_body(
            f'send {{"members": [{{"{counter.fields[0]}": "…"}}, …]}} as JSON: {error}'
        ) from None
    if len(asked) > limit:
        raise refusals.too_many_members(limit)
    for index, values in enumerate(asked):
        check_fields(counter, values, index=index)
    return members.encode_all([tuple(values[name] for name in counter.fields) for values in asked], len(counter.fields))


def check_fields(counter: Counter, names: Iterable[str], **where: Any) -> None:
    """Raises the problem that names the first field that is missing, or that the counter does not have."""
    has = f"a member of {counter.name!r} has: {', '.join(counter.fields)}"
    given = set(names)
    for name in counter.fields:
        if name not in given:
            raise refusals.wrong_member(f"{name!r} is missing; {has}", field=name, **where)
    for name in sorted(given.difference(counter.fields)):
        raise refusals.wrong_member(f"{name!r} is not a field; {has}", field=name, **where)
