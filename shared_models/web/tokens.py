"""Bearer tokens, which clients need to use a service. `python -m shared_models.web.tokens NAME` makes one.

A service knows only the name and the SHA-256 of a token: a line `name:hex` for each, in TOKENS or in the file
TOKENS_FILE. A token is 256 random bits: nobody can guess one, so a fast hash is enough to make a stolen
configuration useless.

To rotate without downtime, add the new token next to the old one, under the same name, move the clients, then remove
the old one. The name keeps everything that belongs to it: the log lines, the rate limit, the
Idempotency-Keys. A TOKENS_FILE is read again when it changes, without a restart.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import structlog

from shared_models.web.problems import UNAUTHORIZED, Problem

log = structlog.get_logger()

LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63}):([0-9a-f]{64})")
# So that people and scanners recognise a token in the wrong place (a log, a repository).
PREFIX = "rollcall_"
# While a token is rotated.
MOST_OF_A_NAME = 2
# The shortest time between two checks of the file. A removed token is refused after this time at the latest.
LOOK_SECONDS = 1.0

# What needs no token: health, the description of the API, static files.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json", "/docs"})
OPEN_FOLDER = "/static/"
METRICS_PATH = "/metrics"


def parse(text: str) -> dict[bytes, str]:
    """The name of each token, by its SHA-256. Entries are separated by commas or line ends; # begins a comment.

    For example {sha256: "till-7"}. Raises ValueError, which names the entry by its number: its text may be a token.
    """
    found: dict[bytes, str] = {}
    lines = (line.partition("#")[0] for line in text.splitlines())  # a comment may have commas
    entries = [entry.strip() for line in lines for entry in line.split(",")]
    for number, entry in enumerate(filter(None, entries), 1):
        match = LINE.fullmatch(entry)
        if match is None:
            raise ValueError(
                f"TOKENS: entry {number} is not name:sha256, as `python -m shared_models.web.tokens` makes it"
            )
        name, digest = match.groups()
        if list(found.values()).count(name) == MOST_OF_A_NAME:
            raise ValueError(
                f"TOKENS: more than {MOST_OF_A_NAME} tokens are named {name}; keep an old and a new one at most"
            )
        if bytes.fromhex(digest) in found:
            raise ValueError(f"TOKENS: entry {number} is there twice")
        found[bytes.fromhex(digest)] = name
    return found


class Tokens:
    """The tokens that a service accepts: their `names`, by their SHA-256."""

    def __init__(self, text: str, path: str | None = None) -> None:
        self._names = parse(text)
        self._path = Path(path) if path else None
        self._seen = self._stamp()
        self._look_at = time.monotonic() + LOOK_SECONDS

    @property
    def names(self) -> dict[bytes, str]:
        """The names, as the file has them now."""
        if self._path is not None:
            self._read_again(self._path)
        return self._names

    def find(self, authorization: bytes) -> str | None:
        """The name of the token that this Authorization header carries; None if it carries none of ours."""
        # The time of the lookup depends on the digest, and reveals nothing about the token.
        return self.names.get(self.digest_of(authorization))

    @staticmethod
    @lru_cache(maxsize=1024)  # clients send the same header again and again
    def digest_of(authorization: bytes) -> bytes:
        """The SHA-256 of the token that this Authorization header carries; b"" if it carries none."""
        scheme, _, token = authorization.strip().partition(b" ")
        return hashlib.sha256(token.strip()).digest() if scheme.lower() == b"bearer" else b""

    def _read_again(self, path: Path) -> None:
        """Use a changed file. One that cannot be read or parsed changes nothing, and is logged."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            names = parse(path.read_text())
            if not names:
                raise ValueError("TOKENS: the file names no token")
        except (OSError, ValueError) as error:
            log.error("tokens.not_read", reason=str(error))
            return
        self._names = names
        log.info("tokens.read", names=sorted(set(names.values())))

    def _stamp(self) -> tuple[int, int, int] | None:
        """Something that changes when the file does, also if another file replaces it within a clock tick."""
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def open_tokens(auth: str, text: str, path: str | None) -> Tokens | None:
    """The tokens by the variables AUTH, TOKENS and TOKENS_FILE; None if there are none. Raises ValueError."""
    if auth not in ("", "off"):
        raise ValueError(f'AUTH: {auth!r} is not understood; it is "off", or not set')
    if not text.strip():
        return None
    if auth == "off":
        raise ValueError("AUTH=off and TOKENS contradict each other: unset one of them")
    return Tokens(text, path)


def refusal_to_start(auth: str, tokens: Tokens | None) -> str | None:
    """Why a service that must not be open by accident does not start; None if it may start."""
    if tokens is None and auth != "off":
        return "it has no TOKENS: make one with `python -m shared_models.web.tokens NAME`, or set AUTH=off"
    return None


def needs_token(path: str, *, metrics_public: bool, also_open: frozenset[str] = frozenset()) -> bool:
    """Whether a request to this path needs a token; also if nothing is there, so that strangers do not learn
    that.

    `also_open` are a service's own pages that show nothing by themselves.
    """
    if path in OPEN_PATHS or path in also_open or path.startswith(OPEN_FOLDER):
        return False
    return path != METRICS_PATH or not metrics_public


def unauthorized(*, presented: bool) -> Problem:
    """RFC 6750: the answer tells a request without credentials only the scheme, and one with a bad token that it is bad."""
    challenge = 'Bearer realm="rollcall"' + (', error="invalid_token"' if presented else "")
    detail = "this token is not valid here" if presented else "a token is needed"
    return Problem(
        UNAUTHORIZED,
        f"{detail}; send the header Authorization: Bearer TOKEN",
        headers={"WWW-Authenticate": challenge, "Cache-Control": "no-store"},
    )


def main(arguments: Iterable[str]) -> int:
    """Make a token: print it, and the line by which a service knows it."""
    match list(arguments):
        case [name] if LINE.fullmatch(f"{name}:{'0' * 64}"):
            token, line = make(name)
            print(f"token   {token}\nTOKENS  {line}")
            return 0
    print("usage: python -m shared_models.web.tokens NAME   (letters, digits, . _ -)", file=sys.stderr)
    return 2


def make(name: str) -> tuple[str, str]:
    """A new token, and its line for TOKENS."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, f"{name}:{hashlib.sha256(token.encode()).hexdigest()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
