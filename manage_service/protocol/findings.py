"""What a reconcile has found in one counter so far: the drift, with samples of it, and the position to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from shared_models.declarations import Counter
from shared_models.protocol.elements import decode

SAMPLE_MEMBERS = 20


class Findings(msgspec.Struct):
    """What a run has found in one counter so far, and from where it can go on."""

    build: str = ""  # of the counter that it looks at
    gap: int = 0  # between its set and its size, before the first look
    changed_at: str = ""  # which table it is compared with: see shared_models.protocol.keys
    position: bytes = b""
    read: int = 0
    table_read: bool = False
    absent: int = 0  # members of the table that were not in the set, drift or on their way
    later: int = 0  # … that were seen later than the table says
    missing: int = 0
    extra: int = 0
    # Up to SAMPLE_MEMBERS of each, by field; one that no row could have made is given as {"member": …}.
    missing_sample: list[dict[str, str]] = []
    extra_sample: list[dict[str, str]] = []
    verified_at: datetime | None = None
    failure: str = ""  # why it could not be reconciled

    def start_over(self) -> None:
        """Forget what was found: it was another counter."""
        for name, value in msgspec.structs.asdict(Findings()).items():
            setattr(self, name, value)

    def look_again(self, *, repaired: bool) -> None:
        """Look from the start. What was repaired is not found again, and stays noted."""
        found = self.missing, self.missing_sample, self.extra, self.extra_sample
        self.start_over()
        if repaired:
            self.missing, self.missing_sample, self.extra, self.extra_sample = found

    def forget_extra(self) -> None:
        """The second half starts again, and finds the same."""
        self.extra, self.extra_sample = 0, []

    def note_missing(self, counter: Counter, members: Sequence[bytes]) -> None:
        """Members in the table only."""
        self.missing += len(members)
        self.missing_sample += sample(counter, members, SAMPLE_MEMBERS - len(self.missing_sample))

    def note_extra(self, counter: Counter, members: Sequence[bytes]) -> None:
        """Members in the set only."""
        self.extra += len(members)
        self.extra_sample += sample(counter, members, SAMPLE_MEMBERS - len(self.extra_sample))


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
