"""The shortest way to a standing answer: from gunicorn's parser to the socket.

gunicorn makes a task, a scope and a dozen checks of each request; they take several times as long as the answer. A plain
question needs none of them. Every other goes the long way, to `asgi.Application`, which would give the same answer: what
this module does not know is not its business. It is used where there is no door to pass: no tokens, no other origins.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from gunicorn.asgi import protocol  # type: ignore[import-untyped]

from query_service import metrics
from query_service.answers import Answer
from query_service.board import Board
from shared_models.web.hosts import is_allowed
from shared_models.web.request_log import id_of

VERSION = (1, 1)
# A question with one of these is not plain: it asks for a read of its own, or has a body.
NOT_PLAIN = frozenset((b"cache-control", b"content-length", b"transfer-encoding", b"expect"))


class Shortcut:
    """The standing answers of one board, as bytes on the wire."""

    def __init__(self, board: Board) -> None:
        self.board = board
        # The heads of the answers that were given last, by path and status; each with the answer that it is of.
        self._heads: dict[tuple[str, int], tuple[Answer, bytes]] = {}

    def find(self, request: Any) -> bytes | None:
        """The whole answer to this request of gunicorn's, or None where it has to go the long way."""
        answer = self.board.answers.get(request.path)
        if answer is None or request.method != "GET" or request.version != VERSION or request.query:
            return None
        begun = perf_counter()
        host = if_none_match = request_id = b""
        for name, value in request.headers_bytes:
            if name == b"host":
                host = value
            elif name == b"if-none-match":
                if_none_match = value
            elif name == b"x-request-id":
                request_id = value
            elif name in NOT_PLAIN:
                return None
        if not is_allowed(host):
            return None
        self.board.ask()
        status, headers, body = answer.pick(if_none_match, is_head=False)
        known = self._heads.get((request.path, status))
        if known is None or known[0] is not answer:
            known = self._heads[request.path, status] = answer, render_head(status, headers)
        echoed = b"x-request-id: %b\r\n" % id_of(request_id.decode("latin-1")).encode() if request_id else b""
        server, date = protocol._CACHED_SERVER_HEADER, protocol._get_cached_date_header()
        whole = b"".join((known[1], echoed, server, date, b"\r\n", body))
        metrics.note_standing_answer(answer.route, status, begun)
        return whole


def render_head(status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The part of a head that stays the same, as gunicorn writes it."""
    lines = (b"%b: %b\r\n" % header for header in headers)
    return b"".join((protocol._get_cached_status_line(VERSION, status), *lines))
