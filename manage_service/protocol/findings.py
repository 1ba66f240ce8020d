"""The findings of a reconcile in one counter so far: the drift, with samples, and the position to continue from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import chain

import msgspec

from shared_models.declarations import Counter
from shared_models.protocol.elements import decode

SAMPLE_MEMBERS = 20


class Findings(msgspec.Struct):
    """The findings of a run in one counter so far, and the position to continue from."""

    definition: str = ""  # of the part: after `next_shards` became `shards`, a part of the same name is another one
    build: str = ""  # the build of the counter
    gap: int = 0  # between its set and its size, before the first look
    changed_at: str = ""  # the table that it is compared with: see shared_models.protocol.keys
    history: str = ""  # the history of Redis in which it is compared: see shared_models.protocol.states
    position: bytes = b""
    read: int = 0
    table_read: bool = False
    absent: int = 0  # members of the table that were not in the set, whether drift or not yet counted
    later: int = 0  # … that were seen later than the table says
    missing: int = 0
    extra: int = 0
    # Up to SAMPLE_MEMBERS of each, by field; a member that no row can have is {"member": …}.
    missing_sample: list[dict[str, str]] = []
    extra_sample: list[dict[str, str]] = []
    verified_at: datetime | None = None
    failure: str = ""  # why it could not be reconciled

    def start_over(self) -> None:
        """Remove all findings: they are of another build."""
        for name, value in msgspec.structs.asdict(Findings(self.definition)).items():
            setattr(self, name, value)

    def look_again(self, *, repaired: bool) -> None:
        """Begin again. Repaired members are not found again, so they stay noted."""
        found = self.missing, self.missing_sample, self.extra, self.extra_sample
        self.start_over()
        if repaired:
            self.missing, self.missing_sample, self.extra, self.extra_sample = found

    def forget_extra(self) -> None:
        """Begin the second half again, which finds the same."""
        self.extra, self.extra_sample = 0, []

    def note_missing(self, counter: Counter, members: Sequence[bytes]) -> None:
        """Note members that are in the table only."""
        self.missing += len(members)
        self.missing_sample += sample(counter, members, SAMPLE_MEMBERS - len(self.missing_sample))

    def note_extra(self, counter: Counter, members: Sequence[bytes]) -> None:
        """Note members that are in the set only."""
        self.extra += len(members)
        self.extra_sample += sample(counter, members, SAMPLE_MEMBERS - len(self.extra_sample))


def together(parts: Sequence[Findings]) -> Findings:
    """The findings in all parts of a counter: verified when all of them are."""
    if len(parts) == 1:
        return parts[0]
    ends = [part.verified_at for part in parts if part.verified_at is not None]
    return Findings(
        read=sum(part.read for part in parts),
        missing=sum(part.missing for part in parts),
        extra=sum(part.extra for part in parts),
        missing_sample=list(chain.from_iterable(part.missing_sample for part in parts))[:SAMPLE_MEMBERS],
        extra_sample=list(chain.from_iterable(part.extra_sample for part in parts))[:SAMPLE_MEMBERS],
        verified_at=max(ends) if len(ends) == len(parts) else None,
        failure="; ".join(dict.fromkeys(part.failure for part in parts if part.failure)),
    )


def sample(counter: Counter, members: Sequence[bytes], most: int) -> list[dict[str, str]]:
    """The first few of these members, by field."""
    shown = []
    for member in members[: max(most, 0)]:
        values = decode(counter, member)
        if values is None:
            shown.append({"member": member.decode(errors="backslashreplace")})
        else:
            shown.append({each.name: value for each, value in zip(counter.terms, values, strict=True)})
    return shown
