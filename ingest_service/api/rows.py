"""POST /v1/<collection> and /v1/<collection>/batch: from the request to rows, and from the result to the answer."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from gzip import GzipFile
from io import BytesIO
from typing import TypeVar
from urllib.parse import parse_qs

import msgspec
from django.conf import settings

from ingest_service import metrics
from ingest_service.api import payloads
from ingest_service.api.payloads import JSON, NDJSON, Body
from ingest_service.api.problems import (
    BAD_GZIP,
    EMPTY_BODY,
    INVALID_ROWS,
    UNKNOWN_COLLECTION,
    UNSUPPORTED_ENCODING,
    UNSUPPORTED_TYPE,
)
from ingest_service.catalog import Collection, read_collections
from ingest_service.writing import idempotency, recording
from ingest_service.writing.group_commit import Committer
from ingest_service.writing.idempotency import RequestClaim
from ingest_service.writing.recording import Recorded
from shared_models.web.asgi import Answer, Request, answer
from shared_models.web.bodies import SMALL_BYTES, Bodies, parse_content_type, too_large
from shared_models.web.parameters import not_understood
from shared_models.web.problems import Problem

T = TypeVar("T")


class Rows:
    """The two operations. Single rows go to the worker's committer; batches wait for one of a few threads."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies
        self.pool = ThreadPoolExecutor(settings.BATCH_THREADS, thread_name_prefix="batch")
        self.committer = Committer(self.pool)

    async def post_row(self, request: Request, collection: Collection) -> Answer:
        """One row -> 201 {"id": 17, "counted": true}."""
        check_content_type(request, (JSON,))
        packed = is_packed(request)
        body = await self.bodies.read(request, settings.MAX_BODY_BYTES)
        if packed or len(body) > SMALL_BYTES:  # may be slow, if a client makes it so
            row, claim = await self._in_thread(partial(read_row, request, collection, body, packed))
        else:
            row, claim = read_row(request, collection, body, packed)
        return stored(201, collection, await self.committer.record(collection, row, claim))

    async def post_batch(self, request: Request, collection: Collection) -> Answer:
        """Many rows -> 200 {"accepted": 998, "rejected": 2, "errors": […], "counted": true}."""
        content_type = check_content_type(request, (*NDJSON, JSON))
        strict, packed = is_strict(request), is_packed(request)
        body = await self.bodies.read(request, settings.MAX_BATCH_BYTES)
        return await self._in_thread(partial(record_batch, request, collection, body, packed, content_type, strict))

    def close(self) -> None:
        """All requests are answered."""
        self.committer.close()
        self.pool.shutdown()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        # With its context, so that log lines there name the request.
        return await asyncio.get_running_loop().run_in_executor(self.pool, copy_context().run, call)


def find_collection(name: str) -> Collection:
    """The collection in the path. Raises Problem 404."""
    collections = read_collections()
    if name not in collections:
        raise Problem(UNKNOWN_COLLECTION, f"there are: {', '.join(sorted(collections))}")
    return collections[name]


def check_content_type(request: Request, accepted: tuple[str, ...]) -> str:
    """The media type of the body. Raises Problem 415, which names the accepted ones."""
    content_type, charset = parse_content_type(request.headers.get(b"content-type", b""))
    if content_type not in accepted or charset not in ("", "utf-8", "utf8"):
        raise Problem(
            UNSUPPORTED_TYPE,
            f"send Content-Type: {' or '.join(accepted)}, in UTF-8",
            accepted=accepted,
        )
    return content_type


def is_strict(request: Request) -> bool:
    """?strict=1: all rows or none. Raises Problem 400 for a value that is neither 0 nor 1: ignoring it could store
    half a batch."""
    (value,) = parse_qs(request.query, keep_blank_values=True).get("strict", ["0"])
    if value not in ("0", "1"):
        raise not_understood("strict is 0 or 1")
    return value == "1"


def is_packed(request: Request) -> bool:
    """Whether the body is gzip. Raises Problem 415."""
    encoding = request.headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"identity", b"gzip"):
        raise Problem(
            UNSUPPORTED_ENCODING,
            "send the body uncompressed, or with Content-Encoding: gzip",
            headers={"Accept-Encoding": "gzip"},
        )
    return encoding == b"gzip"


def read_row(
    request: Request, collection: Collection, body: Body, packed: bool
) -> tuple[msgspec.Struct, RequestClaim | None]:
    """The row, and the claim of its Idempotency-Key."""
    body = unpack(body, packed, settings.MAX_BODY_BYTES)
    return payloads.read_row(collection, body), claim_of(request, JSON, body)


def record_batch(
    request: Request, collection: Collection, body: Body, packed: bool, content_type: str, strict: bool
) -> Answer:
    """All steps of a batch, from the body to the answer. Runs in a thread."""
    body = unpack(body, packed, settings.MAX_BATCH_BYTES)
    claim = claim_of(request, content_type, body)
    batch = payloads.read_batch(collection, body, content_type, settings.MAX_BATCH_ROWS)
    if batch.errors:
        metrics.REJECTED_ROWS.labels(collection.name).inc(len(batch.errors))
    if strict and batch.errors:
        raise Problem(
            INVALID_ROWS,
            f"{len(batch.errors)} of {len(batch.errors) + len(batch.rows)} rows are not valid; nothing was stored, "
            "because the request says strict=1",
            errors=batch.errors,
        )
    summary = {"accepted": len(batch.rows), "rejected": len(batch.errors), "errors": batch.errors}
    return stored(200, collection, recording.record_batch(collection, batch.rows, summary, claim))


def unpack(body: Body, packed: bool, limit_bytes: int) -> Body:
    """The body, unpacked. It never unpacks more than the limit, however large the body would become. Raises Problem
    400, 413."""
    if packed and body:
        try:
            body = GzipFile(fileobj=BytesIO(body)).read(limit_bytes + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise Problem(BAD_GZIP, f"the body cannot be unpacked: {error}; nothing was stored") from error
        if len(body) > limit_bytes:
            raise too_large(limit_bytes)
    if payloads.is_blank(body):
        raise Problem(EMPTY_BODY, "send at least one row")
    return body


def claim_of(request: Request, content_type: str, body: Body) -> RequestClaim | None:
    """Everything that the Idempotency-Key stands for: the method, the path, the type of the body, and the body.

    It uses the unpacked body: gzip writes the time into its header, and never makes the same bytes twice.
    """
    key = request.headers.get(b"idempotency-key")
    if key is None:
        return None
    address = f"{request.path}?{request.query}" if request.query else request.path
    return idempotency.read_claim(request.owner, key.decode("latin-1"), "POST", address, content_type, body)


def stored(status: int, collection: Collection, recorded: Recorded) -> Answer:
    """The answer to a request that was carried out, now or before."""
    more = None
    if recorded.replayed:
        metrics.REPLAYS.labels(collection.name).inc()
        more = {"Idempotent-Replay": "true"}
    return answer(status, msgspec.json.encode({**recorded.answer, "counted": recorded.counted}), more=more)
