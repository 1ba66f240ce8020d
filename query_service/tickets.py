"""Tickets: how a client that cannot send headers (a browser's EventSource) opens a stream if query wants tokens.

A client that has a token asks for a ticket, and puts it into the URL of the stream: `/v1/stream?ticket=…`. Servers on
the way may log URLs. So a ticket opens streams only, and for a minute only. A cookie would not work: most
dashboards have another origin, and browsers do not send cookies there.

A ticket is signed with the hash of the token that asked for it. All workers and instances know this hash, nothing is
stored, and a ticket becomes invalid with its token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time

from shared_models.web.tokens import Tokens

# For opening a stream; an open one stays open.
TICKET_SECONDS = 60
TICKET = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})~(\d{1,12})~([0-9a-f]{64})")


def make(tokens: Tokens, authorization: bytes, now: float | None = None) -> tuple[str, int]:
    """A ticket for the token of this Authorization header, and when it ends (seconds since 1970). Raises KeyError."""
    ends = int(time.time() if now is None else now) + TICKET_SECONDS
    digest = tokens.digest_of(authorization)
    name = tokens.names[digest]
    return f"{name}~{ends}~{sign(digest, name, ends)}", ends


def owner(tokens: Tokens, ticket: str, now: float | None = None) -> str | None:
    """The name of the token that the ticket was made for; None if it is not ours, or has ended."""
    match = TICKET.fullmatch(ticket)
    if match is None or int(match[2]) < (time.time() if now is None else now):
        return None
    name, ends, signature = match[1], int(match[2]), match[3]
    signed = [sign(digest, name, ends) for digest, known in tokens.names.items() if known == name]
    return name if any(hmac.compare_digest(each, signature) for each in signed) else None


def sign(digest: bytes, name: str, ends: int) -> str:
    """The signature; the key is the token's hash."""
    return hmac.new(digest, f"stream:{name}:{ends}".encode(), hashlib.sha256).hexdigest()
