"""What manage and ingest write to Redis, by the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from redis import Redis

from shared_models.declarations import get_counter
from shared_models.protocol import keys, samples, steps
from shared_models.protocol.members import encode
from shared_models.protocol.moments import to_microseconds
from shared_models.protocol.samples import Sample
from shared_models.protocol.states import Drift, read_state

SOURCE = "7000000000000000001/16384/1"
HORIZON = 1000
THROUGH = datetime(2026, 11, 23, 12, 0, 1, 200_000, tzinfo=UTC)


class Rolls:
    """The rolls of one Redis."""

    def __init__(self, client: Redis) -> None:
        self.client = client

    def begin_fill(self, name: str, expected: int, token: str = "fill-1") -> None:
        """What the keeper notes when it begins to build a counter."""
        fields = {"complete_through": to_microseconds(THROUGH), "expected": expected}
        steps.begin(self.client, name, token, HORIZON, SOURCE, fields, claim=HORIZON - 1)

    def fill(self, name: str, members: Sequence[bytes], token: str = "fill-1") -> bytes:
        """The first chunk of a fill; the position behind it."""
        position = steps.position_after(members[-1])
        assert steps.fill(self.client, name, token, b"", position, members)
        return position

    def make_live(self, name: str, members: Sequence[bytes], token: str = "fill-1") -> None:
        """A whole build."""
        self.begin_fill(name, len(members), token)
        position = self.fill(name, members, token) if members else b""
        assert steps.promote(self.client, name, token, position)

    def make_all_live(self, cities: int = 3, users: int = 2) -> None:
        """Both declared counters, built."""
        self.make_live("cities", [encode(("NY", f"City {i}")) for i in range(cities)])
        self.make_live("users", [b"user-%d" % i for i in range(users)])

    def record(self, name: str, *members: bytes, xact: int = 1001) -> None:
        """Rows that ingest has committed, counted."""
        steps.record(self.client, {get_counter(name).name: members}, xact, SOURCE)

    def advance(self, name: str, through: datetime) -> None:
        """A pass of catch-up."""
        state = read_state(self.client, name)
        assert state.cursor is not None
        assert steps.advance(self.client, name, state, state.cursor + 1, through)

    def verify(self, name: str, at: datetime, missing: int = 0, extra: int = 0, *, repaired: bool = True) -> None:
        """The end of a reconcile."""
        state = read_state(self.client, name)
        drift = Drift(missing, extra)
        assert steps.verify(
            self.client, name, state.build, state.gap, at, drift, repaired=repaired, history=state.history
        )

    def note(self, name: str, *taken: tuple[datetime, int]) -> None:
        """Samples that the keeper has taken."""
        for at, count in taken:
            samples.queue_sample(self.client, name, Sample(at, count))

    def lose(self, name: str) -> None:
        """The counter is lost, as if Redis had been emptied."""
        at = keys.of_counter(name)
        self.client.delete(at.members, at.intake, at.state, at.fill, at.suspects)
