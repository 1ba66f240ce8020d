"""The last hour of a counter as a line: the path for SVG, and a description in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from shared_models.protocol.samples import HOUR, SAMPLE_SECONDS, Sample

# The units of the drawing. The page stretches it to the available size.
WIDTH, HEIGHT, MARGIN = 720, 120, 4
# If two samples are further apart, there is a gap in the line: the counts in between are not known. A busy keeper
# may miss one sample, but not two.
GAP_SECONDS = 2.5 * SAMPLE_SECONDS


@dataclass(frozen=True, slots=True)
class Chart:
    """A line within WIDTH by HEIGHT, and the lowest and the highest count on it."""

    path: str
    low: int
    high: int


def draw(samples: Sequence[Sample], until: datetime) -> Chart | None:
    """The chart of the hour that ends at `until`; None if there is nothing to draw. Samples in the order of their times."""
    if not samples:
        return None
    low, high = min(each.count for each in samples), max(each.count for each in samples)
    steps: list[str] = []
    before: Sample | None = None
    for each in samples:
        x = round(WIDTH * (1 - (until - each.at) / HOUR))
        # A count that did not change is a line in the middle.
        share = (each.count - low) / (high - low) if high > low else 0.5
        y = round(HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN))
        is_joined = before is not None and (each.at - before.at).total_seconds() <= GAP_SECONDS
        # Every part of the line begins with a dot, so that a sample between two gaps is visible.
        steps.append(f"L{x} {y}" if is_joined else f"M{x} {y}h0")
        before = each
    return Chart("".join(steps), low, high)
