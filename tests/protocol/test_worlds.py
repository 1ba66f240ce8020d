"""The protocol holds in every interleaving.

Each world is looked at twice. Once as deep as it is written: two messages, two runs, a set that is damaged twice, 1.9 million
states in all, 0.65 million of them in one world. And once with each thing in it happening once at the most (`once`): 0.5 million
states, in a quarter of the time. `make test-fast` leaves the deep ones out, `make test` the seven largest (`VERY_LARGE`),
which `make test-long` searches. If you change a rule, run both.

What the fast tier still has: every actor, every kind of damage and every event from outside, in every order, against each other
as before; and all but ten worlds of `test_rules.py`, where leaving a rule out must break a promise. So a rule that is forgotten or
turned round in the model is noticed. What it does not have: what only two of a kind do to each other (two runs,
the second damage while the first is being settled).
"""

from __future__ import annotations

import pytest

from tests.protocol.search import search
from tests.protocol.worlds import LARGE, VERY_LARGE, WORLDS, World, once


def sizes(name: str, world: World):
    """The world as it is written, and the smaller one where it is another."""
    depth = [pytest.mark.deep, pytest.mark.long] if name in VERY_LARGE else [pytest.mark.deep]
    if once(world) == world:
        return [pytest.param(world, id=name, marks=depth if name in LARGE | VERY_LARGE else [])]
    return [pytest.param(once(world), id=f"{name}, once"), pytest.param(world, id=name, marks=depth)]


@pytest.mark.parametrize("world", [size for name, world in WORLDS.items() for size in sizes(name, world)])
def test_no_interleaving_breaks_the_protocol(world):
    result = search(**world)
    assert result.broken is None, result.path
    assert result.states > (100 if once(world) == world else 1_000)
