"""Idempotency keys: a retry of a request stores nothing twice and gets the first answer.

The receipt is a row in the primary, written in the transaction that stores the request's rows: whatever dies, there are both
or neither. A second request with the same key waits in `take` until the first one's transaction has ended.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from ingest_service.writing.transactions import NotStored, Transaction
from shared_models.web.problems import Problem

KEY = re.compile(r"[\x20-\x7e]{1,255}")

# Receipts removed by one statement: a few milliseconds.
PRUNE_ROWS = 5_000


# A group of requests waits for no longer than this for a key that another transaction is about to use.
GROUP_LOCK_MILLISECONDS = 20


class KeyReused(Problem):
    """This Idempotency-Key has been used for another request."""

    def __init__(self) -> None:
        super().__init__(
            422,
            "idempotency-key-reused",
            "The Idempotency-Key belongs to another request",
            "this Idempotency-Key has been used with another body, path or header; nothing was stored: send a new key "
            "with a new request, and the same request with an old key",
        )


class Ticket(Protocol):
    """What keeps rows from being stored twice: a receipt that is written in their transaction."""

    def take(self, transaction: Transaction) -> bool:
        """Whether this is the first time. Waits while another transaction is about to take the same one."""
        ...

    def keep(self, transaction: Transaction, answer: Mapping[str, Any]) -> None:
        """Note what is answered, now that it is known."""
        ...

    def read_answer(self, transaction: Transaction) -> dict[str, Any]:
        """What was answered the first time."""
        ...


# No name of a token, and no key of a client, holds this character.
BETWEEN = "\x02"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request claims to be: whose it is, its key, and the fingerprint of all that it asks for.

    A key belongs to the token that sent it: two producers may use the same one, and know nothing of each other.
    """

    owner: str  # name of the token; "" where nobody is asked for one
    key: str
    fingerprint: str

    @property
    def id(self) -> str:
        """Of the receipt. Without an owner it is the bare key, as all receipts had it before keys had owners."""
        return f"{self.owner}{BETWEEN}{self.key}" if self.owner else self.key

    def take(self, transaction: Transaction) -> bool:
        return bool(insert_new(transaction, [self]))

    def keep(self, transaction: Transaction, answer: Mapping[str, Any]) -> None:
        text = msgspec.json.encode(answer).decode()
        transaction.execute("UPDATE receipt SET answer = %s WHERE key = %s", text, self.id)

    def read_answer(self, transaction: Transaction) -> dict[str, Any]:
        """Raises KeyReused where the first request with this key was another one."""
        found = transaction.execute(
            """SELECT fingerprint, answer FROM receipt WHERE key = %s OR (key = %s AND fingerprint = %s)
               ORDER BY key = %s DESC""",
            *(self.id, self.key, self.fingerprint, self.id),
        )
        if not found:
            raise NotStored("the receipt has been pruned between two looks at it")
        fingerprint, answer = found[0]
        if fingerprint != self.fingerprint:
            raise KeyReused
        return msgspec.json.decode(answer, type=dict[str, Any])


def read_claim(owner: str, key: str | None, *request: str | bytes) -> Claim | None:
    """The claim that a request makes with its Idempotency-Key header; None without one.

    `owner` is the name of the token that it came with, `request` all that it says.
    """
    if key is None:
        return None
    if not KEY.fullmatch(key):
        raise Problem(
            400,
            "invalid-idempotency-key",
            "The Idempotency-Key cannot be used",
            "the header Idempotency-Key takes 1 to 255 printable ASCII characters; a UUID is a good one",
        )
    digest = hashlib.sha256()
    for part in request:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        # The length first, so that no two lists of parts run together to the same bytes.
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return Claim(owner, key, digest.hexdigest())


def insert_new(transaction: Transaction, claims: Sequence[Claim], first: str = "") -> set[str]:
    """Insert the receipts of those claims that nobody has made yet; their ids. `first` is a statement to begin with.

    A receipt from before keys had owners has the bare key. With the same fingerprint it is the same request, sent again
    after an upgrade: that is a replay. (They are gone IDEMPOTENCY_KEEP_HOURS after the upgrade.)
    """
    values = ", ".join(["(%s, %s, %s)"] * len(claims))
    taken = transaction.execute(
        f"""{first}INSERT INTO receipt (key, fingerprint, answer)
            SELECT id, fingerprint, '' FROM (VALUES {values}) AS claim (id, bare, fingerprint)
            WHERE NOT EXISTS (
                SELECT FROM receipt WHERE receipt.key = claim.bare AND receipt.fingerprint = claim.fingerprint)
            ON CONFLICT DO NOTHING RETURNING key""",
        *(text for claim in claims for text in (claim.id, claim.key, claim.fingerprint)),
    )
    return {key for (key,) in taken}


def take_all(transaction: Transaction, claims: Sequence[Claim]) -> set[str]:
    """Take the claims, all of different ids, that nobody has made yet; the ids of those.

    In the order of the ids, so that two groups never wait for each other. A key that another transaction is about to
    use fails the transaction, soon.
    """
    ordered = sorted(claims, key=lambda claim: claim.id)
    return insert_new(transaction, ordered, f"SET LOCAL lock_timeout = {GROUP_LOCK_MILLISECONDS}; ")


def keep_all(transaction: Transaction, answers: Sequence[tuple[Claim, Mapping[str, Any]]]) -> None:
    """`Claim.keep` for many."""
    if answers:
        transaction.execute(
            f"""UPDATE receipt SET answer = kept.answer
                FROM (VALUES {", ".join(["(%s, %s)"] * len(answers))}) AS kept (key, answer)
                WHERE receipt.key = kept.key""",
            *(text for claim, answer in answers for text in (claim.id, msgspec.json.encode(answer).decode())),
        )


def prune(transaction: Transaction, keep_hours: float) -> int:
    """Remove some of the receipts that are older than this, the oldest first; how many."""
    gone = transaction.execute(
        """DELETE FROM receipt WHERE key IN (
               SELECT key FROM receipt WHERE create_time < now() - %s * interval '1 hour'
               ORDER BY create_time LIMIT %s FOR UPDATE SKIP LOCKED)
           RETURNING true""",
        keep_hours,
        PRUNE_ROWS,
    )
    return len(gone)
