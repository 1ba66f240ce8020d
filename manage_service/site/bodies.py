"""The JSON body of a request as a struct, and query parameters; or a problem that names the errors."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from django.http import HttpRequest
from msgspec.inspect import EnumType, Metadata, type_info

from manage_service.site.problems import Fault, invalid
from shared_models.web.problems import BAD_REQUEST, Problem

T = TypeVar("T", bound=msgspec.Struct)

# Nobody reads more, and each costs time: a body of 60,000 unknown fields took seconds, and its answer had megabytes.
MOST_FAULTS = 10
# How much of an unknown field's name an error shows.
SHOWN_CHARACTERS = 100

# How msgspec says where in a document something is wrong: "Expected `str`, got `int` - at `$.counters[0]`".
PLACE = re.compile(r" - at `\$\.?(.*)`\Z", re.DOTALL)
UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)


def decode(body: bytes, struct: type[T]) -> T:
    """The body. Raises Problem: 400 if it is not JSON, 422 if it is not valid."""
    if not body:
        raise invalid(Fault("body", "Field required"))
    try:
        return msgspec.json.decode(body, type=struct)
    except msgspec.ValidationError:
        raise invalid(*find_faults(body, struct)) from None
    except ValueError as error:
        raise not_json(error) from None


def find_faults(body: bytes, struct: type[msgspec.Struct]) -> list[Fault]:
    """The first MOST_FAULTS errors. msgspec stops at the first error, so this checks each field alone.

    No field may be required.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        return [Fault("body", str(error))]
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None
    faults: list[Fault] = []
    for name, value in fields.items():
        if len(faults) == MOST_FAULTS:
            break
        try:
            msgspec.json.decode(b"{%b:%b}" % (msgspec.json.encode(name), bytes(value)), type=struct)
        except ValueError as error:
            faults.append(explain(error, struct))
    return faults


def explain(error: ValueError, struct: type[msgspec.Struct]) -> Fault:
    """The field, and its allowed values."""
    said = str(error)
    if unknown := UNKNOWN.match(said):
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(struct))
        name = unknown[1] if len(unknown[1]) <= SHOWN_CHARACTERS else f"{unknown[1][:SHOWN_CHARACTERS]}…"
        return Fault(name, f"there is no such field; the fields are: {known}")
    place = PLACE.search(said)
    name = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", place[1]) if place else "body"
    return Fault(name, PLACE.sub("", said) + allowed(name, struct))


def allowed(name: str, struct: type[msgspec.Struct]) -> str:
    """The allowed values of a field with an enumeration: "; it may be: repair, check"."""
    for field in msgspec.structs.fields(struct):
        kind = type_info(field.type)
        kind = kind.type if isinstance(kind, Metadata) else kind
        if field.encode_name == name and isinstance(kind, EnumType):
            return f"; it may be: {', '.join(value.value for value in kind.cls)}"
    return ""


def read_integer(request: HttpRequest, name: str, default: int, *, least: int, most: int) -> int:
    """A query parameter that is a number. Raises Problem 422."""
    text = request.GET.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise invalid(Fault(name, f"Input should be a whole number from {least} to {most}"))
    return int(text)


def not_json(error: Exception) -> Problem:
    """The body is not JSON."""
    return Problem(BAD_REQUEST, f"the body cannot be read as JSON: {error}")
