"""Files to load, as rows: NDJSON or CSV, gzip or not, read in constant memory whatever their size."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from django.db import models

from ingest_service.api import payloads
from ingest_service.catalog import Collection

# No valid row is longer. A file without line ends is not NDJSON.
LINE_BYTES = 8 << 20

WHOLE_NUMBER = re.compile(r"-?\d{1,40}")

# A row as JSON text, valid or not, with the number of its line: (3, b'{"city": "Ithaca"}').
Texts = Iterator[tuple[int, bytes]]


class Unreadable(Exception):
    """This file cannot be loaded; the message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """An open file. `position`: how many of its bytes were read."""

    name: str
    total_bytes: int | None
    texts: Texts
    position: Callable[[], int]


@contextmanager
def open_source(path: str, collection: Collection) -> Iterator[Source]:
    """Open FILE.ndjson, FILE.csv, either with .gz behind, or - for NDJSON from standard input. Raises Unreadable."""
    if path == "-":
        yield Source("-", None, ndjson_texts(sys.stdin.buffer), lambda: 0)
        return
    file = Path(path)
    packed = file.suffix == ".gz"
    kind = (file.with_suffix("") if packed else file).suffix
    if kind not in (".ndjson", ".jsonl", ".csv"):
        raise Unreadable(f"{file.name}: the name of a file to load ends in .ndjson, .jsonl or .csv, and maybe .gz")
    try:
        raw = file.open("rb")
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from error
    with raw:
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw
        # Bytes of a CSV that are not UTF-8 pass unchanged, and are refused later with their row.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        with text:
            texts = csv_texts(text, collection) if kind == ".csv" else ndjson_texts(stream)
            yield Source(str(file.resolve()), file.stat().st_size, texts, raw.tell)


def ndjson_texts(stream: IO[bytes]) -> Texts:
    """Each line."""
    number = 0
    with _readable():
        while line := stream.readline(LINE_BYTES + 1):
            number += 1
            if len(line) > LINE_BYTES:
                raise Unreadable(f"line {number} is longer than {LINE_BYTES} bytes: this is not NDJSON")
            yield number, line.removeprefix(payloads.BOM) if number == 1 else line


def csv_texts(stream: IO[str], collection: Collection) -> Texts:
    """Each row, with the number of the line that it ends on. The header names the fields, in any order."""
    fields = {field.name: field for field in collection.model.sent_fields()}
    numbers = [name for name, field in fields.items() if isinstance(field, models.IntegerField)]
    csv.field_size_limit(LINE_BYTES)
    reader = csv.DictReader(stream, restkey="(more values than the header has names)", strict=True)
    with _readable():
        header = reader.fieldnames or []
        if sorted(header) != sorted(fields):
            raise Unreadable(
                f"the first line names {', '.join(header) or 'nothing'}; it has to name {', '.join(fields)}, in any order"
            )
        for row in reader:
            values: dict[str, str | int] = {name: value for name, value in row.items() if value is not None}
            for name in numbers:
                if WHOLE_NUMBER.fullmatch(text := row.get(name) or ""):
                    values[name] = int(text)
            yield reader.line_num, json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape")


@contextmanager
def _readable() -> Iterator[None]:
    """Turns errors of a file (not of a row) into Unreadable."""
    try:
        yield
    except csv.Error as error:
        raise Unreadable(f"this is not CSV: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"the file cannot be read to its end: {error}") from error
