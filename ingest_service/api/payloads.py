"""From bytes to rows, or to errors that say where, which field, what is wrong, and what is allowed.

msgspec decodes and checks a row in one step, against the struct that `catalog` derives from the model. A row that it
accepts is valid (except U+0000, which JSON can hold and Postgres cannot). `explain` looks again only at a row that it
refuses: slowly, to describe the error. If an object has a key twice, the last one counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from typing import TypeAlias

import msgspec

from ingest_service.catalog import TEXT_FIELDS, Collection, range_of
from shared_models.models import Field

JSON = "application/json"
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")

BOM = b"\xef\xbb\xbf"
WHITESPACE = re.compile(rb"[ \t\n\r]*")
# The bytes of a character in UTF-8 after its first.
LATER_BYTES = bytes(range(0x80, 0xC0))
# The only spelling of U+0000 in JSON. Bytes without it need no second check.
ESCAPED_NUL = b"\\u0000"

# A batch is decoded in blocks of about this size: some thousand rows. One call that decodes all of it would hold the
# interpreter lock meanwhile, and so block the event loop, although it runs in a thread.
BLOCK_BYTES = 1 << 18
# Every valid row is smaller than this. A larger one is not decoded, for the same reason.
ROW_BYTES = 1 << 20

# One row may have many errors; nobody reads more than these.
ERRORS_OF_A_ROW = 10
# How much of an unknown field's name an error repeats.
NAME_CHARACTERS = 64


# As it was received: in one piece, or joined from several.
Body: TypeAlias = bytes | bytearray


class NotJSON(ValueError):
    """The text is not JSON; the message says where."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """An error of one field of a row; the field is "" for an error of the whole row."""

    field: str
    detail: str


@dataclass(frozen=True, slots=True)
class RowError:
    """An error of one row of a batch. Lines, and elements of an array, are counted from 1."""

    line: int
    detail: str


@dataclass(slots=True)
class Batch:
    """The valid rows, in order, and the errors of the others."""

    rows: list[msgspec.Struct] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)


class InvalidRow(Exception):
    """The body is not a row of this collection; the errors say why."""

    def __init__(self, collection: Collection, errors: list[FieldError]) -> None:
        super().__init__("; ".join(error.detail for error in errors))
        self.collection, self.errors = collection, errors


class TooManyRows(Exception):
    """The batch has more rows than one request may have."""

    def __init__(self, limit_rows: int) -> None:
        super().__init__(f"the limit is {limit_rows} rows in one request")
        self.limit_rows = limit_rows


def read_row(collection: Collection, body: Body) -> msgspec.Struct:
    """The body as one row. Raises NotJSON or InvalidRow."""
    body = body[len(BOM) :] if body.startswith(BOM) else body
    try:
        return decode(collection, body)
    except (ValueError, RecursionError):
        pass
    raise InvalidRow(collection, explain(collection, body))


def read_batch(collection: Collection, body: Body, content_type: str, limit_rows: int) -> Batch:
    """The rows of a body, NDJSON or a JSON array. Raises NotJSON or TooManyRows."""
    body = body[len(BOM) :] if body.startswith(BOM) else body
    if content_type in NDJSON:
        return read_lines(collection, body, limit_rows)
    rows = None if ESCAPED_NUL in body else decode_array(collection, body, limit_rows)
    return read_rows(collection, enumerate(elements(body), 1), limit_rows) if rows is None else Batch(rows)


def read_lines(collection: Collection, body: Body, limit_rows: int) -> Batch:
    """The rows of NDJSON, a block of lines at a time: an invalid row slows down only its own block."""
    batch, start, number = Batch(), 0, 1
    while start < len(body):
        end = body.find(b"\n", start + BLOCK_BYTES) + 1 or len(body)
        block = body[start:end]
        ends = block.count(b"\n")
        lines = ends + (not block.endswith(b"\n"))
        rows = decode_lines(collection, block, lines) if len(block) <= BLOCK_BYTES + ROW_BYTES else None
        if rows is None:
            read_rows(collection, enumerate(BytesIO(block), number), limit_rows, batch)
        else:
            batch.rows += rows
            if len(batch.rows) + len(batch.errors) > limit_rows:
                raise TooManyRows(limit_rows)
        start, number = end, number + ends
    return batch


def decode_array(collection: Collection, body: Body, limit_rows: int) -> list[msgspec.Struct] | None:
    """The rows of an array whose every element is a valid row; None for any other array, which has to be decoded row by
    row.

    A block ends between `}` and `,`. If all blocks, each in brackets of its own, are arrays with elements, the whole
    is the array of all these elements. If such a place was in the middle of a text, its block is not an array.
    """
    rows: list[msgspec.Struct] = []
    at = body.find(b"[", 0, BLOCK_BYTES) + 1
    if not at or body[: at - 1].strip(b" \t\n\r"):
        return None
    while True:
        is_last = len(body) - at <= BLOCK_BYTES
        end = len(body) if is_last else body.rfind(b"},", at, at + BLOCK_BYTES) + 1
        try:
            found = collection.array_decoder.decode(b"[" + body[at:end] + (b"" if is_last else b"]")) if end else None
        except (ValueError, RecursionError):
            return None
        if not found:
            return found if is_last and not rows else None  # [] is an array, and [{…},] is not
        rows += found
        if len(rows) > limit_rows:
            raise TooManyRows(limit_rows)
        if is_last:
            return rows
        at = end + 1


def decode_lines(collection: Collection, block: Body, lines: int) -> list[msgspec.Struct] | None:
    """The rows of a block whose every line is a valid row; None for any other block, which has to be decoded line by
    line.

    msgspec decodes them in one call, in half the time. But it accepts rows over several lines, and several rows in one
    line. This accepts neither, as if the lines were decoded one by one:

    - Every line's end, except the block's, is between `}` and `{`. No value of a row holds an object, and no text holds a
      line's end. So it is between two rows, and every line holds whole rows, at least one.
    - There are as many rows as lines.
    """
    # A search for one character first: it takes no time.
    if (b"\\" in block and ESCAPED_NUL in block) or block.count(b"}\n{") != lines - 1:
        return None
    try:
        rows = collection.decoder.decode_lines(block)
    except (ValueError, RecursionError):
        return None
    return rows if len(rows) == lines else None


def read_rows(
    collection: Collection, numbered: Iterable[tuple[int, Body]], limit_rows: int, batch: Batch | None = None
) -> Batch:
    """Add the rows of JSON texts, each with its number, to the batch. Blank texts are skipped."""
    batch = batch or Batch()
    for number, text in numbered:
        if is_blank(text):
            continue
        try:
            batch.rows.append(decode(collection, text))
        except (ValueError, RecursionError):
            batch.errors.append(RowError(number, describe(collection, text)))
        if len(batch.rows) + len(batch.errors) > limit_rows:
            raise TooManyRows(limit_rows)
    return batch


def is_blank(text: Body) -> bool:
    """Whether it has only white space."""
    return all(text[at : at + BLOCK_BYTES].isspace() for at in range(0, len(text), BLOCK_BYTES))


def decode(collection: Collection, text: Body) -> msgspec.Struct:
    """One row. Raises ValueError (msgspec's, or UnicodeDecodeError) or RecursionError, with messages that are not for producers."""
    if len(text) > ROW_BYTES:
        raise ValueError("too large")
    row = collection.decoder.decode(text)
    if ESCAPED_NUL in text and any("\0" in value for value in msgspec.structs.astuple(row) if isinstance(value, str)):
        raise ValueError("U+0000")
    return row


def elements(body: Body) -> Iterator[Body]:
    """The texts of the elements of a JSON array, one at a time. Raises NotJSON if the array is not JSON.

    The structure of JSON is ASCII. So this reads the array as Latin-1, a character for each byte. Bytes that are not
    UTF-8 pass unchanged, and are refused later with their element. It reads the array through a window as large
    as a row may be, which moves when an element does not end in it.
    """
    at = skip_blanks(body, 0)
    if body[at : at + 1] != b"[":
        raise NotJSON(f"a batch is a JSON array of rows, or has a row on each line and Content-Type: {NDJSON[0]}")
    at = skip_blanks(body, at + 1)
    if body[at : at + 1] == b"]":
        return
    number = start = 0
    window = ""
    while True:
        number += 1
        end = end_of_value(window, at - start, start + len(window) < len(body))
        if end is None:
            start, window = at, body[at : at + ROW_BYTES].decode("latin-1")
            try:
                end = SCANNER.raw_decode(window)[1]
            except json.JSONDecodeError as error:
                raise NotJSON(
                    f"element {number}, at character {character_at(body, at + error.pos)}: {error.msg}"
                    + (f" (or it is larger than {ROW_BYTES} bytes)" if at + ROW_BYTES < len(body) else "")
                ) from error
            except RecursionError as error:
                raise NotJSON(f"element {number} is nested too deeply") from error
        yield body[at : start + end]
        at = skip_blanks(body, start + end)
        after = body[at : at + 1]
        if after not in (b",", b"]"):
            raise NotJSON(f"after element {number}, at character {character_at(body, at)}: expected a comma or ]")
        at = skip_blanks(body, at + 1)
        if after == b"]":
            if at < len(body):
                raise NotJSON(f"after the array, at character {character_at(body, at)}: expected nothing more")
            return


def end_of_value(window: str, at: int, goes_on: bool) -> int | None:
    """The end of the JSON value that begins here; None if it does not end within the window, or is not JSON."""
    if at >= len(window):
        return None
    try:
        end = SCANNER.raw_decode(window, at)[1]
    except (json.JSONDecodeError, RecursionError):
        return None
    return None if goes_on and end == len(window) else end  # a number may go on


def skip_blanks(body: Body, at: int) -> int:
    """The index of the next byte that is not white space in JSON."""
    while True:
        most = at + BLOCK_BYTES
        found = WHITESPACE.match(body, at, most)
        at = found.end() if found else at
        if at < most:
            return at


def character_at(body: Body, at: int) -> int:
    """The number of the character that begins at this byte, counted from 1."""
    starts = range(0, at, BLOCK_BYTES)
    return 1 + sum(len(body[i : min(i + BLOCK_BYTES, at)].translate(None, delete=LATER_BYTES)) for i in starts)


def describe(collection: Collection, text: Body) -> str:
    """The errors of a row, in one line."""
    try:
        return "; ".join(error.detail for error in explain(collection, text))
    except NotJSON as error:
        return f"this is not JSON: {error}"


def explain(collection: Collection, text: Body) -> list[FieldError]:
    """The errors of a row that `decode` refuses, field by field. Raises NotJSON."""
    if len(text) > ROW_BYTES:
        return [FieldError("", f"a row has at most {ROW_BYTES} bytes, not {len(text)}")]
    value = parse(text)
    if not isinstance(value, dict):
        return [FieldError("", f"a row is a JSON object, not {kind_of(value)}")]
    fields = {field.name: field for field in collection.model.sent_fields()}
    errors = [
        FieldError(name, f"{name} {wrong}")
        for name, field in fields.items()
        if (wrong := fault(field, value[name]) if name in value else "is missing")
    ]
    unknown = (name for name in value if name not in fields)
    errors += [
        FieldError(printable(name), f"there is no field {printable(name)}; the fields are {', '.join(fields)}")
        for name in islice(unknown, ERRORS_OF_A_ROW)
    ]
    return errors or [FieldError("", refusal(collection, text))]


def parse(text: Body) -> object:
    """Any JSON value. Raises NotJSON. It accepts a little more than JSON; the check of types refuses that."""
    try:
        return SCANNER.decode(text.decode())
    except UnicodeDecodeError as error:
        raise NotJSON(f"byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise NotJSON(where(error)) from error
    except RecursionError as error:
        raise NotJSON("it is nested too deeply") from error


def fault(field: Field, value: object) -> str | None:
    """The error of a field's value, as the end of a sentence that begins with its name."""
    if isinstance(field, TEXT_FIELDS):
        return fault_of_text(value, 0 if field.blank else 1, field.max_length)
    low, high = range_of(field)
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be a whole number, not {kind_of(value)}"
    return None if low <= value <= high else f"must be a number from {low} to {high}"


def fault_of_text(value: object, least: int, most: int | None) -> str | None:
    """The same for a text, whose length is in characters."""
    if not isinstance(value, str):
        return f"must be a string, not {kind_of(value)}"
    if len(value) < least:
        return "must not be empty"
    if most is not None and len(value) > most:
        return f"has {len(value)} characters; the limit is {most}"
    if "\0" in value:
        return "holds the character U+0000 (NUL), which Postgres cannot store"
    for character in value:
        if "\ud800" <= character <= "\udfff":
            return f"holds half of a surrogate pair (U+{ord(character):04X}), which is not a character"
    return None


def refusal(collection: Collection, text: Body) -> str:
    """Why `decode` refuses a row whose last values are all valid: it has a key twice, and the earlier value is not valid."""
    try:
        decode(collection, text)
    except (ValueError, RecursionError) as error:
        return f"the row is not valid, maybe because it has a field twice: {error}"
    return "the row is not valid"


def kind_of(value: object) -> str:
    """JSON's name for the type of a value: "a string"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def printable(name: str) -> str:
    """A name from a producer, safe to repeat: not too long, and without broken characters."""
    if len(name) > NAME_CHARACTERS:
        name = name[:NAME_CHARACTERS] + "…"
    return name.encode("utf-8", "backslashreplace").decode()


def where(error: json.JSONDecodeError) -> str:
    """Python's own message, which is good, with the place."""
    return f"at character {error.pos + 1}: {error.msg}"


def whole_number(digits: str) -> int:
    """A number of any length. One with more digits than this is out of every range, and slow to parse."""
    return int(digits[:40])


SCANNER = json.JSONDecoder(parse_int=whole_number)
