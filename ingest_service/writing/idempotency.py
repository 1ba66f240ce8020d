"""Idempotency keys: a retry of a request stores nothing twice and gets the first answer.

The receipt is a row in the primary. The transaction that stores the request's rows also writes it. So both are stored or
neither, whatever process dies. A second request with the same key waits in `take` until the first one's transaction has
ended.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import msgspec

from ingest_service.writing.transactions import NotStored, Transaction

KEY = re.compile(r"[\x20-\x7e]{1,255}")

# Receipts removed by one statement: a few milliseconds.
PRUNE_ROWS = 5_000

# A group of requests waits at most this long for a key that another transaction is about to use.
GROUP_LOCK_MILLISECONDS = 20
# By then the request has waited once.
RETRY_LOCK_MILLISECONDS = 2


class KeyReused(Exception):
    """This Idempotency-Key has been used for another request; nothing was stored."""


class KeyNotUsable(Exception):
    """This is not an Idempotency-Key: one has 1 to 255 printable ASCII characters."""


Answer: TypeAlias = Mapping[str, object]


class Claim(Protocol):
    """Prevents rows from being stored twice: their transaction writes the claim, as a receipt."""

    def take(self, transaction: Transaction) -> bool:
        """Whether this is the first request. Waits while another transaction is taking the same claim."""
        ...

    def keep(self, transaction: Transaction, answer: Answer) -> None:
        """Store the answer, now that it is known."""
        ...

    def read_answer(self, transaction: Transaction) -> Answer:
        """The answer to the first request."""
        ...


# No token's name, and no client's key, has this character.
BETWEEN = "\x02"


@dataclass(frozen=True, slots=True)
class RequestClaim:
    """The identity of a request: its owner, its key, and the fingerprint of its contents.

    A key belongs to the token that sent it: two producers may use the same key without a conflict.
    """

    owner: str  # name of the token; "" if tokens are off
    key: str
    fingerprint: str

    @property
    def id(self) -> str:
        """The receipt's key. Without an owner it is the bare key, as in receipts of older versions."""
        return f"{self.owner}{BETWEEN}{self.key}" if self.owner else self.key

    def take(self, transaction: Transaction) -> bool:
        return bool(insert_new(transaction, [self]))

    def keep(self, transaction: Transaction, answer: Answer) -> None:
        keep_all(transaction, [(self, answer)])

    def read_answer(self, transaction: Transaction) -> Answer:
        """Raises KeyReused if the first request with this key was another one."""
        (found,) = read_answers(transaction, [self])
        if isinstance(found, Exception):
            raise found
        return found


def read_claim(owner: str, key: str | None, *request: str | bytes | bytearray) -> RequestClaim | None:
    """The claim that a request makes with its Idempotency-Key header; None without one. Raises KeyNotUsable.

    `owner` is the name of its token, `request` the parts of its contents.
    """
    if key is None:
        return None
    if not KEY.fullmatch(key):
        raise KeyNotUsable
    digest = hashlib.sha256()
    for part in request:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        # The length first, so that no two lists of parts give the same bytes.
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return RequestClaim(owner, key, digest.hexdigest())


def insert_new(transaction: Transaction, claims: Sequence[RequestClaim], first: str = "") -> set[str]:
    """Insert the receipts of the new claims; returns their ids. `first`: a statement to run before.

    A receipt of an older version has the bare key. With the same fingerprint it is the same request, sent again
    after an upgrade: that is a replay. (Such receipts are pruned IDEMPOTENCY_KEEP_HOURS after the upgrade.)
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


def take_all(transaction: Transaction, claims: Sequence[RequestClaim], lock_milliseconds: int) -> set[str]:
    """Take the new ones of these claims, which have different ids; returns the ids of the new ones.

    In the order of the ids, so that two groups never deadlock. If another transaction is using a key, this
    transaction fails after `lock_milliseconds`, with LockNotGiven.
    """
    ordered = sorted(claims, key=lambda claim: claim.id)
    return insert_new(transaction, ordered, f"SET LOCAL lock_timeout = {lock_milliseconds}; ")


def keep_all(transaction: Transaction, answers: Sequence[tuple[RequestClaim, Answer]]) -> None:
    """Store the answer of each of these claims, now that it is known."""
    if answers:
        transaction.execute(
            f"""UPDATE receipt SET answer = kept.answer
                FROM (VALUES {", ".join(["(%s, %s)"] * len(answers))}) AS kept (key, answer)
                WHERE receipt.key = kept.key""",
            *(text for claim, answer in answers for text in (claim.id, msgspec.json.encode(answer).decode())),
        )


def read_answers(transaction: Transaction, claims: Sequence[RequestClaim]) -> list[Answer | KeyReused | NotStored]:
    """The answer to the first request with each of these claims; KeyReused if that was another request.

    NotStored: the receipt was pruned after `insert_new` had found it.
    """
    if not claims:
        return []
    rows = transaction.execute(
        f"""SELECT number, receipt.fingerprint, answer
            FROM (VALUES {", ".join(["(%s, %s, %s, %s)"] * len(claims))}) AS claim (number, id, bare, fingerprint)
            JOIN receipt ON receipt.key IN (claim.id, claim.bare)
                AND (receipt.key = claim.id OR receipt.fingerprint = claim.fingerprint)
            ORDER BY receipt.key = claim.id""",
        *(value for n, claim in enumerate(claims) for value in (n, claim.id, claim.key, claim.fingerprint)),
    )
    found = {number: (fingerprint, answer) for number, fingerprint, answer in rows}  # the last one: its own receipt
    answers: list[Answer | KeyReused | NotStored] = []
    for number, claim in enumerate(claims):
        fingerprint, answer = found.get(number, (None, ""))
        if fingerprint is None:
            answers.append(NotStored("the receipt was pruned between two reads of it"))
        elif fingerprint != claim.fingerprint:
            answers.append(KeyReused())
        else:
            answers.append(msgspec.json.decode(answer, type=dict[str, object]))
    return answers


def prune(transaction: Transaction, keep_hours: float) -> int:
    """Remove some receipts older than this, the oldest first; returns how many."""
    gone = transaction.execute(
        """DELETE FROM receipt WHERE key IN (
               SELECT key FROM receipt WHERE create_time < now() - %s * interval '1 hour'
               ORDER BY create_time LIMIT %s FOR UPDATE SKIP LOCKED)
           RETURNING true""",
        keep_hours,
        PRUNE_ROWS,
    )
    return len(gone)
