"""The parts of a counter in step: each reads the table in the same snapshot, so that a chunk is read once for all of them.

Each part is built, or reconciled, by itself, with the server that holds it. Nothing is shared but what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from manage_service.protocol.progress import Progress, Steps
from manage_service.replica.snapshots import Replica, Snapshot
from shared_models.declarations import Counter
from shared_models.protocol import elements, steps
from shared_models.protocol.members import Values


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of the table's distinct members: the elements of one part, with their values, and the position after the chunk."""

    elements: list[bytes]
    values: list[Values]
    position: bytes


def read_chunk(part: Counter, position: bytes, snapshot: Snapshot, *, jumping: bool) -> Chunk | None:
    """The next chunk after a position; None if there is none. It may have no element of this part.

    Raises psycopg2.Error, catalog.DoesNotFit.
    """
    chunks = snapshot.once(
        ("chunk", part.whole, position, jumping), lambda: chunks_by_part(part, position, snapshot, jumping=jumping)
    )
    return chunks[part.shard] if chunks else None


def chunks_by_part(part: Counter, position: bytes, snapshot: Snapshot, *, jumping: bool) -> list[Chunk]:
    """The next chunk after a position, for each part of the counter; nothing if there is none."""
    values = snapshot.read_members(part, elements.decode(part, position[1:]) if position else None, jumping=jumping)
    if not values:
        return []
    encoded = elements.encode_all(part, values)
    after = steps.position_after(encoded[-1])
    chunks = [Chunk([], [], after) for _ in range(part.shards)]
    if part.shards == 1:
        return [Chunk(encoded, values, after)]
    for element, of_row in zip(encoded, values, strict=True):
        chunk = chunks[elements.shard_of(part, element)]
        chunk.elements.append(element)
        chunk.values.append(of_row)
    return chunks


def in_step(
    parts: Mapping[str, Steps],
    replica: Replica,
    failed: Callable[[str, Exception], None],
    between: Callable[[], None] = lambda: None,
) -> Steps:
    """The steps of some parts of a counter: one of each, and so on.

    `failed` is told that a part has raised an error; it raises it again, or the others go on without the part. `between` is called
    between two steps, to renew leases.
    """
    unended, last = dict(parts), dict[str, Progress]()
    while unended:
        with replica.in_one_snapshot() if len(unended) > 1 else nullcontext():
            for name, its_steps in list(unended.items()):
                between()
                try:
                    last[name] = next(its_steps)
                except StopIteration:
                    del unended[name]
                except Exception as error:  # noqa: BLE001  (the caller decides)
                    del unended[name]
                    failed(name, error)
        if unended:
            yield together(last, [last[name] for name in unended])


def together(last: Mapping[str, Progress], going_on: list[Progress]) -> Progress:
    """The progress of all parts: what those that go on are doing. It waits if all of these wait."""
    waiting = going_on[0].waiting if all(each.waiting for each in going_on) else ""
    read, expected = (sum(getattr(each, name) for each in last.values()) for name in ("read", "expected"))
    return Progress(going_on[0].phase, read, expected, waiting=waiting)
